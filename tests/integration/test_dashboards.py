"""Every panel of every dashboard asks the real Prometheus for something that a loaded node really has."""

import contextlib
import json
import re
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.node.desired import Desired, DesiredEndpoint, DesiredVersion, Mirror, write_state
from deploy.programs import RULES, programs, prometheus_config
from deploy.settings import Settings
from model_store import digits
from model_store.archive import read_member
from model_store.flights import CLASSES
from model_store.package import package
from model_store.training import train
from monitoring.config import Config
from monitoring.dashboards.catalogue import dashboards
from monitoring.rules.file import rule_file
from tests.integration.clients import call, post
from tests.integration.conftest import Lab, wait_until_ready
from tests.integration.test_node import grpc_request
from tests.waiting import wait_for

SEEN_WITHIN_SECONDS = 60.0
PAUSE_SECONDS = 0.1

pytestmark = pytest.mark.timeout(300)

WITHOUT_SERIES = {
    "GPU activity": "wants a GPU, and NVIDIA's exporter",
    "GPU memory": "wants a GPU, and NVIDIA's exporter",
    "Dispersion": "compares an hour with the hour before it",
}

Panel = dict[str, Any]


@pytest.fixture(scope="module")
def prometheus(
    loaded: Lab, short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]
) -> Iterator[str]:
    """A Prometheus with the files that `shipway up` gives it, and shorter intervals; its URL."""
    directory = short_directory()
    settings = Settings(
        state_dir=directory, metrics_port=loaded.settings.metrics_port, prometheus_port=free_ports(1)[0]
    )
    settings.prometheus_dir.mkdir()
    files = {"prometheus.yml": prometheus_config(settings, Config().health.job), RULES: rule_file(Config())}
    for name, text in files.items():
        hurried = text.replace("interval: 1m", "interval: 2s").replace("interval: 5s", "interval: 1s")
        (settings.prometheus_dir / name).write_text(hurried)
    command = next(program.command for program in programs(settings) if program.name == "prometheus")
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(f"{settings.prometheus_url}/-/ready"), 30)
        yield settings.prometheus_url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


@pytest.fixture(scope="module")
def loaded(lab: Lab) -> Iterator[Lab]:
    """The laboratory with a model of pictures beside both versions of flights, and all of them asked all the time."""
    uri = lab.settings.mlflow_uri
    train("digits", tracking_uri=uri, model="pictures", plan=digits.Plan(epochs=1))
    pictures = package(
        "models:/pictures/1",
        tracking_uri=uri,
        archives_dir=lab.settings.archives_dir,
        signing_key=lab.settings.signing_key,
    )
    served = DesiredEndpoint(
        model="pictures", versions=(DesiredVersion(version=1, digest=pictures.digest, weight=100),)
    )
    both = lab.desired(50, 50)
    over = threading.Event()
    asking = threading.Thread(target=ask, args=(lab, json.loads(read_member(pictures.archive, "golden.json")), over))
    try:
        watched = both.endpoints[0].model_copy(update={"fallback": 1, "mirror": Mirror(version=2, percent=50)})
        write_state(lab.settings.desired_file, Desired(endpoints=(watched, served)))
        wait_until_ready(lab.settings, 3)
        asking.start()
        yield lab
    finally:
        over.set()
        if asking.ident is not None:
            asking.join()
        write_state(lab.settings.desired_file, lab.desired(100, 0))
        wait_until_ready(lab.settings, 2)


def ask(lab: Lab, pictures: dict[str, Any], over: threading.Event) -> None:
    """Every protocol, every outcome that a client can bring about, and a label for each prediction."""
    turn = 0
    while not over.wait(PAUSE_SECONDS):
        turn += 1
        for version in (1, 2):
            path = f"/v2/models/flights/versions/{version}/infer"
            _, headers, _ = post(lab.port, path, lab.golden["request"])
            label = {"prediction_id": headers["x-shipway-prediction-id"], "row": 0, "label": CLASSES[turn % 2]}
            post(lab.port, "/feedback", label)
        post(lab.port, "/predictions/flights", lab.row(turn % 100))
        post(lab.port, "/predictions/flights", {"wrong": 1})
        call(lab.port, "ModelInfer", grpc_request(lab))
        post(lab.port, "/v2/models/pictures/infer", pictures["request"])


def panels() -> dict[str, Panel]:
    """By dashboard and title."""
    return {
        f"{dashboard['uid']}: {panel['title']}": panel
        for dashboard in dashboards(Config())
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    }


def filled_in(expression: str, feature: str) -> str:
    """As Grafana asks it, with all versions of one model chosen and the time that is shown being five minutes.

    Random Fourier features are made of pictures; everything else is asked of the table.
    """
    variables = {
        "__rate_interval": "1m",
        "__range": "5m",
        "window": "10m",
        "model": "pictures" if "shipway_rff" in expression else "flights",
        "version": ".*",
        "kind": ".*",
        "feature": feature,
    }
    return re.sub(r"\$([a-z_]+)", lambda match: variables[match[1]], expression)


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def test_every_panel_shows_something(loaded: Lab, prometheus: str) -> None:
    feature = next(iter(loaded.row()))
    waiting = {
        f"{place} {target['refId']}": filled_in(target["expr"], feature)
        for place, panel in panels().items()
        if panel["title"] not in WITHOUT_SERIES
        for target in panel["targets"]
    }
    assert len(waiting) > 50

    def all_seen() -> bool:
        for place, expression in list(waiting.items()):
            if query(prometheus, expression):
                del waiting[place]
        return not waiting

    try:
        wait_for(all_seen, SEEN_WITHIN_SECONDS)
    except AssertionError:
        pytest.fail("nothing to see in:\n" + "\n".join(f"{place}: {asked}" for place, asked in waiting.items()))


def test_shares_of_a_feature_add_up(loaded: Lab, prometheus: str) -> None:
    panel = panels()["shipway-drift: Reference against live"]
    shares = filled_in(panel["targets"][0]["expr"], next(iter(loaded.row())))

    def bars() -> dict[str, float]:
        """Without those of no rows yet."""
        found = query(prometheus, f"sum by (of) ({shares}) >= 0")
        return {each["metric"]["of"]: float(each["value"][1]) for each in found}

    wanted = {"1 trained", "2 trained", "1 live", "2 live"}
    found = wait_for(lambda: found if set(found := bars()) == wanted else None, SEEN_WITHIN_SECONDS)
    assert found == pytest.approx(dict.fromkeys(wanted, 1.0))


def test_panels_without_series_are_still_there() -> None:
    assert set(WITHOUT_SERIES) <= {panel["title"] for panel in panels().values()}


def test_variables_have_choices(prometheus: str) -> None:
    """`label_values(series, label)`, which Grafana asks as the series' labels."""
    for dashboard in dashboards(Config()):
        for variable in dashboard["templating"]["list"]:
            if variable["type"] != "query":
                continue
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert match, variable["definition"]
            series = filled_in(match[1], "")
            asked = f"count by ({match[2]}) ({series})"
            assert wait_for(lambda asked=asked: query(prometheus, asked), SEEN_WITHIN_SECONDS)  # type: ignore[misc]
