"""The ways in which a request is written down: the Open Inference Protocol in JSON and protobuf, and plain rows."""
