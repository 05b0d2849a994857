"""The trainings by name. Each is a module with `train`; nothing heavy is imported before one is chosen."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from model_store.registry import RegisteredVersion

DEFAULT = "flights"
TRAININGS: Mapping[str, tuple[str, str]] = {
    "flights": ("model_store.lateness", "will a flight arrive more than 15 minutes late? (table, classifier)"),
    "delays": ("model_store.delays", "how many minutes late will a flight arrive? (table, linear regression)"),
    "digits": ("model_store.digits", "which digit is on a picture of 8 x 8 pixels? (image, convolutional network)"),
    "resnet": ("model_store.resnet", "the same on 224 x 224 pixels, in minutes: for measurements (image, ResNet-18)"),
    "sentences": ("model_store.sentences", "a vector for the meaning of a text (text, MiniLM-L6, nothing to learn)"),
    "topics": ("model_store.topics", "which part of programming is a sentence about? (text, classifier on MiniLM-L6)"),
    "weather": ("model_store.weather", "the temperature of the next 24 hours (sequence, recurrent network)"),
}
"""Name of the registered model: the module with `train(console, plan) -> Trained`, and what it learns."""


def train(
    name: str = DEFAULT,
    *,
    tracking_uri: str,
    model: str | None = None,
    plan: Any = None,
    console: Console | None = None,
) -> "RegisteredVersion":
    """Train one of TRAININGS and register it in the MLflow server, under its own name or as `model`.

    `plan` is the module's own `Plan`, None for its default.

    Raises DataMissing, or RegistryError for a registry that does not answer.
    """
    from model_store.registering import register
    from model_store.registry import Registry

    console = console or Console(quiet=True)
    registry = Registry(tracking_uri)  # first: nobody wants to hear after minutes of training that it does not answer
    trained = import_module(TRAININGS[name][0]).train(console, plan)
    return register(registry, model or name, trained, console)
