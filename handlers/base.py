"""The main path of every handler: decode, check, predict, encode, count. Items of a batch fail alone."""

import gc
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, compress, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from handlers import server
from handlers.answer import BY_NODE, EXPLAINER, GRPC, HTTP, NO_ID, ROWS, SHADOW, Answer, Call, fail
from handlers.bucketing import in_calls
from handlers.capture import Asked, Capture, capture_of
from handlers.errors import (
    ArchiveUnusable,
    DeadlineExpired,
    HandlerError,
    InvalidRequest,
    PredictionFailed,
    RequestRefused,
    listed,
    shown,
)
from handlers.hardware import worker_threads
from handlers.measured import Features, Measured
from handlers.metrics import METRICS_DIRECTORY, Outcome, WorkerMetrics
from handlers.predictions import SURE_UNIT, Teller, Version, teller
from handlers.program import Program
from handlers.protocol import oip_grpc, oip_json
from handlers.protocol.rows import encode as encode_rows
from handlers.runtime import device_of, load_runtime
from handlers.runtime_plan import RuntimePlan
from handlers.slots import DriftCounter, counters_directory, take_slot
from handlers.tensors import InferRequest, Tensor
from monitoring.profile import Profile
from monitoring.rff import MEMBER, Rff

if TYPE_CHECKING:
    from handlers.explain import Explainer

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_NOTHING_ASKED = InferRequest(())
"""Plain bodies have no place to name outputs, a model or an id."""


@dataclass(slots=True)  # not frozen: that makes it three times as slow to make, for every request
class Item:
    """One request, decoded: `data` is what its handler has read of it, with `rows` rows."""

    call: Call
    request: InferRequest
    data: Any
    rows: int
    single: bool = False
    """Whether plain JSON came as one object, so that one object goes back."""


_NO_CALL = Call(HTTP, None, "", memoryview(b""), {})


class BaseHandler(ABC):
    """What TorchServe's worker loads. A kind of model is a subclass with the hooks at the end."""

    device = "cpu"
    workers = 1
    """How many share this machine's processors for this version."""
    # None in a process that answers and nothing else, like a rehearsal.
    _drift: DriftCounter | None = None
    _teller: Teller | None = None
    _capture: Capture | None = None
    explains = False
    """Whether explanations are asked of this worker, and no predictions."""
    max_rows = 1024
    """Rows of one call of the program, at most: a batch of large requests must not need more memory than there is."""

    def initialize(self, context: Any) -> None:
        """Called once by the worker. Raising ends it, with the reason in TorchServe's log."""
        manifest = context.manifest["model"]
        name: str = manifest["modelName"]
        self.explains = name.endswith(EXPLAINER)
        self.device = device_of(context.system_properties.get("gpu_id"))
        self.workers = int(context.model_yaml_config["minWorkers"])
        directory = Path(context.system_properties["model_dir"])
        self.open(directory, name.removesuffix(EXPLAINER), manifest["modelVersion"])
        profile_json = (self.directory / "profile.json").read_bytes()
        metrics_directory = Path(os.environ[METRICS_DIRECTORY])
        slot = take_slot(metrics_directory)
        self._metrics = WorkerMetrics(metrics_directory, slot, name, self.version)
        counters = counters_directory(metrics_directory, self.model, self.version, profile_json)
        profile = Profile.from_json(profile_json)
        rff = Rff.from_bytes((self.directory / MEMBER).read_bytes()) if profile.rff else None
        self._drift = DriftCounter(counters, slot, profile, rff)
        self._teller = None if self.explains else teller(Version(self.model, self.version, self.classes))
        self._capture = (
            None if self.explains else capture_of(self.directory, self.model, self.version, self._metrics.captured)
        )
        batch_size = int(context.system_properties["batch_size"])
        timeout = float(context.model_yaml_config["responseTimeout"])
        _collect_garbage()
        server.install(self, name, self.version, batch_size, timeout)

    def open(self, directory: Path, model: str, version: str) -> None:
        """Read an unpacked archive. After this `predict` works, with no TorchServe around it."""
        self.directory, self.model, self.version = directory, model, version
        self._outcomes: list[tuple[Call, Outcome]] = []
        self._taken_at, self._answered_at = 0.0, 0.0
        # The host's core count is no guide: a container may use fewer, and the other workers use them too.
        torch.set_num_threads(RuntimePlan.read(directory).threads or worker_threads(self.workers))
        self.program: Program = load_runtime(directory, self.device, getattr(self, "network", None))
        self.load()

    def predict(self, request: InferRequest) -> list[Tensor]:
        """The outputs for one request. Raises RequestRefused, and whatever the model raises."""
        return self.outputs(self.run(self.prepare(request)))

    def prepare(self, request: InferRequest) -> list[Array]:
        """What `run` takes for one request. Raises RequestRefused."""
        data, rows = self.read(request)
        return self.check([Item(_NO_CALL, request, data, rows)])

    def handle(self, data: object, context: object) -> None:
        """TorchServe wants an entry point of this name. Nobody asks by its queue: see `handlers/server.py`."""
        raise NotImplementedError("requests come from the edge to the worker's own socket, not by TorchServe")

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """Answer a batch, each call by itself: this is the main path. `account` counts its requests."""
        items: list[Item] = []
        self._taken_at = time.time()
        for call in calls:
            try:
                call.check_deadline(self._taken_at)
                items.append(self._decode(call))
            except RequestRefused as error:
                self._refuse(call, error)
            except DeadlineExpired as error:
                call.answer = fail(call, error)
                self._answered(call, "expired")
            except Exception as error:  # noqa: BLE001 - a fault in a handler's own reading costs its neighbours nothing
                self._failed(call, error)
        items, inputs = self._check(items)
        if items:
            (self._explain if self.explains else self._predict)(items, inputs)
        self._answered_at = time.time()
        return [call.answer for call in calls if call.answer is not None]

    def account(self) -> None:
        """Count the requests of the batch that was answered last, when its answers are on their way: nobody waits."""
        outcomes, self._outcomes = self._outcomes, []
        alike: dict[tuple[str, Outcome], list[Call]] = {}
        for call, outcome in outcomes:
            alike.setdefault((call.protocol, outcome), []).append(call)
        for (protocol, outcome), calls in alike.items():
            self._metrics.answered(protocol, outcome, _since_arrival(calls, self._answered_at), len(calls))
        if outcomes:  # none in a batch of copies
            waited = _since_arrival([call for call, _ in outcomes], self._taken_at)
            self._metrics.batch(len(outcomes), waited)
        if self._capture is not None:
            self._capture.write()

    def _decode(self, call: Call) -> Item:
        if call.protocol == ROWS:
            data, rows, single = self.read_plain(call)
            return Item(call, _NOTHING_ASKED, data, rows, single)
        request = decode_oip(call)
        self._check_names(request)
        data, rows = self.read(request)
        return Item(call, request, data, rows)

    def _check(self, items: list[Item]) -> tuple[list[Item], list[Array]]:
        """The right items and their inputs: checked all at once, as numpy costs by the call; alone if one is wrong."""
        with suppress(Exception):  # each item's own is told below
            return items, self.check(items) if items else []
        right: list[Item] = []
        for item in items:
            try:
                self.check([item])
                right.append(item)
            except RequestRefused as error:
                self._refuse(item.call, error)
            except Exception as error:  # noqa: BLE001 - a fault in a handler's own check costs its neighbours nothing
                self._failed(item.call, error)
        return right, self.check(right) if right else []

    def _refuse(self, call: Call, error: RequestRefused) -> None:
        call.answer = fail(call, error)
        self._answered(call, "refused")

    def _predict(self, items: list[Item], inputs: list[Array]) -> None:
        replays = [item.call.replay for item in items]
        try:
            outputs = self.run(inputs)
            if BY_NODE in replays:
                self._check_profile(inputs, outputs)
        except Exception as error:  # noqa: BLE001 - it is the model's, and every item still gets an answer
            self._after_failure(items, error)
            return
        # Before any answer goes out, so that whatever ends this worker, no answered row is lost.
        self._count(items, replays, inputs, outputs)
        self._tell(items, replays, outputs)
        plain = self._plain(items, outputs)
        parts = pairwise(accumulate((item.rows for item in items), initial=0))
        for item, (start, end) in zip(items, parts, strict=True):
            try:
                if plain:
                    item.call.answer = Answer(encode_rows(plain[start:end], single=item.single))
                else:
                    item.call.answer = self._encode(item, [output[start:end] for output in outputs])
                self._answered(item.call, "ok")
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(item.call, error)
        if self._capture is not None:
            self._note(items, self._capture)

    def _after_failure(self, items: list[Item], error: Exception) -> None:
        """The model raised: on one item that is its answer, of several each is asked once by itself."""
        if len(items) > 1:
            for item in items:
                self._predict([item], self.check([item]))
            return
        self._failed(items[0].call, error)

    def _failed(self, call: Call, error: Exception) -> None:
        logger.error("the model failed on one request", exc_info=error)
        call.answer = fail(call, error if isinstance(error, HandlerError) else PredictionFailed(error))
        self._answered(call, "failed")

    def _explain(self, items: list[Item], _: list[Array]) -> None:
        """Explanations in place of predictions, each by itself. No drift is counted: it was counted when predicting."""
        for item in items:
            try:
                item.call.answer = Answer(self._explainer.answer(item, self.check([item])))
                self._answered(item.call, "ok")
            except RequestRefused as error:
                self._refuse(item.call, error)
            except Exception as error:  # noqa: BLE001 - it is the model's
                self._failed(item.call, error)

    @cached_property
    def _explainer(self) -> "Explainer":
        """Made when it is first asked, which the node does at start, so that a reason against it is an answer."""
        from handlers.explain import Explainer  # Captum: no other worker needs it

        return Explainer(self)

    def execute(self, inputs: list[Array]) -> list[Array]:
        """One call of the program. Raises what it raises, and ValueError for an output that has not one row each."""
        outputs = [output.numpy() for output in self.program(*map(torch.from_numpy, inputs))]
        rows = len(inputs[0])
        if wrong := [output.shape for output in outputs if output.shape[:1] != (rows,)]:
            # Cut into items it would answer one client with another's numbers, or with none.
            raise ValueError(f"the program was given {rows} rows and gave an output of shape {wrong[0]}")
        return outputs

    def _plain(self, items: list[Item], outputs: list[Array]) -> list[dict[str, Any]]:
        """What all rows are answered with, where all items are plain ones: half the time of item by item."""
        with suppress(Exception):  # each item's own is told when it is encoded alone
            if {item.call.protocol for item in items} == {ROWS}:
                return self.plain(outputs)
        return []

    def _encode(self, item: Item, outputs: list[Array]) -> Answer:
        call, request = item.call, item.request
        if call.protocol == ROWS:
            return Answer(encode_rows(self.plain(outputs), single=item.single))
        tensors = self.outputs(outputs)
        if request.requested:
            tensors = [tensor for tensor in tensors if tensor.name in request.requested]
        if call.protocol == GRPC:
            return Answer(oip_grpc.encode(self.model, self.version, request, tensors), oip_grpc.CONTENT_TYPE)
        body, headers = oip_json.encode(self.model, self.version, request, tensors)
        return Answer(body, oip_json.content_type(headers), headers=headers)

    def _check_names(self, request: InferRequest) -> None:
        """What the message itself names must be this version: it may name it where the edge did not look."""
        for field, found, ours in (
            ("model_name", request.model, self.model),
            ("model_version", request.version, self.version),
        ):
            if found not in ("", ours):
                raise InvalidRequest(field, "must stand at the head of the message", found=found, allowed=ours)
        if unknown := [name for name in request.requested if name not in self.output_names]:
            raise InvalidRequest("outputs", f"unknown output {shown(unknown[0])}", allowed=listed(self.output_names))

    def _count(self, items: list[Item], replays: list[str], inputs: list[Array], outputs: list[Array]) -> None:
        """Counting must never cost an answer: a fault in it is itself counted, and logged."""
        if self._drift is None or all(replays):
            return
        try:
            if any(replays):
                clients = [not replay for replay in replays]
                rows = np.repeat(clients, [item.rows for item in items])
                inputs, outputs = [array[rows] for array in inputs], [array[rows] for array in outputs]
            if not self._drift.measures:
                self._drift.count_rows(len(inputs[0]))
                return
            self._drift.count(self.measure(inputs, outputs))
        except Exception:
            logger.exception("a batch was answered but not counted")
            self._metrics.monitor_error(replays.count(""))

    def _check_profile(self, inputs: list[Array], outputs: list[Array]) -> None:
        """ArchiveUnusable for a golden set whose rows cannot be counted, so that such a version is never ready."""
        if self._drift is None or not self._drift.measures:
            return
        try:
            self._drift.found(self.measure(inputs, outputs))
        except Exception as error:
            raise ArchiveUnusable(
                f"profile.json does not fit what the handler measures: {error}; package the version again"
            ) from error

    def _tell(self, items: list[Item], replays: list[str], outputs: list[Array]) -> None:
        """Say what was predicted, for labels that may come; a fault in it costs as little as one in counting."""
        if self._teller is None:
            return
        try:
            likely, rows = self.probabilities(outputs), [item.rows for item in items]
            ids = [item.call.id for item in items]
            if any(replays) or NO_ID in ids:
                self._tell_apart(ids, replays, rows, likely)
            else:
                self._teller.tell(ids, rows, likely.argmax(axis=1))
        except Exception:
            logger.exception("a batch was answered but not kept for labels")
            self._metrics.monitor_error(len(items))

    def _tell_apart(self, ids: list[str], replays: list[str], rows: list[int], likely: Array) -> None:
        """Of a batch that is not clients' alone: theirs, and copies for themselves; the golden set to nobody."""
        for kind in {"", SHADOW}.intersection(replays):
            kept = [replay == kind and each != NO_ID for replay, each in zip(replays, ids, strict=True)]
            told = self._teller_of_copies if kind else self._teller
            if told is not None and any(kept):
                of_kept = likely[np.repeat(kept, rows)]
                said = list(compress(ids, kept)), list(compress(rows, kept)), of_kept.argmax(axis=1)
                if kind:
                    told.tell(*said, sure=np.rint(of_kept.max(axis=1) * SURE_UNIT).astype(np.uint8).tobytes())
                else:
                    told.tell(*said)

    @cached_property
    def _teller_of_copies(self) -> Teller | None:
        """Made when there is something to tell, as few versions are ever sent copies."""
        return teller(Version(self.model, self.version, self.classes), of_copies=True)

    def _note(self, items: list[Item], capture: Capture) -> None:
        for item in items:
            if not item.call.replay and capture.wants():
                capture.note(Asked(item.call.id, item.call.protocol, partial(self._tensors, item)))

    def _tensors(self, item: Item) -> Sequence[Tensor]:
        return item.request.inputs or self.plain_tensors(item.data)

    def _answered(self, call: Call, outcome: Outcome) -> None:
        if not call.replay:
            self._outcomes.append((call, outcome))

    # The hooks of a kind of model, in the order in which a request meets them.

    output_names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    """What the model decides between; empty where it predicts no class."""

    @abstractmethod
    def load(self) -> None:
        """Read what `self.directory` holds beyond the program, and set `output_names`."""

    @abstractmethod
    def read(self, request: InferRequest) -> tuple[Any, int]:
        """What `check` needs of an Open Inference request, and its rows. Raises RequestRefused for a wrong form."""

    @abstractmethod
    def read_plain(self, call: Call) -> tuple[Any, int, bool]:
        """The same of a body of `/predictions/NAME`, and whether it holds one row that is not in a list."""

    @abstractmethod
    def plain_tensors(self, data: Any) -> Sequence[Tensor]:
        """What `read_plain` has read, as the inputs of an Open Inference request that is answered alike."""

    @abstractmethod
    def check(self, items: list[Item]) -> list[Array]:
        """The program's inputs for all rows of all items, in order. Raises RequestRefused if a value is not allowed.

        Called for a whole batch; after a refusal once more for each item alone, so that each gets its own message.
        """

    def run(self, inputs: list[Array]) -> list[Array]:
        """The program's outputs for all rows, in calls of at most `max_rows`."""
        return in_calls(self.execute, inputs, self.max_rows)

    @abstractmethod
    def outputs(self, arrays: list[Array]) -> list[Tensor]:
        """The program's outputs for one request as named tensors."""

    @abstractmethod
    def plain(self, arrays: list[Array]) -> list[dict[str, Any]]:
        """What `/predictions/NAME` answers each row with, from the program's outputs; of one request or of many."""

    def probabilities(self, outputs: list[Array]) -> Array:
        """How likely each of `classes` is, [n, classes]; never asked of a model without classes."""
        return outputs[0]

    @property
    @abstractmethod
    def features(self) -> Features:
        """What `measure` gives, by name."""

    @abstractmethod
    def measure(self, inputs: list[Array], outputs: list[Array]) -> Measured:
        """What is counted of these rows, and of training rows when the profile is made."""


def _since_arrival(calls: Sequence[Call], at: float) -> list[float]:
    """How long before `at` the edge received them, in seconds, of those that it said so of."""
    # The clock may have been set back in between.
    return [max(0.0, at - call.arrived_at) for call in calls if call.arrived_at is not None]


def _collect_garbage() -> None:
    """From now on, but not in what is loaded and stays: the node starts workers without, so that they start sooner."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def decode_oip(call: Call) -> InferRequest:
    """The request of either form of the Open Inference Protocol."""
    if call.protocol == GRPC:
        call.check_content_type((oip_grpc.CONTENT_TYPE,))
        return oip_grpc.decode(call.body)
    call.check_content_type(oip_json.CONTENT_TYPES)
    return oip_json.decode(call.body, call.headers.get(oip_json.HEADER_LENGTH))
