"""What a drill makes of what its users saw."""

import json
from dataclasses import replace

import pytest

from deploy.drill.exercises import EXPECTED, Harm, Outcome, Seen, expected, harm
from deploy.drill.load import rows_of
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Release, State
from model_store.faulty import KINDS

CHAMPION, CANDIDATE = Release(version=1, digest="a"), Release(version=4, digest="b")
POLICY = Policy()


def entry(state: State, at: float, step: int | None = None) -> Entry:
    return Entry(
        number=1, at=at, who="w", model="m-drill", rollout="r", kind="rollout", state=state, step=step,
        champion=CHAMPION, candidate=CANDIDATE, words="w",
    )  # fmt: skip


ENTRIES = [entry("PENDING", 90), entry("CANARY", 100, 0), entry("CANARY", 200, 1), entry("ROLLING_BACK", 300)]
OUTCOME = Outcome("erring", "ROLLED_BACK", entry("ROLLED_BACK", 301), None, Harm(1000, 40, 60, 20, 0), 211)


def seen(version: int | None, *, at: float, status: int = 200, count: int = 1) -> list[Seen]:
    return [Seen(at, 0.01, version, status)] * count


def test_users_of_a_canary_may_get_as_much_of_it_as_its_weights_say() -> None:
    users = [
        *seen(4, at=95, count=500),  # before it began
        *seen(1, at=150, count=950),
        *seen(4, at=150, count=40),
        *seen(4, at=150, status=500, count=10),
        *seen(1, at=199.5, count=100),  # the next step's routes may be in force already
    ]
    found = harm(users, ENTRIES, POLICY)
    # 1000 at 5% and 100 at 25%: 75, and four deviations of sqrt(47.5 + 18.75).
    assert found == Harm(requests=1100, candidate=50, allowed=108, failed=10, failed_elsewhere=0)


@pytest.mark.parametrize("elsewhere", [1, None])
def test_a_failure_that_is_not_the_candidates_is_a_problem(elsewhere: int | None) -> None:
    found = harm(seen(elsewhere, at=150, status=503), ENTRIES, POLICY)
    assert found.failed_elsewhere == 1
    assert replace(OUTCOME, harm=found).problems == ["1 requests failed that were not the candidate's"]


def test_nothing_is_counted_of_a_rollout_that_never_got_traffic() -> None:
    found = harm(seen(1, at=150, count=5), [entry("PENDING", 90), entry("ROLLED_BACK", 99)], POLICY)
    assert found == Harm(0, 0, 0, 0, 0)
    assert replace(OUTCOME, harm=found).problems == ["no user asked while it was on, so nothing was shown"]


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (OUTCOME, []),
        (replace(OUTCOME, entry=entry("PROMOTED", 301)), ["it is PROMOTED and should be ROLLED_BACK: w"]),
        (
            replace(OUTCOME, harm=Harm(1000, 61, 60, 0, 0)),
            ["it answered 61 of 1000 requests; at most 60 were its share"],
        ),
    ],
)
def test_problems_in_words(outcome: Outcome, problem: list[str]) -> None:
    assert outcome.problems == problem


def test_every_kind_has_a_verdict_and_a_policy_may_take_back_what_is_held_otherwise() -> None:
    assert EXPECTED.keys() == KINDS.keys()
    assert expected("changed", POLICY) == "HELD"
    assert expected("changed", POLICY.model_copy(update={"on_prediction_change": "roll back"})) == "ROLLED_BACK"
    assert expected("good", POLICY) == "PROMOTED"


@pytest.mark.parametrize(
    ("classes", "outputs", "labels"),
    [
        (("on time", "late"), [0.2, 0.7], ["on time", "late"]),
        (("a", "b", "c"), [0.2, 0.7, 0.1, 0.5, 0.2, 0.3], ["b", "a"]),
        ((), [0.2, 0.7], [None, None]),
    ],
)
def test_users_ask_the_golden_rows_one_by_one(
    classes: tuple[str, ...], outputs: list[float], labels: list[str | None]
) -> None:
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]},
        {"name": "c", "datatype": "BYTES", "shape": [2], "data": ["p", "q"]},
    ]
    answer = {"name": "y", "datatype": "FP32", "shape": [2, len(outputs) // 2], "data": outputs}
    rows = rows_of(json.dumps({"request": {"inputs": inputs}, "response": {"outputs": [answer]}}).encode(), classes)
    assert [row.label for row in rows] == labels
    assert json.loads(rows[1].body) == {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [4, 5, 6]},
            {"name": "c", "datatype": "BYTES", "shape": [1], "data": ["q"]},
        ]
    }
