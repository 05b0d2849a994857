"""What runs inside a TorchServe worker: decode, check, predict, encode, count."""
