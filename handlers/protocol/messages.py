"""Protobuf messages of `open_inference.proto`, from its compiled descriptor beside it.

They live in a descriptor pool of their own: public clients register the same names in protobuf's default pool,
and a user's handler may well import such a client. `make generate` compiles the descriptor again.
"""

from importlib.resources import files
from typing import Any, cast

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"
DESCRIPTOR = "open_inference.binpb"

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(files("handlers.protocol").joinpath(DESCRIPTOR).read_bytes()).file:
    _pool.AddSerializedFile(_file.SerializeToString())


def _message(name: str) -> Any:
    return cast(Any, GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}")))


ServerLiveResponse = _message("ServerLiveResponse")
ServerReadyResponse = _message("ServerReadyResponse")
ServerMetadataResponse = _message("ServerMetadataResponse")
ModelReadyRequest = _message("ModelReadyRequest")
ModelReadyResponse = _message("ModelReadyResponse")
ModelMetadataRequest = _message("ModelMetadataRequest")
ModelMetadataResponse = _message("ModelMetadataResponse")
ModelInferRequest = _message("ModelInferRequest")
ModelInferResponse = _message("ModelInferResponse")
