"""Rollouts in MLflow: a run for each of them, tags on the versions that it is about, and the alias of the champion.

Everything here may be said twice, and then stands there once. It imports mlflow and, unlike the registry, no torch.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from model_store.errors import RegistryError
from model_store.tracking import CHAMPION, check_reachable

EXPERIMENT = "shipway-rollouts"
ROLLOUT_TAG, STARTED_TAG = "shipway.rollout", "shipway.started"
"""What a run is found by. The time is needed too: a ledger that was begun anew begins its ids anew."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_. /-]")
"""What MLflow does not allow in the name of a metric."""
_MOST_METRICS = 500
_LONGEST_NOTE = 5000
"""What MLflow takes, at once and in a tag, with room to spare."""


@dataclass(frozen=True)
class Rollout:
    """What was known of a rollout when it began."""

    id: str
    model: str
    title: str
    started_at: float
    """A Unix time, in seconds."""
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class News:
    """What happened in a rollout at one moment."""

    number: int
    """Grows within the model. The same number again is the same news, and takes its place."""
    at: float
    """A Unix time, in seconds."""
    tags: Mapping[str, str]
    numbers: Mapping[str, float]
    note: str
    """The story up to here, in Markdown."""
    record: str
    """All of it, as JSON."""
    ended: Literal["FINISHED", "FAILED"] | None = None
    """How the run ends with it, in MLflow's words."""


class RolloutRuns:
    """One MLflow server. Every method raises RegistryError."""

    def __init__(self, tracking_uri: str) -> None:
        """Raises RegistryUnreachable for a server that does not answer."""
        check_reachable(tracking_uri)
        self._client = MlflowClient(tracking_uri, tracking_uri)

    def tell(self, rollout: Rollout, news: News) -> None:
        """Write the news into the run of the rollout, which is made if there is none."""
        with _in_words(f"the run of the rollout {rollout.id} of {rollout.model} cannot be written"):
            run_id = self._run(rollout)
            at = round(news.at * 1000)
            finite = {name: value for name, value in news.numbers.items() if math.isfinite(value)}
            # With the news' own time and number MLflow keeps a value once, however often it is logged.
            metrics = [Metric(_NOT_IN_A_NAME.sub("_", name), finite[name], at, news.number) for name in sorted(finite)]
            tags = [
                RunTag(name, value)
                for name, value in {**news.tags, MLFLOW_RUN_NOTE: news.note[-_LONGEST_NOTE:]}.items()
            ]
            params = [Param(name, value) for name, value in rollout.params.items()]
            self._client.log_batch(run_id, metrics[:_MOST_METRICS], params, tags)
            self._client.log_text(run_id, news.record, f"entries/{news.number:05}.json")
            if news.ended:
                self._client.set_terminated(run_id, news.ended, at)

    def tag_version(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Tag a version. One that is not registered there (packaged elsewhere, or deleted since) is passed over."""
        with _in_words(f"{model} version {version} cannot be tagged", unless_missing=True):
            for name, value in tags.items():
                self._client.set_model_version_tag(model, str(version), name, value)

    def make_champion(self, model: str, version: int) -> None:
        """Move the alias `champion` to a version; one that is not registered there is passed over."""
        with _in_words(f"the alias {CHAMPION} of {model} cannot be moved to version {version}", unless_missing=True):
            self._client.set_registered_model_alias(model, CHAMPION, str(version))

    def _run(self, rollout: Rollout) -> str:
        experiment = self._experiment()
        tags = {ROLLOUT_TAG: rollout.id, STARTED_TAG: str(round(rollout.started_at * 1000))}
        # Ids are of our own making, and hold no quote.
        wanted = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([experiment], wanted, max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags |= {"shipway.model": rollout.model}
        made = self._client.create_run(experiment, round(rollout.started_at * 1000), tags, rollout.title)
        return str(made.info.run_id)

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        try:
            return self._client.create_experiment(EXPERIMENT)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return self._experiment()  # somebody else was faster


@contextmanager
def _in_words(what: str, *, unless_missing: bool = False) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if not (unless_missing and error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)):
            raise RegistryError(f"{what}: {error}") from error
