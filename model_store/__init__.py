"""From data to a signed archive: training, registry, profile, golden set, packaging."""
