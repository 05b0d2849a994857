"""What load over gRPC needs of locust, which knows HTTP alone: a user with one long-lived channel."""

# locust comes first: it replaces the blocking parts of the standard library before anyone else imports them.
from locust import User, events  # isort: skip

import time
from collections.abc import Callable, Mapping
from typing import Any

import gevent
import grpc
import grpc.experimental.gevent
import numpy as np
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

grpc.experimental.gevent.init_gevent()

Fault = Callable[[Any, Mapping[str, str]], str | None]
"""Of an answer and its headers: what is wrong with it, or None."""


class GrpcUser(User):
    """One connection for each user."""

    abstract = True

    def on_start(self) -> None:
        self.channel = grpc.insecure_channel(str(self.host), options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def on_stop(self) -> None:
        self.channel.close()

    def ask(self, message: Any, timeout_seconds: float, fault: Fault) -> None:
        """ModelInfer once, and what became of it for locust's statistics."""
        start = time.perf_counter()
        failure: Exception | None = None
        size_bytes = 0
        try:
            answer, call = self.stub.ModelInfer.with_call(message, timeout=timeout_seconds)
            size_bytes = answer.ByteSize()
            wrong = fault(answer, {key: str(value) for key, value in call.initial_metadata()})
            failure = None if wrong is None else ValueError(wrong)
        except grpc.RpcError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="GRPC",
            name="ModelInfer",
            response_time=(time.perf_counter() - start) * 1000,
            response_length=size_bytes,
            exception=failure,
            context={},
        )


def floats(answer: Any) -> list[float]:
    """The first output of an answer."""
    found: list[float] = np.frombuffer(answer.raw_output_contents[0], dtype=np.float32).tolist()
    return found


def raw(values: Any, datatype: str) -> bytes:
    """A tensor as ModelInfer takes it."""
    if datatype == "BYTES":
        packed: bytes = serialize_byte_tensor(np.array(list(values), dtype=np.object_)).item()
        return packed
    return np.asarray(values, dtype=np.float32).tobytes()


def wind_the_clock(**_: object) -> None:
    """The clock of gevent stands still while Python works: --run-time would count what making requests took."""
    gevent.sleep(0)


events.init.add_listener(wind_the_clock)  # type: ignore[no-untyped-call]
