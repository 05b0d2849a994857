"""The two state files: read strictly, replaced whole, and changed by `serve` so that the way back stays warm."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import StateFileInvalid
from deploy.node.desired import (
    Actual,
    ActualEndpoint,
    ActualVersion,
    Desired,
    DesiredEndpoint,
    DesiredVersion,
    Mirror,
    read_actual,
    read_desired,
    running,
    serve,
    write_state,
)

DIGESTS = [f"sha256:{number:064x}" for number in range(5)]


def weights(desired: Desired, model: str = "flights") -> dict[int, int]:
    endpoint = desired.endpoint(model)
    assert endpoint is not None
    return {version.version: version.weight for version in endpoint.versions}


def test_nothing_is_desired_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_desired(tmp_path / "desired.json") == Desired()
    assert read_actual(tmp_path / "actual.json") is None


def test_desired_state_survives_its_file(tmp_path: Path, endpoint: DesiredEndpoint) -> None:
    path = tmp_path / "node" / "desired.json"
    write_state(path, Desired(endpoints=(endpoint,)))
    assert read_desired(path) == Desired(endpoints=(endpoint,))


def test_actual_state_survives_its_file(tmp_path: Path) -> None:
    version = ActualVersion(version=1, digest=DIGESTS[1], weight=100, state="FAILED", reason="refused")
    actual = Actual(pid=7, ready=False, reason="no", endpoints=(ActualEndpoint(model="flights", versions=(version,)),))
    write_state(tmp_path / "actual.json", actual)
    assert read_actual(tmp_path / "actual.json") == actual


def test_a_node_that_was_killed_says_nothing_any_more(tmp_path: Path) -> None:
    path, endpoint = tmp_path / "actual.json", ActualEndpoint(model="flights", versions=())
    assert running(path) is None
    for pid, found in ((os.getpid(), True), (2**22 - 1, False)):
        write_state(path, Actual(pid=pid, ready=True, endpoints=(endpoint,)))
        assert (running(path) is not None) == found
    assert Actual(pid=1, ready=True, endpoints=(endpoint,)).endpoint("flights") == endpoint
    assert Actual(pid=1, ready=True).endpoint("flights") is None


VERSION = {"version": 1, "digest": DIGESTS[1], "weight": 100}


def document(**changed: Any) -> bytes:
    return json.dumps({"endpoints": [{"model": "flights", "versions": [{**VERSION, **changed}]}]}).encode()


def endpoints(*found: dict[str, Any]) -> bytes:
    return json.dumps({"endpoints": found}).encode()


AT = "endpoints.0.versions.0"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Invalid JSON: "),
        (b'{"endpoints": [', "Invalid JSON: "),
        (b"\xff", "Invalid JSON: "),
        (b"[]", "Input should be an object; found []"),
        (b'{"endpoint": []}', "endpoint: Extra inputs are not permitted; found []"),
        (endpoints({"model": "a/b", "versions": [VERSION]}), "endpoints.0.model: String should match pattern"),
        (endpoints({"model": "a\n", "versions": [VERSION]}), "endpoints.0.model: String should match pattern"),
        (endpoints({"model": "", "versions": [VERSION]}), "endpoints.0.model: String should match pattern"),
        (endpoints({"model": "a", "versions": []}), "endpoints.0: at least one version; found none"),
        (document(version=0), f"{AT}.version: Input should be greater than or equal to 1; found 0"),
        (document(version="1"), f"{AT}.version: Input should be a valid integer; found '1'"),
        (document(version=True), f"{AT}.version: Input should be a valid integer; found true"),
        (document(version=1.0), f"{AT}.version: Input should be a valid integer; found 1.0"),
        (document(weight=101), f"{AT}.weight: Input should be less than or equal to 100; found 101"),
        (document(weight=-1), f"{AT}.weight: Input should be greater than or equal to 0; found -1"),
        (document(digest="sha256:12"), f"{AT}.digest: String should match pattern"),
        (document(digest=DIGESTS[1].upper()), f"{AT}.digest: String should match pattern"),
        (document(mirror=True), f"{AT}.mirror: Extra inputs are not permitted; found true"),
        (document(weight=99), "endpoints.0: the weights must add up to 100; found 99"),
        (
            endpoints({"model": "a", "versions": [{**VERSION, "weight": 50}] * 2}),
            "endpoints.0: every version once; found [1, 1]",
        ),
        (
            endpoints({"model": "a", "versions": [VERSION], "explainer": 2}),
            "endpoints.0: the explainer must be one of the versions [1]; found 2",
        ),
        (
            endpoints({"model": "a", "versions": [VERSION], "fallback": 2}),
            "endpoints.0: the fall-back must be one of the versions [1]; found 2",
        ),
        (
            endpoints({"model": "a", "versions": [VERSION], "mirror": {"version": 2, "percent": 20}}),
            "endpoints.0: the mirror must be one of the versions [1]; found 2",
        ),
        (
            endpoints({"model": "a", "versions": [VERSION], "mirror": {"version": 1, "percent": 0}}),
            "endpoints.0.mirror.percent: Input should be greater than or equal to 1; found 0",
        ),
        (
            endpoints({"model": "a-explainer", "versions": [VERSION]}),
            "endpoints.0: a model's name must not end in -explainer; found a-explainer",
        ),
        (endpoints(*[{"model": "a", "versions": [VERSION]}] * 2), "every model once; found ['a', 'a']"),
    ],
)
def test_file_that_is_no_desired_state_is_refused_in_words(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "desired.json"
    path.write_bytes(content)
    with pytest.raises(StateFileInvalid) as refused:
        read_desired(path)
    assert len(refused.value.problems) == 1
    assert str(refused.value).startswith(f"{path} is not usable: {problem}")


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    path.write_bytes(document(version=0, weight=101))
    with pytest.raises(StateFileInvalid) as refused:
        read_desired(path)
    assert len(refused.value.problems) == 2


def test_path_that_cannot_be_read_is_no_fault_of_the_node(tmp_path: Path) -> None:
    with pytest.raises(StateFileInvalid, match="it cannot be read: Is a directory"):
        read_desired(tmp_path)


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    serve(path, "flights", 1, DIGESTS[1])
    stop = threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                assert read_desired(path).endpoint("flights") is not None
            except Exception as error:  # noqa: BLE001 - told to the test's own thread
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(40):
        serve(path, "flights", 1 + version % 4, DIGESTS[1 + version % 4])
    stop.set()
    reader.join()
    assert failures == []
    assert sorted(tmp_path.iterdir()) == [path, path.with_suffix(".lock")]  # nothing that was half written


def test_endpoints_that_change_at_once_lose_no_change(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"

    def moves(model: str) -> None:
        for version in (1, 2, 3) * 10:
            serve(path, model, version, DIGESTS[version])

    threads = [threading.Thread(target=moves, args=(model,)) for model in ("flights", "digits", "reviews")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {endpoint.model: endpoint.versions[0].version for endpoint in read_desired(path).endpoints}
    assert found == {"flights": 3, "digits": 3, "reviews": 3}


def test_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    serve(path, "flights", 1, DIGESTS[1])
    before = path.read_bytes()
    path.write_bytes(before.replace(b"100", b"99"))
    with pytest.raises(StateFileInvalid):
        serve(path, "flights", 2, DIGESTS[2])
    assert path.read_bytes() == before.replace(b"100", b"99")


def test_first_version_gets_everything(tmp_path: Path) -> None:
    assert weights(serve(tmp_path / "desired.json", "flights", 1, DIGESTS[1])) == {1: 100}


def test_version_before_stays_warm_and_older_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    for version in (1, 2, 3):
        found = serve(path, "flights", version, DIGESTS[version])
    assert weights(found) == {3: 100, 2: 0}
    assert read_desired(path) == found
    endpoint = found.endpoint("flights")
    assert endpoint is not None
    assert {v.version: v.digest for v in endpoint.versions} == {3: DIGESTS[3], 2: DIGESTS[2]}


def test_going_back_keeps_the_other_warm(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    for version in (1, 2, 1):
        found = serve(path, "flights", version, DIGESTS[version])
    assert weights(found) == {1: 100, 2: 0}


def test_serving_the_same_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    for version in (1, 2):
        before = serve(path, "flights", version, DIGESTS[version])
    assert serve(path, "flights", 2, DIGESTS[2]) == before


def test_all_versions_with_traffic_stay_warm(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    shared = (("1", 90), ("2", 10))
    versions = tuple(DesiredVersion(version=int(v), digest=DIGESTS[int(v)], weight=weight) for v, weight in shared)
    write_state(path, Desired(endpoints=(DesiredEndpoint(model="flights", versions=versions),)))
    assert weights(serve(path, "flights", 3, DIGESTS[3])) == {3: 100, 1: 0, 2: 0}


def test_other_models_are_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    serve(path, "trains", 4, DIGESTS[4])
    found = serve(path, "flights", 1, DIGESTS[1])
    assert weights(found, "trains") == {4: 100}
    assert found.endpoint("ships") is None


def explained(desired: Desired) -> int | None:
    endpoint = desired.endpoint("flights")
    assert endpoint is not None
    return endpoint.explainer


def test_explainer_follows_the_traffic_until_it_is_not_wanted(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    assert explained(serve(path, "flights", 1, DIGESTS[1])) is None
    assert explained(serve(path, "flights", 1, DIGESTS[1], explain=True)) == 1
    assert explained(serve(path, "flights", 2, DIGESTS[2])) == 2
    assert explained(read_desired(path)) == 2
    assert explained(serve(path, "flights", 2, DIGESTS[2], explain=False)) is None
    assert explained(serve(path, "flights", 3, DIGESTS[3])) is None


def test_serving_ends_a_rollout_and_its_fall_back_and_mirror(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    versions = tuple(DesiredVersion(version=v, digest=DIGESTS[v], weight=weight) for v, weight in ((1, 90), (2, 10)))
    rollout = DesiredEndpoint(model="flights", versions=versions, fallback=1, mirror=Mirror(version=2, percent=20))
    write_state(path, Desired(endpoints=(rollout,)))
    assert read_desired(path).endpoint("flights") == rollout
    served = serve(path, "flights", 1, DIGESTS[1]).endpoint("flights")
    assert served is not None
    assert (served.fallback, served.mirror) == (None, None)
