"""What a rollout shows: one line a change where nobody looks on, JSON for programs, a table on a terminal."""

import json
from io import StringIO

import pytest
from rich.console import Console

from deploy.node.agreement import Disagreement
from deploy.rollout.display import disagreements, display, history
from deploy.rollout.record import Check, CheckState, Entry, State, Verdict
from tests.unit.deploy.rollout.bench import MODEL, ONE, POLICY, TWO


def entry(state: State, step: int | None = None, kind: str = "rollout") -> Entry:
    return Entry.model_validate(
        {
            "number": 3,
            "at": 1e9,
            "who": "me@here",
            "model": MODEL,
            "rollout": "flights-r1",
            "kind": kind,
            "state": state,
            "step": step,
            "champion": ONE,
            "candidate": TWO,
            "words": f"words of {state} [5%]",
        }
    )


def verdict(errors: CheckState) -> Verdict:
    checks = (
        Check(name="errors", state=errors, then="roll back", words="2 of 400 [0.5%]"),
        Check(name="agreement", state="not asked", then="hold", words="nothing is mirrored"),
    )
    return Verdict(outcome="wait", words="not enough requests", checks=checks, step=0, since=0.0, at=1e9)


CHANGES = (
    (entry("JUDGING", 0), None),
    (entry("JUDGING", 0), verdict("undecided")),
    (entry("JUDGING", 0), verdict("undecided")),
    (entry("JUDGING", 0), verdict("passed")),
    (entry("CANARY", 1), None),
)


def test_plain_output_has_one_line_for_each_change() -> None:
    output = StringIO()
    with display(Console(file=output, width=40), as_json=False) as tell:
        for each, found in CHANGES:
            tell(each, found, POLICY.steps)
    assert [line.split(maxsplit=1)[1] for line in output.getvalue().splitlines()] == [
        "JUDGING       words of JUDGING [5%]",
        "errors: passed, 2 of 400 [0.5%]",
        "CANARY        words of CANARY [5%]",
    ]


def test_json_output_has_one_object_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    with display(Console(), as_json=True) as tell:
        for each, found in CHANGES:
            tell(each, found, POLICY.steps)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [next(iter(line)) for line in lines] == ["entry", "verdict", "verdict", "entry"]
    assert Entry.model_validate(lines[0]["entry"]) == CHANGES[0][0]
    assert Verdict.model_validate(lines[2]["verdict"]) == verdict("passed")


def test_a_terminal_shows_step_traffic_checks_and_the_time_left() -> None:
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    with display(console, as_json=False) as tell:
        for each, found in CHANGES:
            tell(each, found, POLICY.steps)
    shown = output.getvalue()
    assert "flights  1 → 2  JUDGING  step 1 of 3  5% of traffic  0 s at least, 0 s at most" in shown
    assert "errors     passed     2 of 400 [0.5%]" in shown
    assert "nothing is mirrored" in shown
    assert "step 2 of 3  50% of traffic" in shown


def test_disagreements_say_who_told_the_user_what() -> None:
    one = Disagreement(
        prediction_id="1795000000.250000-0b6c9d1e-8f2a-4c3d",
        answered_by=1,
        copied_to=2,
        answered=("late",),
        copied=("on time",),
        rows=3,
        sure=0.97,
    )
    head, line = disagreements([one])
    assert head.startswith("Where the candidate disagrees")
    assert line == f"  {one.prediction_id}  version 1 late; version 2 on time (97% sure)"


def test_history_says_in_which_direction_traffic_moved() -> None:
    lines = history([entry("PROMOTED"), entry("ROLLED_BACK", kind="rollback"), entry("HELD", 0)])
    assert ["1 → 2" in lines[0], "2 → 1" in lines[1], "1 → 2" in lines[2]] == [True] * 3
    assert lines[2].endswith("HELD          words of HELD [5%] (me@here)")
