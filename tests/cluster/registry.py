"""An MLflow server that pods reach, with versions of the flights model: two that are good, and others that are not."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.node.torchserve import free_ports
from model_store.archive import pack, read_member, read_members
from model_store.faulty import KINDS, members_of_kind
from model_store.fitting import Plan
from model_store.golden import GOLDEN
from model_store.mlflow_environment import ENVIRONMENT
from model_store.package import package
from model_store.registering import register  # noqa: F401
from model_store.registry import RegisteredVersion, Registry
from model_store.signing import create_key
from model_store.training import train

MODEL = "flights"
UNREADY = "unready"
"""A kind of version that no node ever calls ready: its golden set is not what it answers."""
READY_WITHIN_SECONDS = 120.0
