"""Ports for a stack beside others."""

from deploy.node.torchserve import free_ports
from deploy.settings import Settings

PORTS = tuple(name for name in Settings.model_fields if name.endswith("_port"))
"""Every setting that is one."""


def free_stack_ports() -> dict[str, int]:
    """All of them, of which nobody listens on any now."""
    return dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
