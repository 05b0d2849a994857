"""Evidence out of a real Prometheus: exact counts of two nodes, one restarted, series born within the canary."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import PrometheusUnreachable
from deploy.prometheus import Prometheus
from deploy.rollout.evidence import Evidence, read_evidence
from deploy.rollout.gate import judge
from deploy.rollout.judging import Reader, by_prometheus
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Release
from tests.unit.deploy.history import STEP_SECONDS, Array, History, Traffic, real_prometheus
from tests.unit.deploy.rollout.stories import entry

MINUTES, BEGAN, STEPPED = 40, 20, 30
"""Of the history, and the minutes when the canary and its second step began."""
MODEL, CHAMPION, CANDIDATE = "flights", 3, 4
MINUTE = np.arange(MINUTES + 1, dtype=np.float64)
CLASSES = {"late": 1000, "on time": 4000, "missing": 0}


@dataclass(frozen=True)
class Watched:
    prometheus: Prometheus
    end: float

    def evidence(self) -> Evidence:
        since, stepped = (self.end - STEP_SECONDS * (MINUTES - minute) for minute in (BEGAN, STEPPED))
        # As the rollout's own times are: not those of scrapes.
        return read_evidence(
            self.prometheus, MODEL, CHAMPION, CANDIDATE, since + 7, stepped + 7, self.end,
            {CANDIDATE: {("class", "prediction"): ()}},
        )  # fmt: skip


@pytest.fixture(scope="module")
def watched(short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]) -> Iterator[Watched]:
    end = time.time() // 60 * 60
    directory = short_directory()
    history(end).write(directory)
    with real_prometheus(directory, free_ports(1)[0]) as url:
        yield Watched(Prometheus(url), end)


def born(minute: int, values: Array) -> Array:
    """No sample before that minute."""
    return np.where(minute <= MINUTE, values, np.nan)


def restarted(minute: int, values: Array) -> Array:
    """Back at 0 from that minute on."""
    return np.where(minute > MINUTE, values, values - values[minute])


def history(end: float) -> History:
    found = History(end, MINUTES)
    steady = 1_000_000 + 90 * MINUTE
    traffic = [Traffic("class", "prediction", CLASSES, {"late": 0.2, "on time": 0.8})]
    for instance, rows in (("a", steady), ("b", restarted(35, steady))):
        one = {"model": MODEL, "version": str(CHAMPION), "instance": instance}
        found.add("shipway_edge_requests_total", rows, **one, code="200")
        for bound, share in (("0.1", 0.9), ("0.25", 1.0), ("+Inf", 1.0)):
            found.add("shipway_edge_request_seconds_bucket", np.floor(rows * share), **one, le=bound)
        found.add("shipway_version_ready", 1, **one)
        found.add("shipway_worker_restarts_total", 3, **one)
        found.add_traffic(MODEL, CHAMPION, rows, traffic, instance)
    one = {"model": MODEL, "version": str(CANDIDATE), "instance": "a"}
    # Born at 5 and at 2, after the canary began: that much was counted before the first scrape.
    found.add("shipway_edge_requests_total", born(21, 5 + 10 * (MINUTE - 21)), **one, code="200")
    found.add("shipway_edge_requests_total", born(33, 2 + 0 * MINUTE), **one, code="503")
    found.add("shipway_edge_requests_total", born(22, 4 + 0 * MINUTE), **one, code="422")
    found.add("shipway_edge_lost_requests_total", born(21, np.minimum(MINUTE - 21, 6)), **one)
    grpc = {**one, "protocol": "oip_grpc"}
    found.add("shipway_requests_total", born(21, 3 + 0 * MINUTE), **grpc, outcome="failed")
    found.add("shipway_requests_total", born(21, 1 + 0 * MINUTE), **grpc, outcome="expired")
    found.add("shipway_requests_total", born(21, 2 + 0 * MINUTE), **grpc, outcome="refused")
    found.add("shipway_requests_total", born(21, 99 + 0 * MINUTE), **one, protocol="oip_http", outcome="failed")
    for bound, most in (("0.1", 100.0), ("0.25", 150.0), ("+Inf", 200.0)):
        found.add("shipway_edge_request_seconds_bucket", born(21, np.minimum(10 * MINUTE - 210, most)), **one, le=bound)
    found.add("shipway_version_ready", born(19, MINUTE * 0 + 1), **one)
    found.add("shipway_worker_restarts_total", born(19, np.where(MINUTE < 30, 7, 9)), **one)
    found.add("shipway_worker_resident_bytes", born(19, 1e9 + 6e7 * MINUTE), **one)
    found.add("shipway_shadow_rows_total", born(19, 10 * (MINUTE - 19)), **one, outcome="agree")
    found.add("shipway_shadow_rows_total", born(19, 1 * (MINUTE - 19)), **one, outcome="disagree")
    found.add("shipway_edge_shadow_requests_total", born(19, 3 * (MINUTE - 19)), **one, code="200")
    found.add(
        "shipway_feedback_total", born(19, np.where(MINUTE < 25, 0, 8)), **one, predicted="late", actual="on time"
    )
    found.add("shipway_feedback_total", born(19, np.where(MINUTE < 25, 0, 9)), **one, predicted="late", actual="late")
    found.add_traffic(MODEL, CANDIDATE, born(19, 10 * (MINUTE - 19)), traffic, "a")
    found.add("shipway_edge_requests_total", 5 * MINUTE, model="other", version=str(CANDIDATE), code="500")
    return found


def test_counts_are_exact_over_nodes_restarts_and_births(watched: Watched) -> None:
    found = watched.evidence()
    # 20 minutes of 90 requests on one node; on the other what came between its last scrape and its restart is lost.
    assert found.champion.canary.answered == 20 * 90 + 19 * 90
    assert found.champion.step.answered == 10 * 90 + 9 * 90
    ours = found.candidate.canary
    assert (ours.answered, ours.lost, ours.refused) == (5 + 190 + 2 + 4, 6, 4 + 2)
    assert ours.failed == 2 + 3 + 1
    assert (ours.requests, ours.errors) == (207, 12)
    assert (found.candidate.step.answered, found.candidate.step.failed) == (100 + 2, 2)


def test_latencies_are_whole_buckets(watched: Watched) -> None:
    found = watched.evidence()
    assert found.candidate.canary.seconds == {0.1: 100, 0.25: 150, float("inf"): 190}
    assert (found.candidate.canary.slower(0.1), found.candidate.canary.timed) == (90, 190)
    assert found.champion.canary.slower(0.25) == 0
    assert found.latency_dispersion == 1.0


def test_restarts_memory_labels_copies_and_freshness(watched: Watched) -> None:
    found = watched.evidence()
    assert (found.candidate.restarts, found.champion.restarts) == (2, 0)
    ((times, resident),) = found.candidate.memory
    assert times[0] > found.canary_since
    assert np.diff(resident).tolist() == [6e7] * (len(times) - 1)
    assert (found.candidate.agreed, found.candidate.disagreed) == (200, 20)
    assert found.candidate.shadow.answered == 30
    assert (found.candidate.labelled, found.candidate.wrong) == (17, 8)
    assert found.candidate.seen == found.at


def test_predictions_are_those_of_both_on_the_same_window(watched: Watched) -> None:
    found = watched.evidence()
    for version, rows in ((found.champion, 3500), (found.candidate, 190)):
        (one,) = version.features
        shares = dict(zip(one.labels, one.live[-1] / one.live[-1].sum(), strict=True))
        assert shares == pytest.approx({"late": 0.2, "on time": 0.8, "missing": 0.0}, abs=0.02)
        assert one.live[-1].sum() == pytest.approx(rows, rel=0.1)
    assert found.candidate.edges == {("class", "prediction"): ()}
    assert found.champion.edges == {}


def test_every_number_has_its_query_and_the_gate_judges_it(watched: Watched) -> None:
    found = watched.evidence()
    query = found.queries["shipway_edge_requests_total"]
    assert query == 'shipway_edge_requests_total{model="flights",version=~"3|4"}[1493s]'
    assert watched.prometheus.scraped(query, found.at)
    assert "live of features, version 4" in found.queries
    verdict = judge(Policy(), 1, found, step_since=found.step_since, at=found.at, lost_readiness="")
    states = {check.name: check.state for check in verdict.checks}
    assert verdict.outcome == "roll back"
    # 5.8% of 207 are too few to condemn against the champion, and these restarts are the candidate's own.
    assert (states["slow answers"], states["restarts"], states["predictions"]) == ("failed", "failed", "passed")
    assert states["memory"] == "passed"  # 1 MB/s is what is allowed
    assert all(check.queries for check in verdict.checks if check.name not in ("readiness", "input drift"))


class Counting(Prometheus):
    """How often it was asked."""

    asked = 0

    def _ask(self, what: str, query: str, **parameters: float) -> list[Any]:
        self.asked += 1
        return super()._ask(what, query, **parameters)


def test_evidence_is_asked_for_again_only_after_a_scrape_or_in_another_step(watched: Watched) -> None:
    prometheus = Counting(watched.prometheus.url)
    reader = Reader(prometheus, Path("no archives"))
    champion, candidate = (Release(version=number, digest="") for number in (CHAMPION, CANDIDATE))
    stepped = watched.end - STEP_SECONDS * (MINUTES - STEPPED) + 7
    judging = entry("JUDGING", stepped, champion=champion, candidate=candidate)

    def asked(one: Entry, at: float) -> int:
        before = prometheus.asked
        found.append(reader.evidence(one, stepped, at))
        return prometheus.asked - before

    found: list[Evidence] = []
    assert asked(judging, watched.end) > 10
    assert asked(judging, watched.end + 1) == 1
    assert found[1] is found[0]
    assert asked(judging, watched.end - STEP_SECONDS) > 10  # which ends with another scrape
    assert asked(judging.model_copy(update={"number": 2}), watched.end - STEP_SECONDS) > 10
    assert [one.at for one in found] == [watched.end, watched.end, *[watched.end - STEP_SECONDS] * 2]


def test_why_nothing_is_known_is_in_the_verdict(free_ports: Callable[[int], list[int]], tmp_path: Path) -> None:
    judge = by_prometheus(f"http://127.0.0.1:{free_ports(1)[0]}", Policy(), tmp_path)
    found = judge(entry("JUDGING", 1000.0, step=0), canary_since=1000.0, at=1001.0, lost_readiness="")
    (check,) = [check for check in found.checks if check.name == "requests"]
    assert check.state == "no data"
    for words in (check.words, found.words):
        assert re.search(
            r"no Prometheus answers at http://127.*refused.*shipway up; or name another in SHIPWAY_", words
        )


def test_a_version_that_nobody_scrapes_was_never_seen(watched: Watched) -> None:
    found = read_evidence(watched.prometheus, MODEL, CHAMPION, 99, watched.end - 60, watched.end - 60, watched.end)
    assert (found.candidate.canary.requests, found.candidate.seen, found.candidate.features) == (0, -np.inf, ())


def test_no_prometheus_is_an_error_of_its_own(free_ports: Callable[[int], list[int]]) -> None:
    with pytest.raises(PrometheusUnreachable):
        read_evidence(Prometheus(f"http://127.0.0.1:{free_ports(1)[0]}"), MODEL, 1, 2, 0, 0, 60)
