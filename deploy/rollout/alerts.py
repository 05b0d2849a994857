"""Alertmanager's alerts as entries of the ledgers. They are read with the rollouts, and change none of them.

The format is version 4 of Alertmanager's webhook: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

import logging
import socket
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.errors import AlertsRefused
from deploy.rollout.ledger import Ledger, models, unfinished
from deploy.rollout.record import Entry

logger = logging.getLogger(__name__)

_Text = Annotated[str, Field(max_length=4096)]
_WORDS = 1000


class _Alert(BaseModel):
    model_config = ConfigDict(frozen=True)

    status: Literal["firing", "resolved"]
    labels: dict[_Text, _Text]
    annotations: dict[_Text, _Text] = {}
    starts_at: _Text = Field(alias="startsAt")
    fingerprint: _Text
    """Of the labels."""

    def detail(self) -> dict[str, str]:
        """What the ledger keeps of it; another alert has another one."""
        labels: dict[str, str] = {
            name: self.labels[name] for name in ("alertname", "severity", "version") if name in self.labels
        }
        return {**labels, "status": self.status, "starts_at": self.starts_at, "fingerprint": self.fingerprint}

    def words(self) -> str:
        said = " ".join(self.annotations[name] for name in ("summary", "description") if self.annotations.get(name))
        ended = "no longer: " if self.status == "resolved" else ""
        return f"{ended}{self.labels.get('alertname', 'an alert')}: {said}"[:_WORDS]


class _Message(BaseModel):
    alerts: Annotated[tuple[_Alert, ...], Field(max_length=10_000)]


@dataclass(frozen=True)
class Noted:
    """What became of the alerts of one message."""

    written: int = 0
    repeated: int = 0
    """Alertmanager says again what still fires."""
    ignored: int = 0
    """Of no model, or of one that is neither in service nor has a ledger."""


def note(directory: Path, body: bytes, served: Container[str], at: float) -> Noted:
    """Write the alerts of a message into the ledgers of their models. `served`: models that may get a first ledger.

    Raises:
        AlertsRefused: the message is not Alertmanager's.
        LedgerUnusable: it has to be sent again.
    """
    try:
        alerts = _Message.model_validate_json(body).alerts
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc'])) or 'the body'}: {one['msg']}" for one in error.errors()]
        raise AlertsRefused(problems) from error
    of_model: dict[str, list[_Alert]] = defaultdict(list)
    for alert in alerts:
        of_model[alert.labels.get("model", "")].append(alert)
    noted = Noted()
    for model, found in of_model.items():
        # Whatever is neither does not become a file's name.
        known = model in served or model in models(directory)
        noted = _sum(noted, _written(Ledger(directory, model), found, at) if known else Noted(ignored=len(found)))
        if not known:
            names = ", ".join(sorted({alert.labels.get("alertname", "?") for alert in found}))
            logger.info("alerts of no model that is served: %s (model %r)", names, model)
    return noted


def _written(ledger: Ledger, alerts: list[_Alert], at: float) -> Noted:
    with ledger.writing() as writer:
        entries = writer.entries()
        on = unfinished(writer.newest())
        seen = [one.detail for one in entries if one.kind == "alert"]
        written = 0
        for alert in alerts:
            if alert.detail() in seen:
                continue
            entry = Entry(
                number=1,
                at=at,
                who=f"alertmanager@{socket.gethostname()}",
                model=ledger.model,
                rollout=on.rollout if on else "",
                kind="alert",
                state=None,
                champion=on.champion if on else None,
                candidate=None,
                words=alert.words(),
                detail=alert.detail(),
            )
            seen.append(writer.append(entry).detail)
            written += 1
    return Noted(written=written, repeated=len(alerts) - written)


def _sum(one: Noted, other: Noted) -> Noted:
    return Noted(one.written + other.written, one.repeated + other.repeated, one.ignored + other.ignored)
