"""Protobuf messages of `open_inference.proto` and `health.proto`, from their compiled descriptor beside them.

They live in a descriptor pool of their own: public clients register the same names in protobuf's default pool,
and a user's handler may well import such a client. `make generate` compiles the descriptor again.
"""

from importlib.resources import files
from typing import Any, cast

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE, HEALTH_SERVICE = "inference.GRPCInferenceService", "grpc.health.v1.Health"
PROTO = "open_inference.proto"
DESCRIPTOR = "messages.binpb"

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(files("handlers.protocol").joinpath(DESCRIPTOR).read_bytes()).file:
    _pool.AddSerializedFile(_file.SerializeToString())


def _message(name: str) -> Any:
    return cast(Any, GetMessageClass(_pool.FindMessageTypeByName(name)))


ServerLiveResponse = _message("inference.ServerLiveResponse")
ServerReadyResponse = _message("inference.ServerReadyResponse")
ServerMetadataResponse = _message("inference.ServerMetadataResponse")
ModelReadyRequest = _message("inference.ModelReadyRequest")
ModelReadyResponse = _message("inference.ModelReadyResponse")
ModelMetadataRequest = _message("inference.ModelMetadataRequest")
ModelMetadataResponse = _message("inference.ModelMetadataResponse")
ModelInferRequest = _message("inference.ModelInferRequest")
ModelInferResponse = _message("inference.ModelInferResponse")
HealthCheckRequest = _message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = _message("grpc.health.v1.HealthCheckResponse")
