"""Ports for a stack beside others."""

from deploy.node.torchserve import free_ports
from deploy.settings import Settings

PORTS = tuple(name for name, field in Settings.model_fields.items() if name.endswith("_port") and field.default)
"""Every setting that is one, and is on by default."""


def free_stack_ports() -> dict[str, int]:
    """All of them, of which nobody listens on any now."""
    return dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
