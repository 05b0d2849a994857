"""Prometheus' recording rules and alerts, made from the configuration."""
