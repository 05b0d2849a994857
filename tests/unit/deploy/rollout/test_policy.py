"""The policy: defaults, an endpoint's own, and every problem of the file in words."""

import re
from pathlib import Path

import pytest

from deploy.errors import PolicyInvalid
from deploy.rollout.policy import Rate, read_policy
from monitoring.config import Objectives

ROOT = Path(__file__).parents[4]
FEW = "seconds: 1, requests: 5, give_up_seconds: 9"
STEPS = f"[{{weight: 10, {FEW}}}, {{weight: 100, {FEW}}}]"


def problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "rollout.yaml"
    path.write_text(text)
    with pytest.raises(PolicyInvalid) as refused:
        read_policy(path, "flights")
    return refused.value.problems


def test_without_a_file_there_are_four_steps_and_the_objectives_say_what_is_slow() -> None:
    policy = read_policy(None, "flights", Objectives(fast=0.98, fast_seconds=0.5))
    assert [step.weight for step in policy.steps] == [5, 25, 50, 100]
    assert (policy.slow.seconds, policy.slow.p0) == (0.5, 0.02)
    assert policy.slow.p1 == pytest.approx(0.1 / 1.08)  # five times the odds
    assert (policy.on_prediction_change, policy.on_disagreement) == ("hold", "hold")


def test_an_endpoint_differs_in_what_it_says_and_in_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text(
        f"defaults: {{errors: {{p0: 0.02}}, steps: {STEPS}}}\n"
        "endpoints:\n  flights: {errors: {margin: 0.03}, on_prediction_change: roll back}\n"
    )
    flights, other = read_policy(path, "flights"), read_policy(path, "digits")
    assert (flights.errors.p0, flights.errors.p1, flights.errors.margin) == (0.02, 0.05, 0.03)
    assert (other.errors.p0, other.errors.margin) == (0.02, 0.01)
    assert (flights.on_prediction_change, other.on_prediction_change) == ("roll back", "hold")
    assert [step.weight for step in other.steps] == [10, 100]


def test_the_documented_example_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "deploy/rollout/README.md").read_text(), re.DOTALL)
    path = tmp_path / "rollout.yaml"
    path.write_text(example)
    policy = read_policy(path, "flights")
    assert [step.weight for step in policy.steps] == [0, 10, 100]
    assert (policy.on_prediction_change, policy.agreement.share, policy.errors) == ("roll back", 0.98, Rate())


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text("defaults:\nendpoints:\n  flights:\n")
    assert read_policy(path, "flights") == read_policy(None, "flights")


def test_every_problem_says_where_what_was_found_and_what_is_allowed(tmp_path: Path) -> None:
    found = problems(tmp_path, "defaults: {eror: 1, errors: {p0: 2}, slow: {seconds: 0.3}, on_disagreement: shrug}")
    assert len(found) == 4
    words = "\n".join(found)
    assert "defaults.eror is not known; allowed are agreement, confidence_z, errors" in words
    assert "defaults.errors.p0: Input should be less than 1; found 2" in words
    assert "defaults.slow.seconds: must be a bound of the latency histogram" in words
    assert "0.15, 0.25, 0.5" in words
    assert "defaults.on_disagreement: Input should be 'hold' or 'roll back'; found 'shrug'" in words


def test_another_endpoints_problem_is_said_too(tmp_path: Path) -> None:
    found = problems(tmp_path, "endpoints: {digits: {steps: [{weight: 100, secs: 1}]}}")
    assert "endpoints.digits.steps.0.secs is not known; allowed are give_up_seconds, mirror, requests" in "\n".join(
        found
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("default: {}", "default is not known; allowed are defaults, endpoints"),
        ("[1]", "must have the keys defaults and endpoints; found [1]"),
        ("endpoints: [flights]", "endpoints: must be keys and values; found ['flights']"),
        ("endpoints: {flights: 3}", "endpoints.flights: must be keys and values; found 3"),
        ("a: b: c", "not YAML: "),
        ("defaults: {errors: {p0: 0.1}}", "p1 must be above p0, which is 0.1; p1 is 0.05"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in problem for problem in problems(tmp_path, text))


def test_a_file_that_is_not_there_is_a_problem_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(PolicyInvalid, match="No such file"):
        read_policy(tmp_path / "none.yaml", "flights")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("50, 5, 100", "must rise"),
        ("5, 50", "to 100 at the last"),
        ("50, 100, 0", "must rise"),
        ("5, 5, 100", "must rise"),
        ("0, 100", "above 0 in a step that mirrors nothing"),
    ],
)
def test_weights_rise_to_all(tmp_path: Path, weights: str, words: str) -> None:
    steps = [f"{{weight: {weight}, seconds: 1, requests: 1, give_up_seconds: 5}}" for weight in weights.split(", ")]
    (found,) = problems(tmp_path, f"defaults: {{steps: [{', '.join(steps)}]}}")
    assert words in found
    assert f"found {weights}" in found


def test_a_step_may_mirror_and_take_no_traffic(tmp_path: Path) -> None:
    path = tmp_path / "rollout.yaml"
    shadow = f"{{weight: 0, mirror: 20, {FEW}}}"
    path.write_text(f"defaults: {{steps: [{shadow}, {STEPS[1:]}}}")
    assert [step.weight for step in read_policy(path, "flights").steps] == [0, 10, 100]


def test_a_step_must_have_time_left_to_decide(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "defaults: {steps: [{weight: 100, seconds: 60, requests: 1, give_up_seconds: 60}]}")
    assert "give_up_seconds must be more than seconds; found 60, 60" in found
