"""What the launcher says of models: words for what is not served, however it was named."""

import pytest

from deploy.node.control import _select, unexplained, unknown
from deploy.node.desired import Actual, ActualEndpoint, ActualExplainer, State
from deploy.node.reconcile import Loaded

VERSIONS = {2: Loaded("flights", 2, ""), 1: Loaded("flights", 1, "")}


class View:
    """A node that serves flights, version 2 before version 1."""

    def actual(self) -> Actual:
        return Actual(pid=1, ready=True)

    def versions(self, model: str) -> dict[int, Loaded]:
        return VERSIONS if model == "flights" else {}

    def models(self) -> dict[str, list[int]]:
        return {"flights": list(VERSIONS)}


@pytest.mark.parametrize(
    ("model", "version", "found"), [("flights", "", 2), ("flights", "1", 1), ("flights", "2", 2), ("other", "", None)]
)
def test_version_is_found_by_its_number_or_its_weight(model: str, version: str, found: int | None) -> None:
    assert _select(View(), model, version) is (VERSIONS[found] if found else None)


@pytest.mark.parametrize("version", ["3", "01", "1.0", " 1", "-1", "²", "one", "1" * 5000])
def test_what_is_no_version_is_not_found(version: str) -> None:
    assert _select(View(), "flights", version) is None


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("flights", "7", "version '7' of model 'flights' is not served here; served: 2, 1"),
        ("a\nb", "", r"model 'a\nb' is not served here; served: flights"),
    ],
)
def test_words_name_what_is_served(model: str, version: str, words: str) -> None:
    assert unknown(View(), model, version) == words


def test_words_stay_short() -> None:
    assert len(unknown(View(), "x" * 10**6, "")) < 200


class Explained(View):
    """The same with an explainer, or none."""

    def __init__(self, explainer: ActualExplainer | None) -> None:
        self._endpoint = ActualEndpoint(model="flights", versions=(), explainer=explainer)

    def actual(self) -> Actual:
        return Actual(pid=1, ready=True, endpoints=(self._endpoint,))


@pytest.mark.parametrize(
    ("version", "state", "refusal"),
    [
        ("", "READY", None),
        ("2", "READY", None),
        ("1", "READY", (404, "version 1 of model 'flights' has no explainer here; version 2 has")),
        ("", "LOADING", (503, "the explainer of model 'flights' version 2 is LOADING")),
        ("2", "FAILED", (503, "the explainer of model 'flights' version 2 is FAILED")),
    ],
)
def test_what_has_no_explainer_is_told(version: str, state: State, refusal: tuple[int, str] | None) -> None:
    assert unexplained(Explained(ActualExplainer(version=2, state=state)), "flights", version) == refusal


def test_model_without_an_explainer_says_so() -> None:
    assert unexplained(Explained(None), "flights", "") == (404, "model 'flights' has no explainer here")
