"""The report: what it says, and that its page is whole. A browser was used to look at it, and is not needed here."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from deploy.report.gather import Report, gather
from deploy.report.page import POLICY, page, summary
from tests.unit.deploy.conftest import NASTY, Fleet
from tests.unit.deploy.rollout.stories import NASTY_WORDS, rolled_back
from tests.unit.deploy.test_cli import shipway
from tests.unit.deploy.test_drift import ask


@pytest.fixture(scope="module")
def found(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Report:
    story = [
        one.model_copy(update={"at": fleet.end - 2000 + one.at - 1000, "number": number})
        for number, one in enumerate(rolled_back(), start=1)
    ]
    before = story[0].model_copy(update={"at": fleet.end - 100_000, "rollout": "long-ago"})
    return gather(fleet.prometheus, ask(fleet, tmp_path_factory.mktemp("archives")), [before, *story])


class Tags(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        inside = self.tags[-1][0] if self.tags else ""
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif inside != "style":
            self.words += data


def test_numbers_are_those_of_the_whole_fleet(found: Report) -> None:
    first, second = found.services
    assert (first.version, second.version) == (3, 4)
    assert first.requests == pytest.approx(72_000)
    assert first.failed == pytest.approx(0.02)
    assert first.refused == pytest.approx(0.08)
    # Spread evenly from 0 to 100 ms.
    assert first.latency_seconds == pytest.approx((0.05, 0.095, 0.099), rel=0.01)
    assert np.isnan(second.failed)


def test_drift_is_counted_in_parts_of_the_window(found: Report) -> None:
    assert (len(found.heat.times), found.heat.part_seconds) == (24, 900)
    effects = {name: one.psi_excess for (name, _), one in zip(found.heat.features, found.heat.compared, strict=True)}
    assert effects["dep_delay"].min() > 0.25
    assert np.abs(effects["distance"]).max() < 0.01


def test_quality_is_of_the_labels_that_came(found: Report) -> None:
    assert found.labels is not None
    assert found.labels.whole.accuracy == pytest.approx(0.75)
    assert found.labels.coverage == pytest.approx(np.full(24, 0.2), rel=0.01)
    assert found.labels.reference_accuracy == 0.9


def test_alerts_of_the_model_are_told_with_their_times_and_no_others(found: Report) -> None:
    (fired,) = found.fired
    assert (fired.alert, fired.about) == ("FeatureDrift", "feature dep_delay")
    # Prometheus holds a sample for five minutes after its last.
    assert fired.start == pytest.approx(found.end - 180 * 60, abs=60)
    assert fired.end == pytest.approx(found.end - 116 * 60, abs=60)


def test_summary_says_it_in_words(found: Report) -> None:
    traffic, version, drift, accuracy, rollout, alerts = summary(found)
    assert traffic == "72,036 rows in 72,000 requests, 3.3 a second on average."
    assert version.startswith("Version 3, which had most rows, failed 2% of its requests and refused 8%;")
    assert version.endswith("half took less than 50 ms, 99% less than 99 ms.")
    assert drift.startswith(
        "2 of 5 features of version 3 drifted, most of all dep_delay: the profile's highest 10% went"
    )
    assert accuracy.startswith("Accuracy was 75.0% (74.3% to 75.7% with 95% confidence) over 14,400 labels;")
    assert accuracy.endswith("when registered it was 90.0%.")
    assert rollout == "r1 (1 → 2) is ROLLED_BACK: now ROLLED_BACK."
    assert alerts == "Alerts that fired: FeatureDrift."


def test_page_is_one_file_that_asks_no_network(found: Report) -> None:
    parsed = Tags(page(found))
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert not {"src", "href", "srcset", "data"} & set(attributes), (tag, attributes)
    policies = [one.get("content") for tag, one in parsed.tags if one.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    drawn = sum(script.count("Plotly.newPlot(") for script in parsed.scripts[1:])
    # Rate, errors, latency, heat map, five features against the profile, missing values, quality.
    assert drawn == 11


def test_page_says_what_it_is_about(found: Report) -> None:
    words = Tags(page(found)).words
    for expected in (
        "flights, the last 6h to",
        "Times are UTC",
        found.drift.prometheus,
        "Versions with traffic: 3, 4",
        NASTY,
        "ROLLING_BACK",
        f"errors: {NASTY_WORDS}",
        "ann@desk",
    ):
        assert expected in words
    assert "long-ago" not in words


def test_the_command_writes_the_file_and_says_where(fleet: Fleet, state_dir: Path) -> None:
    settings = {"SHIPWAY_STATE_DIR": str(state_dir / "state"), "SHIPWAY_PROMETHEUS_URL": fleet.prometheus.url}
    result = shipway("report", "flights", "--since", "1h", "--out", str(state_dir / "report.html"), **settings)
    assert (result.returncode, result.stdout) == (0, f"{state_dir}/report.html\n"), result.stderr
    assert (state_dir / "report.html").read_text().startswith("<!doctype html>")
    result = shipway("report", "flights", **settings)
    assert list((state_dir / "state" / "reports").glob("flights-*.html")) == [Path(result.stdout.strip())]
