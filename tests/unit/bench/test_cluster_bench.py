"""What `make cluster-bench` says of a load and of events that are made up here."""

from pathlib import Path

from tests.bench.cluster.__main__ import findings
from tests.bench.cluster.events import BARE
from tests.bench.cluster.ground import BEFORE_SECONDS, Event, State
from tests.bench.cluster.table import rows
from tests.cluster.registry import Version
from tests.cluster.steady import MEANT, Asked, Steady

ONE, TWO = (Version(number, f"sha256:{number:064x}", Path(f"{number}.mar")) for number in (1, 2))


def ended(*asked: Asked) -> Steady:
    load = Steady("127.0.0.1", 9, "flights", ())
    load._asked.extend(asked)
    load._ended = True
    return load


def test_a_row_has_what_was_asked_during_its_event_and_the_latency_before_it() -> None:
    begin, end = 100.0, 110.0
    load = ended(
        Asked("gRPC", begin - BEFORE_SECONDS - 1, 9.0, 1, "too early to count"),
        Asked("gRPC", begin - 1, 0.004, 1, ""),
        Asked("HTTP/2", begin, 0.2, 2, ""),
        Asked("HTTP/1.1", end - 1, 0.2, None, "reset"),
        Asked("HTTP/1.1", end, 9.0, None, "too late to count"),
    )
    (row,) = rows([Event("pod deleted", begin, end)], load)
    assert (row.seconds, row.requests, row.failures, row.faults) == (10.0, 2, 1, ("HTTP/1.1: reset",))
    assert (row.p99_ms_before, row.p99_ms_during) == (4.0, 200.0)


def test_what_was_skipped_has_no_latency() -> None:
    (row,) = rows([Event("kubelet restarted", 5.0, 5.0, skipped="no kit")], ended())
    assert (row.requests, row.p99_ms_before, row.p99_ms_during, row.skipped) == (0, None, None, "no kit")


def test_a_canary_may_answer_only_with_a_weight() -> None:
    assert State(ONE, TWO).meant == (1,)
    assert State(ONE, TWO).weights == {1: 100}
    assert State(ONE, TWO, 25).meant == (1, 2)
    assert State(ONE, TWO, 25).weights == {1: 75, 2: 25}


def test_helm_is_told_all_of_a_state() -> None:
    assert [option for option in State(ONE).options if option != "--set"] == [
        "model.version=1",
        f"model.sha256={ONE.digest}",
        "canary.enabled=false",
        "canary.weight=0",
    ]


def test_a_failed_request_an_event_gone_wrong_and_a_wrong_share_each_miss_a_bar() -> None:
    load = ended(Asked("gRPC", 1.0, 0.1, 2, f"answered by version 2; {MEANT}: [1]"), Asked("gRPC", 2.0, 0.1, 1, ""))
    happened = rows([Event("pod deleted", 1.0, 2.0), Event(f"{BARE}at 0%", 1.0, 2.0, "helm says no")], load)
    found = {one.name.strip(): one for one in findings(happened, load, {"HTTP": 6.5}, requests=2)}
    assert {name for name, one in found.items() if one.held} == {"requests of the steady load"}
    assert {name for name, one in found.items() if one.held is False} == {
        "failed ones",
        "of these by a version that was not meant to serve",
        "events that ended as they should, of 2",
        "of these, bare rollbacks from a canary, of 1",
        "off by",
    }
