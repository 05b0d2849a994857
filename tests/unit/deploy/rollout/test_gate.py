"""Verdicts: what fails takes back or holds, what is open waits and then holds, and nothing passes without data."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.rollout.evidence import Counted, Evidence, Version
from deploy.rollout.gate import judge
from deploy.rollout.policy import Policy
from deploy.rollout.record import Check, Outcome, Verdict
from tests.unit.deploy.rollout.seen import AT, FLAT, NONE, TIMES, counted, evidence, feature, version

POLICY = Policy()
FIRST, LAST = 0, 3
SILENT = "no Prometheus answers"
CHAMPION = version(1, counted(3000, failed=15))


def verdict(
    candidate: Version, *, champion: Version = CHAMPION, step: int = LAST, policy: Policy = POLICY, seconds: float = 100
) -> Verdict:
    return judge(policy, step, evidence(champion, candidate), step_since=AT - seconds, at=AT, lost_readiness="")


def candidate(requests: int = 1000, **bad: int) -> Version:
    return version(2, counted(requests, **bad))


def failed(found: Verdict) -> list[str]:
    return [check.name for check in found.checks if check.state == "failed"]


def check(found: Verdict, name: str) -> Check:
    (one,) = [check for check in found.checks if check.name == name]
    return one


def test_a_healthy_candidate_is_promoted() -> None:
    found = verdict(candidate(failed=5))
    assert (found.outcome, failed(found)) == ("promote", [])
    assert found.words == "4 of 4 steps passed: nothing speaks against the candidate"
    assert verdict(candidate(failed=5), step=FIRST).words.startswith("step 1 of 4 passed")


def test_a_verdict_holds_every_number_its_query_and_its_window() -> None:
    found = verdict(candidate(failed=5))
    errors = check(found, "errors, compared")
    assert errors.words.startswith("5 of the candidate's 1000 requests (0.50%) and 15 of the champion's 3000 (0.50%)")
    assert errors.numbers["bad"] == 5
    assert errors.queries == {"shipway_edge_requests_total": "shipway_edge_requests_total[1300s]"}
    assert (found.since, found.at, found.step) == (0, AT, LAST)
    assert Verdict.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"failed": 100}, "errors"),
        ({"lost": 100}, "errors"),
        ({"failed": 60}, "errors, compared"),
        ({"refused": 100}, "refused inputs"),
    ],
)
def test_errors_losses_and_refusals_above_the_champions_take_back(bad: dict[str, int], name: str) -> None:
    found = verdict(candidate(**bad))
    assert found.outcome == "roll back"
    assert name in failed(found)


def test_what_the_champion_suffers_too_is_no_fault_of_the_candidate() -> None:
    both = version(1, counted(3000, failed=300, refused=600))
    found = verdict(candidate(failed=100, refused=200), champion=both)
    assert failed(found) == []


def test_lost_requests_are_said() -> None:
    assert ", 100 of them lost (10.00%)" in check(verdict(candidate(lost=100)), "errors").words


def test_slow_answers_and_a_slower_distribution_take_back() -> None:
    found = verdict(version(2, counted(1000, upto_10=0.8, upto_500=0.2)))
    assert found.outcome == "roll back"
    assert {"slow answers", "slow answers, compared", "latency"} <= set(failed(found))
    # No slow answer among them, but all take five times as long.
    found = verdict(version(2, counted(200, upto_100=1.0)), step=FIRST)
    assert (found.outcome, failed(found)) == ("roll back", ["latency"])
    words = check(found, "latency").words
    assert "100.0% of the candidate's 200 answers took longer than 0.025 s and 0.0% of the champion's" in words


def test_a_bound_further_is_not_slower_and_bursts_need_more_requests() -> None:
    assert failed(verdict(version(2, counted(1000, upto_25=1.0)))) == []
    slower = version(2, counted(100, upto_10=0.7, upto_100=0.3))
    for dispersion, expected in ((1.0, "failed"), (20.0, "undecided")):
        found = judge(
            POLICY, FIRST, evidence(CHAMPION, slower, dispersion=dispersion), step_since=0, at=AT, lost_readiness=""
        )
        assert check(found, "latency").state == expected


def test_restarts_beyond_the_champions_take_back() -> None:
    assert verdict(replace(candidate(), restarts=1)).outcome == "roll back"
    assert verdict(replace(candidate(), restarts=1), champion=replace(CHAMPION, restarts=1)).outcome == "promote"
    assert verdict(replace(candidate(), restarts=1), policy=Policy(restarts=1)).outcome == "promote"


def test_a_leak_takes_back_and_warm_up_or_what_the_champion_does_too_do_not() -> None:
    leak = ((TIMES, 1e9 + 5e6 * TIMES),)
    warm = ((TIMES, 1e9 + 5e8 * (1 - np.exp(-TIMES / 60))),)
    found = verdict(replace(candidate(), memory=leak))
    assert (found.outcome, failed(found)) == ("roll back", ["memory"])
    assert verdict(replace(candidate(), memory=(*FLAT, *leak))).outcome == "roll back"
    assert verdict(replace(candidate(), memory=warm)).outcome == "promote"
    assert verdict(replace(candidate(), memory=leak), champion=replace(CHAMPION, memory=leak)).outcome == "promote"


def test_a_leak_is_found_90_seconds_after_the_canary_began() -> None:
    young = replace(candidate(100), memory=((TIMES, 1e9 + 5e6 * (TIMES - AT + 95)),))
    for seconds, expected in ((95, "failed"), (80, "undecided")):
        seen = replace(evidence(CHAMPION, young), canary_since=AT - seconds, step_since=AT - seconds)
        found = judge(POLICY, FIRST, seen, step_since=AT - seconds, at=AT, lost_readiness="")
        assert check(found, "memory").state == expected


def test_lost_readiness_takes_back_even_when_prometheus_is_silent() -> None:
    found = judge(POLICY, FIRST, SILENT, step_since=AT, at=AT, lost_readiness="the worker ended")
    assert (found.outcome, found.words) == ("roll back", "the candidate is not ready: the worker ended")


def test_worse_quality_takes_back_and_few_labels_are_not_asked() -> None:
    good = replace(CHAMPION, confusion={("a", "a"): 900, ("b", "a"): 100})
    bad = {("a", "a"): 60, ("b", "a"): 40}
    found = verdict(replace(candidate(), confusion=bad), champion=good)
    assert (found.outcome, failed(found)) == ("roll back", ["quality"])
    few = verdict(replace(candidate(), confusion={("b", "a"): 40}), champion=good)
    assert (few.outcome, check(few, "quality").state) == ("promote", "not asked")
    same = verdict(replace(candidate(), confusion={("a", "a"): 54, ("b", "a"): 6}), champion=good)
    assert check(same, "quality").state == "passed"


CLASSES = feature("class", "prediction", {"early": 1500, "late": 1500, "missing": 0})
CHANGED = feature("class", "prediction", {"early": 100, "late": 400, "missing": 0})


@pytest.mark.parametrize(("reaction", "outcome"), [("hold", "hold"), ("roll back", "roll back")])
def test_changed_predictions_hold_or_take_back_as_the_endpoint_says(reaction: Outcome, outcome: Outcome) -> None:
    policy = Policy.model_validate({"on_prediction_change": reaction})
    champion = replace(CHAMPION, features=(CLASSES,))
    found = verdict(replace(candidate(), features=(CHANGED,)), champion=champion, policy=policy)
    assert (found.outcome, failed(found)) == (outcome, ["predictions"])
    assert found.words.startswith(
        "the predictions changed: class: late went from 50% to 80%; early from 50% to 20%; PSI"
    )
    same = feature("class", "prediction", {"early": 240, "late": 260, "missing": 0})
    assert verdict(replace(candidate(), features=(same,)), champion=champion).outcome == "promote"


def test_bursts_and_few_rows_condemn_no_predictions() -> None:
    champion = replace(CHAMPION, features=(CLASSES,))
    bursts = replace(CHANGED, dispersion=10.0)
    assert failed(verdict(replace(candidate(), features=(bursts,)), champion=champion)) == []
    few = feature("class", "prediction", {"early": 0, "late": 40, "missing": 0})
    found = verdict(replace(candidate(), features=(few,)), champion=champion)
    assert (found.outcome, check(found, "predictions").state) == ("wait", "undecided")


EDGES = {("y", "output"): tuple(np.linspace(1.0, 9.0, 9).tolist())}
SHIFTED = {("y", "output"): tuple(np.linspace(3.5, 11.5, 9).tolist())}
"""The edges of a profile whose values are 2.5 higher, as they are for a version that predicts 2.5 more."""
UNIFORM = feature("y", "output", [*[100.0] * 10, 0.0])


def test_numbers_in_bins_of_their_own_are_compared_by_the_archives_edges() -> None:
    champion = replace(CHAMPION, features=(UNIFORM,), edges=EDGES)
    found = verdict(replace(candidate(), features=(UNIFORM,), edges=SHIFTED), champion=champion)
    assert (found.outcome, failed(found)) == ("hold", ["predictions"])
    assert found.words == "the predictions changed: 20.0% of the rows of y moved across a value; 10% are allowed"
    same = feature("y", "output", [350.0, 100, 100, 100, 100, 100, 100, 50, 0, 0, 0])
    assert verdict(replace(candidate(), features=(same,), edges=SHIFTED), champion=champion).outcome == "promote"


def test_numbers_whose_edges_nobody_knows_are_no_data_and_hold_in_the_end() -> None:
    champion = replace(CHAMPION, features=(UNIFORM,), edges=EDGES)
    unknown = replace(candidate(), features=(UNIFORM,))
    assert verdict(unknown, champion=champion).outcome == "wait"
    found = verdict(unknown, champion=champion, seconds=5000)
    assert found.outcome == "hold"
    assert "nothing that both versions predict can be compared" in found.words


def test_predictions_of_one_version_alone_are_no_data() -> None:
    found = verdict(candidate(), champion=replace(CHAMPION, features=(CLASSES,)))
    assert (found.outcome, check(found, "predictions").state) == ("wait", "no data")
    assert "the candidate has counted no predictions" in found.words


def test_disagreement_of_mirrored_rows_holds() -> None:
    found = verdict(replace(candidate(), agreed=800, disagreed=200))
    assert (found.outcome, failed(found)) == ("hold", ["agreement"])
    assert verdict(replace(candidate(), agreed=990, disagreed=10)).outcome == "promote"
    assert check(verdict(candidate()), "agreement").state == "not asked"


def test_drifted_inputs_hold_and_never_more() -> None:
    reference = np.array([*[500.0] * 10, 0.0])
    drifted = feature("delay", "number", [*[0.0] * 9, 1000.0, 0.0], reference=reference)
    usual = feature("delay", "number", [*[100.0] * 10, 0.0], reference=reference)
    policy = Policy(on_prediction_change="roll back", on_disagreement="roll back")
    champion = replace(CHAMPION, features=(usual,))
    found = verdict(replace(candidate(), features=(drifted,)), champion=champion, policy=policy)
    assert (found.outcome, failed(found)) == ("hold", ["input drift"])
    assert "delay" in found.words
    assert check(verdict(replace(candidate(), features=(usual,)), champion=champion), "input drift").state == "passed"
    nothing = Policy(on_input_drift="nothing")
    assert failed(verdict(replace(candidate(), features=(drifted,)), champion=champion, policy=nothing)) == []


def test_what_takes_back_is_said_before_what_holds() -> None:
    found = verdict(replace(candidate(failed=100), agreed=0, disagreed=500))
    assert found.outcome == "roll back"
    assert "mirrored" not in found.words


@pytest.mark.parametrize(("seconds", "requests"), [(10, 100), (100, 99)])
def test_a_step_has_a_shortest_time_and_fewest_requests(seconds: float, requests: int) -> None:
    assert verdict(candidate(requests), step=FIRST, seconds=seconds).outcome == "wait"
    assert verdict(candidate(100), step=FIRST, seconds=100).outcome == "promote"


def test_an_undecided_test_waits_and_then_holds() -> None:
    between = candidate(100, failed=2)
    found = verdict(between, step=FIRST)
    assert (found.outcome, check(found, "errors").state) == ("wait", "undecided")
    found = verdict(between, step=FIRST, seconds=1800)
    assert found.outcome == "hold"
    assert found.words.startswith("undecided after 1800 s, and 1800 s are allowed: errors: 2 of 100 requests")


def test_promotion_wants_it_shown_that_the_candidate_is_no_worse() -> None:
    worse = replace(candidate(1000, failed=15), step=counted(500))  # whose errors came in the steps before
    assert verdict(worse, step=2).outcome == "promote"
    found = verdict(worse, step=LAST)
    assert (found.outcome, check(found, "errors, compared").state) == ("wait", "undecided")


def test_copies_stand_for_requests_in_a_step_that_only_mirrors() -> None:
    shadow = {"weight": 0, "mirror": 20, "seconds": 10, "requests": 50, "give_up_seconds": 99}
    policy = Policy.model_validate({"steps": [shadow, {**shadow, "weight": 100}]})
    idle = replace(version(2, NONE), agreed=500)
    assert verdict(replace(idle, shadow=counted(100)), step=0, policy=policy, seconds=50).outcome == "promote"
    assert verdict(replace(idle, shadow=counted(20)), step=0, policy=policy, seconds=50).outcome == "wait"
    broken = verdict(replace(idle, shadow=counted(100, failed=50)), step=0, policy=policy, seconds=50)
    assert broken.outcome == "roll back"


@pytest.mark.parametrize("seconds", [0, 100, 1799])
def test_without_an_answer_of_prometheus_it_waits_and_then_holds(seconds: float) -> None:
    def judged(seconds: float) -> Verdict:
        return judge(POLICY, LAST, SILENT, step_since=AT - seconds, at=AT, lost_readiness="")

    assert judged(seconds).outcome == "wait"
    assert judged(1800).outcome == "hold"
    assert f"nothing is known of the candidate: {SILENT}" in judged(1800).words
    assert check(judged(1800), "requests").state == "no data"


def test_what_was_not_scraped_lately_is_no_data() -> None:
    found = verdict(replace(candidate(), seen=AT - 61))
    assert (found.outcome, check(found, "requests").state) == ("wait", "no data")
    assert "was scraped for 61 s" in found.words
    assert "at all" in verdict(replace(candidate(), seen=-np.inf)).words


RANK = ("roll back", "hold", "wait", "promote")
requests = st.integers(1, 5000).flatmap(lambda of: st.tuples(st.just(of), st.integers(0, of), st.integers(0, of)))


@settings(deadline=None, max_examples=60)
@given(requests, requests, st.integers(1, 200), st.sampled_from([FIRST, LAST]), st.sampled_from(["failed", "refused"]))
def test_more_errors_never_make_the_verdict_better(
    ours: tuple[int, int, int], theirs: tuple[int, int, int], more: int, step: int, kind: str
) -> None:
    def ranked(seen: Counted) -> int:
        return RANK.index(verdict(version(2, seen), champion=champion, step=step).outcome)

    champion = version(1, counted(theirs[0], failed=theirs[1], refused=theirs[2]))
    before = counted(ours[0], failed=ours[1], refused=ours[2])
    after = replace(before, **{kind: min(getattr(before, kind) + more, before.answered)})
    assert ranked(after) <= ranked(before)


@settings(deadline=None, max_examples=60)
@given(requests, st.sampled_from([0, 1, 2, 3]), st.floats(0, 1e6))
def test_no_data_never_promotes(theirs: tuple[int, int, int], step: int, seconds: float) -> None:
    champion = version(1, counted(theirs[0], failed=theirs[1], refused=theirs[2]))
    blind: list[Evidence | str] = [
        SILENT,
        evidence(champion, version(2, NONE)),
        evidence(champion, replace(candidate(), seen=AT - 3600)),
    ]
    for seen in blind:
        found = judge(POLICY, step, seen, step_since=AT - seconds, at=AT, lost_readiness="")
        assert found.outcome in ("wait", "hold")
