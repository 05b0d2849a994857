"""An upgrade to what cannot serve: the version before goes on, and the pod and `shipway status` say the cause."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.kubernetes.status import read_status
from deploy.settings import Settings
from tests import helm_binaries
from tests.cluster.conftest import Lab, claim, namespace_for
from tests.cluster.release import NAME, Release, to
from tests.waiting import wait_for

SAID_WITHIN_SECONDS = 120
NOBODY = "http://127.0.0.1:9"
FULL_KIB = 16


@pytest.fixture(scope="module")
def serving(lab: Lab) -> Iterator[Release]:
    """It serves the good version."""
    with (
        namespace_for(lab.cluster, "bad-input", {"enforce": "restricted"}) as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        for variable, value in lab.cluster.environment.items():
            patch.setenv(variable, value)
        release = Release(lab, name)
        release.install(lab.good)
        yield release


@pytest.fixture
def full(lab: Lab, serving: Release, tmp_path: Path) -> Iterator[str]:
    """The claim of a volume with room for less than an archive."""
    if not lab.cluster.kit:
        pytest.skip("a volume without room is made where the cluster's machine is this one: with SHIPWAY_KUBE_KIT")
    tmp_path.chmod(0o777)
    options = f"size={FULL_KIB}k,mode=1777"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)], check=True)
    try:
        with claim(lab.cluster, serving.namespace, str(tmp_path)) as name:
            yield name
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def refused(serving: Release, cause: str, *options: str) -> str:
    """What is wrong with the pod of an upgrade with these options: as `shipway status` says it, matching `cause`."""
    serving.upgrade(*options, wait=False)
    helm = str(helm_binaries.helm(serving.major))
    settings = Settings(helm_release=NAME, helm_namespace=serving.namespace, helm=helm)
    told: set[str] = set()

    def found() -> str | None:
        problems = [one for one in read_status(settings).problems if one.startswith("pod ")]
        told.update(problems)
        return next((one for one in problems if re.search(cause, one)), None)

    try:
        problem = wait_for(found, SAID_WITHIN_SECONDS)
    except AssertionError:
        pytest.fail(f"not told: {cause}; but {told}")
    assert "\n" not in problem
    serving.serves(serving.lab.good)
    return problem


@pytest.fixture(autouse=True)
def back(serving: Release) -> Iterator[None]:
    """After a test to the revision before, which was good."""
    yield
    before, _ = json.loads(serving.helm("history", NAME, "--max", "2", "--output", "json"))
    serving.rollback(before["revision"])
    serving.serves(serving.lab.good)


@pytest.mark.parametrize("wrong", ["version", "digest", "registry"])
def test_what_cannot_be_fetched(lab: Lab, serving: Release, wrong: str) -> None:
    other = lab.other
    options, cause = {
        "version": (to(replace(other, number=99)), "has no models:/flights/99; it has"),
        "digest": (to(replace(other, digest=f"sha256:{'0' * 64}")), re.escape(other.digest)),
        "registry": (
            (*to(other), "--set", f"source.mlflow.trackingUri={NOBODY}"),
            r"no MLflow server answers at http://127\.0\.0\.1:9",
        ),
    }[wrong]
    problem = refused(serving, f"fetch failed: .*{cause}", *options)
    (pod,) = [one for one in serving.pods() if one["metadata"]["name"] in problem]
    said = serving.kubectl("logs", pod["metadata"]["name"], "--container", "fetch").splitlines()[-1]
    assert problem.partition("fetch failed: ")[2] in said


def test_a_volume_without_room(lab: Lab, serving: Release, full: str) -> None:
    options = ("--set", "cache.type=pvc", "--set", f"cache.existingClaim={full}")
    refused(serving, "fetch failed: .*No space left on device", *to(lab.other), *options)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["source.mlflow.existingSecret=nobody"], 'secret "nobody" not found'),
        (
            ["insecure=false", "tls.existingSecret=nobody", "auth.apiKeys.existingSecret=none"],
            r'secret "(nobody|none)" not found',
        ),
        (["gpu.enabled=true"], "no node takes it: .*Insufficient nvidia.com/gpu"),
        (["image.tag=gone"], "ErrImageNeverPull"),
    ],
    ids=["credentials", "certificate", "gpu", "image"],
)
def test_what_is_not_there(serving: Release, options: list[str], cause: str) -> None:
    refused(serving, cause, *(word for one in options for word in ("--set", one)))
