"""Where a rollout is carried out: on the node of this machine, or on the Helm release that the settings name."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from deploy.rollout.ledger import AnyLedger, Ledger, ledgers_in
from deploy.settings import Settings, read_settings

if TYPE_CHECKING:
    from deploy.rollout.endpoint import Endpoint
    from deploy.rollout.interrupts import Wish
    from deploy.rollout.record import Release
    from deploy.rollout.run import Tell


def release_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--release and --namespace, which are settings."""
    for setting, flag, words in (
        ("helm_namespace", "--namespace", "The namespace of the release (SHIPWAY_HELM_NAMESPACE)."),
        ("helm_release", "--release", "The Helm release, instead of this machine's node (SHIPWAY_HELM_RELEASE)."),
    ):
        option = click.option(flag, setting, help=words, expose_value=False, callback=_set, is_eager=True)
        command = option(command)
    return command


def _set(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.obj = read_settings(**{**context.obj.model_dump(), str(parameter.name): value})


def endpoint(
    settings: Settings,
    model: str,
    *,
    tell: "Tell" = lambda *_: None,
    wish: "Callable[[], Wish]" = lambda: "",
    take_over: Callable[[str], bool] = lambda _: False,
) -> "Endpoint":
    """The endpoint of `model`; `take_over` is asked where a helm was at work that nobody seems to watch."""
    if settings.helm_release is not None:
        from deploy.kubernetes import there

        return there.endpoint(settings, model, tell=tell, wish=wish, take_over=take_over)
    from deploy.rollout import here

    return here.endpoint(settings, model, tell=tell, wish=wish)


def release(settings: Settings, model: str, version: int | str) -> "Release":
    """The archive of a version, given by number or by an alias: this machine's, or the registry's for a release."""
    if settings.helm_release is not None:
        from deploy.kubernetes import there

        return there.release(settings, model, version)
    from deploy.rollout import here

    return here.release(settings, model, version)


def ledger(settings: Settings, model: str) -> AnyLedger:
    """The ledger of `model`."""
    if settings.helm_release is not None:
        from deploy.kubernetes import there

        return there.place(settings, model).ledger
    return Ledger(settings.rollouts_dir, model)


def ledgers(settings: Settings) -> list[AnyLedger]:
    """Those of this machine, or the one of the release."""
    if settings.helm_release is not None:
        from deploy.kubernetes import there

        return [there.place(settings).ledger]
    return list(ledgers_in(settings.rollouts_dir))


def bring(settings: Settings, model: str, *releases: "Release") -> None:
    """Archives of a release's versions to this machine, where they are compared. Raises RegistryError."""
    if settings.helm_release is not None:
        from deploy.kubernetes import there

        there.Archives(settings, model).fetch(*releases)
