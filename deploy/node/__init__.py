"""The serving node: Envoy in front of TorchServe in front of handlers, and the launcher that holds them to a file."""
