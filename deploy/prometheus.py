"""A client of Prometheus' HTTP API. Every answer keeps the query and the time or window that it is the answer to."""

import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import PrometheusUnreachable, QueryRefused
from monitoring.config import SECONDS, seconds

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Instant:
    """The answer to an instant query at one Unix time; no samples where there was nothing to compute it from."""

    query: str
    at: float
    samples: tuple[Sample, ...]

    def by(self, *labels: str) -> dict[tuple[str, ...], float]:
        """Values by those labels; a label that a sample lacks is empty."""
        return {tuple(one.labels.get(label, "") for label in labels): one.value for one in self.samples}


@dataclass(frozen=True)
class Series:
    labels: Mapping[str, str]
    values: Array
    """At each of the range's times, [times]; NaN where there is none."""


@dataclass(frozen=True, eq=False)
class Scraped:
    """One series as it was scraped."""

    labels: Mapping[str, str]
    times: Array
    """Unix times in order, [samples]."""
    values: Array
    """[samples]."""


@dataclass(frozen=True, eq=False)
class Range:
    """The answer to a range query."""

    query: str
    times: Array
    """Unix times, evenly spaced, the last one the end, [times]."""
    series: tuple[Series, ...]

    def by(self, *labels: str) -> dict[tuple[str, ...], Array]:
        """Values [times] by those labels; a label that a series lacks is empty."""
        return {tuple(one.labels.get(label, "") for label in labels): one.values for one in self.series}


class Prometheus:
    """One Prometheus server, or whatever speaks its query API."""

    def __init__(self, url: str, timeout_seconds: float = 30) -> None:
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds

    def instant(self, query: str, at: float) -> Instant:
        """Evaluate `query`, which gives a vector, at the Unix time `at`; PrometheusUnreachable or QueryRefused."""
        result = self._ask("query", query, time=at)
        return Instant(query, at, tuple(Sample(one["metric"], float(one["value"][1])) for one in result))

    def scraped(self, query: str, at: float) -> tuple[Scraped, ...]:
        """The samples themselves of `metric{...}[window]` up to `at`; PrometheusUnreachable or QueryRefused."""
        found = []
        for one in self._ask("query", query, time=at):
            samples = np.array(one["values"], dtype=np.float64)
            found.append(Scraped(one["metric"], samples[:, 0], samples[:, 1]))
        return tuple(found)

    def range(self, query: str, end: float, step_seconds: float, steps: int) -> Range:
        """Evaluate `query` at `steps` times up to `end`; PrometheusUnreachable or QueryRefused."""
        # Whole milliseconds, Prometheus' own resolution, or its times would not be exactly ours.
        step, last = round(step_seconds * 1000), round(end * 1000)
        times = last - step * np.arange(steps - 1, -1, -1, dtype=np.int64)
        found = self._ask("query_range", query, start=times[0] / 1000, end=times[-1] / 1000, step=step / 1000)
        series = []
        for one in found:
            values = np.full(steps, np.nan)
            places = [round((float(time) * 1000 - float(times[0])) / step) for time, _ in one["values"]]
            values[places] = [float(value) for _, value in one["values"]]
            series.append(Series(one["metric"], values))
        return Range(query, times / 1000, tuple(series))

    def _ask(self, what: str, query: str, **parameters: float) -> list[Any]:
        # A form and not a URL, which a long query would make too long.
        form = urllib.parse.urlencode({"query": query, **{name: f"{value:.3f}" for name, value in parameters.items()}})
        request = urllib.request.Request(f"{self.url}/api/v1/{what}", data=form.encode())  # noqa: S310 - see Settings
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_seconds) as answer:  # noqa: S310
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(query, error.code, error.read()) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise PrometheusUnreachable(self.url, str(reason) or type(error).__name__) from error
        try:
            result: list[Any] = json.loads(body)["data"]["result"]
        except (KeyError, TypeError, ValueError) as error:
            raise PrometheusUnreachable(self.url, "what answers there is no Prometheus") from error
        return result

    def _refusal(self, query: str, status: int, body: bytes) -> PrometheusUnreachable | QueryRefused:
        try:
            return QueryRefused(self.url, query, str(json.loads(body)["error"]))
        except (KeyError, TypeError, ValueError):
            return PrometheusUnreachable(self.url, f"HTTP status {status}, and not in Prometheus' words")


def selector(metric: str, *matchers: str, **labels: str) -> str:
    """`metric{label="value"}` with the labels' values quoted, and matchers as they are."""
    # Strings of PromQL are those of Go, and what JSON escapes is escaped alike there.
    equal = [f"{name}={json.dumps(value)}" for name, value in labels.items()]
    return f"{metric}{{{','.join([*equal, *matchers])}}}"


def duration_seconds(text: str) -> int:
    """Seconds of a duration like 90s, 10m, 6h or 1d; ValueError if it is none."""
    if not re.fullmatch(r"[1-9][0-9]{0,6}[smhd]", text):
        raise ValueError(f"{text!r} is no duration; allowed are a number and s, m, h or d, like 10m or 6h")
    return seconds(text)


def duration_text(seconds: float) -> str:
    """The same duration in the largest unit that gives a whole number: 6h for 21600. PromQL reads it too."""
    whole = max(1, round(seconds))
    return next(f"{whole // size}{unit}" for unit, size in reversed(SECONDS.items()) if whole % size == 0)
