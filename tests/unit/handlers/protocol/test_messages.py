"""The compiled descriptor: it is that of the .proto beside it, and the same on the wire as public clients'."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from handlers.protocol import messages

PUBLIC = [name for name in vars(messages) if name.endswith(("Request", "Response")) and not name.startswith("Health")]


def test_descriptor_is_what_the_proto_compiles_to(tmp_path: Path) -> None:
    folder = files("handlers.protocol")
    arguments = ["--proto_path=.", "--include_imports", f"--descriptor_set_out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments, "open_inference.proto", "health.proto"]
    subprocess.run(command, cwd=str(folder), check=True)
    # Compared as messages, so that another compiler's order of bytes is no difference.
    compiled = FileDescriptorSet.FromString((tmp_path / "out").read_bytes())
    assert compiled == FileDescriptorSet.FromString(folder.joinpath(messages.DESCRIPTOR).read_bytes())


@pytest.mark.parametrize("name", PUBLIC)
def test_fields_have_the_numbers_and_types_of_public_clients(name: str) -> None:
    assert wire(getattr(messages, name).DESCRIPTOR).items() <= wire(getattr(service_pb2, name).DESCRIPTOR).items()


def wire(message: Descriptor) -> dict[str, tuple[object, ...]]:
    """Number, type and repetition of every field, those of nested messages too."""
    found: dict[str, tuple[object, ...]] = {}
    for field in message.fields:
        found[field.name] = (field.number, field.type, field.is_repeated)
        if field.message_type is not None:
            found |= {f"{field.name}.{name}": facts for name, facts in wire(field.message_type).items()}
    return found


def test_health_is_that_of_grpc() -> None:
    check = messages.HealthCheckRequest(service="flights").SerializeToString()
    assert check == health_pb2.HealthCheckRequest(service="flights").SerializeToString()
    for name, number in health_pb2.HealthCheckResponse.ServingStatus.items():
        assert messages.HealthCheckResponse.ServingStatus.Value(name) == number


def test_service_is_that_of_public_clients() -> None:
    assert service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name == messages.SERVICE
