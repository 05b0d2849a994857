"""Training, registering, packaging and fetching against a real MLflow server on SQLite."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from handlers.program import load_program
from handlers.schema import TableSchema
from model_store import digits
from model_store.archive import read_member, signature_path, verify_archive
from model_store.describing import opened
from model_store.errors import (
    ArchiveRefused,
    ArtifactMissing,
    FetchFailed,
    GoldenRefused,
    HandlerUnusable,
    KeyUnusable,
    ModelUriInvalid,
    NotServable,
    ReferenceRefused,
    RegistryUnreachable,
    SignatureUnusable,
    SourceRefused,
    VersionNotFound,
)
from model_store.fetching import fetch
from model_store.fitting import Plan
from model_store.golden import answered
from model_store.lateness import GOLDEN_ROWS
from model_store.members import OwnFiles
from model_store.mlflow_environment import ENVIRONMENT
from model_store.package import PackagedVersion, package
from model_store.registry import RegisteredVersion, Registry
from model_store.signing import create_key, load_trusted
from model_store.tracking import REACH_SECONDS
from model_store.training import train
from model_store.worker_plan import WorkerPlan
from monitoring.profile import Profile
from tests.integration.users_models import COMMIT, Plain

START_SECONDS = 90
SERVER_ENVIRONMENT = {
    **os.environ,
    **ENVIRONMENT,
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a dozen processes that nothing here uses
}


@pytest.fixture(scope="module", autouse=True)
def _quiet_mlflow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="sw-registry-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def tracking_uri(home: Path, free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    """A real MLflow server with its state under `home`; it and all its workers are gone at the end."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", f"{home}/artifacts"]
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=home, env=SERVER_ENVIRONMENT, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(uri, server, home / "server.log")
        yield uri
    finally:
        started = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        _, left = psutil.wait_procs(started, timeout=10)
    assert not left


def wait_until_healthy(uri: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no MLflow server after {START_SECONDS} s:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def trained(tracking_uri: str) -> RegisteredVersion:
    return train(tracking_uri=tracking_uri, plan=Plan.small())


@pytest.fixture(scope="module")
def signing_key(home: Path) -> Path:
    create_key(home / "keys" / "signing.pem", home / "trust")
    return home / "keys" / "signing.pem"


@pytest.fixture(scope="module")
def packaged(tracking_uri: str, trained: RegisteredVersion, home: Path, signing_key: Path) -> PackagedVersion:
    return package(trained.uri, tracking_uri=tracking_uri, archives_dir=home / "archives", signing_key=signing_key)


@pytest.fixture(scope="module")
def users_models(tracking_uri: str) -> str:
    """The registry has what users logged; the name of the one that is whole."""
    script = Path(__file__).with_name("users_models.py")
    subprocess.run([sys.executable, script, tracking_uri], env={**os.environ, **ENVIRONMENT}, check=True)
    return "plain"


@pytest.fixture(scope="module")
def every_kind(
    tracking_uri: str, users_models: str, packaged: PackagedVersion, home: Path, signing_key: Path
) -> dict[str, PackagedVersion]:
    """One version of every kind of model that is trained here, by name; `plain` was logged by a user."""
    train("delays", tracking_uri=tracking_uri)
    train("digits", tracking_uri=tracking_uri, plan=digits.Plan(epochs=1))
    made = {
        model: package(
            f"models:/{model}/1", tracking_uri=tracking_uri, archives_dir=home / "archives", signing_key=signing_key
        )
        for model in ("delays", "digits", users_models)
    }
    return {"flights": packaged, **made}


def all_members(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as file:
        return {name: file.read(name) for name in file.namelist()}


def run_of(tracking_uri: str, run_id: str) -> dict[str, Any]:
    """The run as MLflow's own REST interface gives it."""
    with urllib.request.urlopen(f"{tracking_uri}/api/2.0/mlflow/runs/get?run_id={run_id}") as answer:
        run: dict[str, Any] = json.load(answer)["run"]
    return run


def history(tracking_uri: str, run_id: str, metric: str) -> list[dict[str, Any]]:
    query = f"run_id={run_id}&metric_key={metric}"
    with urllib.request.urlopen(f"{tracking_uri}/api/2.0/mlflow/metrics/get-history?{query}") as answer:
        metrics: list[dict[str, Any]] = json.load(answer)["metrics"]
    return metrics


def test_the_first_version_is_number_one_and_champion(tracking_uri: str, trained: RegisteredVersion) -> None:
    assert (trained.model, trained.version) == ("flights", 1)
    registry = Registry(tracking_uri)
    by_number, by_alias = registry.resolve("models:/flights/1"), registry.resolve("models:/flights@champion")
    assert by_number == by_alias
    assert by_number.run_id == trained.run_id
    assert by_number.model_id.startswith("m-")


def test_the_run_holds_params_data_digest_commit_and_every_epoch(tracking_uri: str, trained: RegisteredVersion) -> None:
    run = run_of(tracking_uri, trained.run_id)
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert run["info"]["status"] == "FINISHED"
    assert params["data_digest"].startswith("sha256:")
    assert params["training_rows"] == "6000"
    assert tags["git_commit"]
    assert {"accuracy", "precision", "recall", "f1", "roc_auc", "roc_auc_gain_low", "roc_auc_gain_high"} <= set(metrics)
    for name in ("loss", "validation_loss", "validation_roc_auc"):
        assert [point["step"] for point in history(tracking_uri, trained.run_id, name)] == [1, 2]


def test_an_archive_holds_what_a_node_needs_and_its_golden_set_is_reproduced(
    packaged: PackagedVersion, trained: RegisteredVersion, home: Path, tmp_path: Path
) -> None:
    trusted = load_trusted(home / "trust")
    manifest = verify_archive(packaged.archive, "flights", 1, packaged.digest, trusted)
    assert manifest.run_id == trained.run_id
    assert manifest.libraries["torch"] == "2.13.0"
    for name in ("program.json", "weights.safetensors"):
        (tmp_path / name).write_bytes(read_member(packaged.archive, name))
    golden = json.loads(read_member(packaged.archive, "golden.json"))
    columns = {tensor["name"]: tensor["data"] for tensor in golden["request"]["inputs"]}
    schema = TableSchema.from_json(read_member(packaged.archive, "schema.json"))
    numbers, codes = schema.encode(columns)
    assert len(numbers) == GOLDEN_ROWS
    assert np.isnan(numbers).any()
    assert (codes[1] == [len(column.vocabulary) for column in schema.categories]).all()
    (found,) = load_program(tmp_path)(torch.from_numpy(numbers), torch.from_numpy(codes))
    expected = golden["response"]["outputs"][0]["data"]
    assert np.allclose(found.numpy(), expected, rtol=golden["rtol"], atol=golden["atol"])


def test_the_profile_counts_the_training_rows_of_every_column(packaged: PackagedVersion) -> None:
    profile = Profile.from_json(read_member(packaged.archive, "profile.json"))
    schema = TableSchema.from_json(read_member(packaged.archive, "schema.json"))
    assert profile.rows == 6000
    predicted = ["class", "confidence", "entropy"]
    assert [feature.name for feature in profile.features] == [*schema.names, "probability", *predicted]
    assert profile.classes == ("on time", "late")
    assert profile.accuracy is not None
    assert 0.5 < profile.accuracy < 1


def test_packaging_again_gives_the_same_digest_in_another_process_too(
    tracking_uri: str, every_kind: dict[str, PackagedVersion], home: Path, signing_key: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from model_store.package import package;"
        "uri, archives, key, *models = sys.argv[1:];"
        "[print(package(f'models:/{model}/1', tracking_uri=uri, archives_dir=Path(archives),"
        " signing_key=Path(key)).digest) for model in models]"
    )
    command = [sys.executable, "-c", program, tracking_uri, str(home / "elsewhere"), str(signing_key), *every_kind]
    again = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert again.stderr == ""
    assert again.stdout.splitlines() == [packaged.digest for packaged in every_kind.values()]
    for packaged in every_kind.values():
        assert (home / "elsewhere" / packaged.archive.name).read_bytes() == packaged.archive.read_bytes()
    archives = [packaged.archive for packaged in every_kind.values()]
    expected = sorted(path.name for archive in archives for path in (archive, signature_path(archive)))
    assert sorted(path.name for path in (home / "elsewhere").iterdir()) == expected


@pytest.mark.parametrize(("model", "kind"), [("delays", "table"), ("digits", "image"), ("plain", "tensors")])
def test_an_archive_of_every_kind_is_whole_and_reproduces_its_golden_set(
    every_kind: dict[str, PackagedVersion], home: Path, model: str, kind: str
) -> None:
    packaged = every_kind[model]
    verify_archive(packaged.archive, model, packaged.version, packaged.digest, load_trusted(home / "trust"))
    members = all_members(packaged.archive)
    assert json.loads(members["schema.json"])["kind"] == kind
    golden = json.loads(members["golden.json"])
    with opened(members) as handler:
        answers = answered(handler, golden["request"]["inputs"])
    for found, expected in zip(answers, golden["response"]["outputs"], strict=True):
        assert (found.name, found.datatype, list(found.shape)) == (
            expected["name"],
            expected["datatype"],
            expected["shape"],
        )
        assert np.allclose(np.ravel(found.values), expected["data"], rtol=golden["rtol"], atol=golden["atol"])
    assert [tensor["name"] for tensor in json.loads(members["metadata.json"])["inputs"]] == [
        tensor["name"] for tensor in golden["request"]["inputs"]
    ]
    assert json.loads(members["runtime.json"]) == {
        "runtime": "exported",
        "dtype": "float32",
        "threads": 1,
        "target": None,
    }


def test_any_machine_can_fetch_the_archive_by_model_version_and_digest(
    tracking_uri: str, packaged: PackagedVersion, home: Path, tmp_path: Path
) -> None:
    assert Registry(tracking_uri).resolve("models:/flights/1").digest == packaged.digest
    fetched = fetched_from(tracking_uri, home, packaged.digest, tmp_path)
    assert fetched.read_bytes() == packaged.archive.read_bytes()
    assert signature_path(fetched).read_bytes() == signature_path(packaged.archive).read_bytes()
    last = rf"if it is not there, the archive last made of flights version 1 is {packaged.digest}$"
    with pytest.raises(FetchFailed, match=rf"no artifact archives/flights-1-0{{12}}\.mar \(.*404.*\); {last}"):
        fetched_from(tracking_uri, home, "sha256:" + "0" * 64, tmp_path)
    # What is there is right, and asks for no registry.
    assert fetched_from("http://127.0.0.1:1", home, packaged.digest, tmp_path) == fetched


def test_fetching_an_archive_takes_no_pytorch_and_no_whole_mlflow(
    tracking_uri: str, packaged: PackagedVersion, home: Path, tmp_path: Path
) -> None:
    absent = ("torch", "pandas", "sklearn", "flask", "sqlalchemy", "mlflow.models.signature", "mlflow.pytorch")
    program = f"import sys\nsys.modules.update(dict.fromkeys({absent}))\nfrom deploy.cli import main\nmain()"
    keys = "".join(path.read_text() for path in (home / "trust").iterdir())
    given = {"STATE_DIR": str(tmp_path), "MLFLOW_URI": tracking_uri, "TRUSTED_KEYS": keys}
    ended = subprocess.run(
        [sys.executable, "-c", program, "fetch", "flights", "1", packaged.digest],
        env={"PATH": os.environ["PATH"], **{f"SHIPWAY_{name}": value for name, value in given.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    archive = tmp_path / "archives" / packaged.archive.name
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{archive}\n", "")
    assert archive.read_bytes() == packaged.archive.read_bytes()


def fetched_from(tracking_uri: str, home: Path, digest: str, into: Path) -> Path:
    def download(archive: Path) -> None:
        Registry(tracking_uri).download_archive("flights", 1, archive)

    return fetch(into, "flights", 1, digest, load_trusted(home / "trust"), download)


def test_an_archive_altered_in_the_registry_is_refused_and_nothing_is_kept(
    tracking_uri: str, packaged: PackagedVersion, home: Path, tmp_path: Path
) -> None:
    (stored,) = (home / "artifacts").rglob(packaged.archive.name)
    before = stored.read_bytes()
    try:
        stored.write_bytes(before[:-1])
        with pytest.raises(ArchiveRefused, match="altered or is incomplete") as caught:
            fetched_from(tracking_uri, home, packaged.digest, tmp_path)
    finally:
        stored.write_bytes(before)
    assert caught.value.expected == packaged.digest
    assert list(tmp_path.iterdir()) == []


def test_other_worker_settings_are_another_archive(
    tracking_uri: str, packaged: PackagedVersion, tmp_path: Path, home: Path, signing_key: Path
) -> None:
    other = package(
        "models:/flights/1",
        tracking_uri=tracking_uri,
        archives_dir=tmp_path,
        signing_key=signing_key,
        plan=WorkerPlan(workers=4),
    )
    assert other.digest != packaged.digest
    assert b"maxWorkers: 4" in read_member(other.archive, "model-config.yaml")
    assert fetched_from(tracking_uri, home, packaged.digest, home / "first").is_file()


def test_the_whole_training_beats_the_delay_alone_and_is_a_second_version(
    tracking_uri: str, trained: RegisteredVersion
) -> None:
    registry = Registry(tracking_uri)
    before = registry.resolve(trained.uri)
    second = train(tracking_uri=tracking_uri)
    metrics = {metric["key"]: metric["value"] for metric in run_of(tracking_uri, second.run_id)["data"]["metrics"]}
    assert metrics["baseline_roc_auc"] == pytest.approx(0.9186, abs=1e-4)
    assert metrics["roc_auc_gain_low"] > 0
    assert metrics["roc_auc"] > 0.924
    assert second.version > trained.version
    assert registry.resolve("models:/flights@champion") == registry.resolve(trained.uri) == before
    assert registry.resolve(second.uri).digest is None


def test_files_are_fetched_from_the_configured_artifact_root_alone(
    tracking_uri: str, trained: RegisteredVersion, tmp_path: Path
) -> None:
    registry = Registry(tracking_uri, artifact_root="mlflow-artifacts:/elsewhere/")
    model_id = registry.resolve(trained.uri).model_id
    with pytest.raises(SourceRefused, match="allowed is mlflow-artifacts:/elsewhere/"):
        registry.download_program(model_id, tmp_path)
    with pytest.raises(SourceRefused, match=model_id):
        registry.read_files(model_id)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["flights", "models:/flights", "models:/flights/0", "models:/flights/x", "runs:/a/b", ""]
)
def test_an_address_that_names_no_version_is_refused(tracking_uri: str, uri: str) -> None:
    with pytest.raises(ModelUriInvalid, match="models:/NAME@ALIAS"):
        Registry(tracking_uri).resolve(uri)


@pytest.mark.usefixtures("trained")
def test_an_unknown_version_alias_or_model_is_answered_with_what_there_is(tracking_uri: str) -> None:
    registry = Registry(tracking_uri)
    with pytest.raises(VersionNotFound, match=r"versions 1.* and aliases champion of flights"):
        registry.resolve("models:/flights/99")
    with pytest.raises(VersionNotFound, match="aliases champion of flights"):
        registry.resolve("models:/flights@nobody")
    with pytest.raises(VersionNotFound, match=r"no model trains, only .*flights"):
        registry.resolve("models:/trains/1")


def test_a_users_network_needs_no_file_of_ours(every_kind: dict[str, PackagedVersion]) -> None:
    members = all_members(every_kind["plain"].archive)
    metadata = json.loads(members["metadata.json"])
    assert metadata["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}]
    golden = json.loads(members["golden.json"])
    inputs = np.array(golden["request"]["inputs"][0]["data"], np.float32).reshape(5, 4)
    with torch.inference_mode():
        expected = Plain()(torch.from_numpy(inputs)).ravel()
    assert np.allclose(golden["response"]["outputs"][0]["data"], expected, atol=1e-6)
    assert Profile.from_json(members["profile.json"]).features == ()
    identity = json.loads(members["shipway.json"])
    assert (identity["run_id"], identity["data_digest"]) == ("", "unknown")
    assert identity["libraries"]["torch"] == "2.13.0"


@pytest.mark.usefixtures("users_models")
def test_a_copied_version_with_several_inputs_is_packaged_with_its_origin(
    tracking_uri: str, home: Path, signing_key: Path
) -> None:
    packaged = package(
        "models:/copied/1", tracking_uri=tracking_uri, archives_dir=home / "archives", signing_key=signing_key
    )
    members = all_members(packaged.archive)
    answers = {tensor["name"]: tensor["data"] for tensor in json.loads(members["golden.json"])["response"]["outputs"]}
    assert answers == {"total": [2, 10, 18], "positive": [False, True, True, True, True, True]}
    identity = json.loads(members["shipway.json"])
    assert identity["run_id"] == Registry(tracking_uri).resolve("models:/weighted/1").run_id
    assert identity["git_commit"] == COMMIT
    assert identity["data_digest"].startswith("hand-made@")


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("unsigned", SignatureUnusable, "it has no signature of its inputs; .*infer_signature"),
        ("columns", SignatureUnusable, "its inputs are columns: .*infer_signature"),
        ("pickled", ArtifactMissing, 'no artifact data/model.pt2 .*serialization_format="pt2"'),
        ("a name", NotServable, "its name is 'a name'; allowed are .*copy_model_version"),
        ("odd-explainer", NotServable, "its name is 'odd-explainer'; .*do not end with -explainer"),
        ("lonely", SignatureUnusable, r"was exported for float32\[1, 4\]; .* at least two rows"),
    ],
)
@pytest.mark.usefixtures("users_models")
def test_a_model_that_no_node_could_serve_is_refused_with_what_to_do(
    tracking_uri: str, signing_key: Path, tmp_path: Path, model: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        package(f"models:/{model}/1", tracking_uri=tracking_uri, archives_dir=tmp_path, signing_key=signing_key)
    assert not list(tmp_path.rglob("*.mar"))


README = Path(__file__).parents[2] / "model_store" / "README.md"
OWN_HANDLER = README.read_text().partition("<!-- handler -->\n```python\n")[2].partition("```")[0]


def test_a_users_own_handler_makes_its_own_golden_set(
    tracking_uri: str, every_kind: dict[str, PackagedVersion], signing_key: Path, tmp_path: Path
) -> None:
    handler, request = tmp_path / "mine.py", tmp_path / "request.json"
    handler.write_text(OWN_HANDLER)
    inputs = [{"name": "features", "datatype": "FP32", "shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 8]}]
    request.write_text(json.dumps({"inputs": inputs}))
    pack = partial(
        package,
        "models:/plain/1",
        tracking_uri=tracking_uri,
        archives_dir=tmp_path,
        signing_key=signing_key,
    )
    own, asked = (all_members(pack(own=OwnFiles(handler, golden)).archive) for golden in (None, request))
    theirs = all_members(every_kind["plain"].archive)
    assert own["handler.py"] == asked["handler.py"] == OWN_HANDLER.encode()
    probabilities, scores = (json.loads(members["golden.json"]) for members in (own, theirs))
    assert probabilities["request"] == scores["request"]
    found, raw = (np.array(one["response"]["outputs"][0]["data"]).reshape(-1, 3) for one in (probabilities, scores))
    assert np.allclose(found, np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True), atol=1e-6)
    assert json.loads(own["runtime.json"])["runtime"] == "exported"
    assert json.loads(asked["golden.json"])["request"]["inputs"] == inputs


def test_users_rows_of_normal_traffic_make_the_profile(
    tracking_uri: str, every_kind: dict[str, PackagedVersion], signing_key: Path, tmp_path: Path
) -> None:
    handler, reference = tmp_path / "mine.py", tmp_path / "rows.npz"
    handler.write_text(OWN_HANDLER)
    np.savez(reference, features=np.random.default_rng(3).normal(size=(150, 4)).astype(np.float32))
    pack = partial(
        package,
        "models:/plain/1",
        tracking_uri=tracking_uri,
        archives_dir=tmp_path,
        signing_key=signing_key,
        own=OwnFiles(handler, reference=reference),
    )
    packaged = pack()
    members = all_members(packaged.archive)
    profile = Profile.from_json(members["profile.json"])
    assert profile.rows == 150
    assert [feature.name for feature in profile.features] == [
        *(f"features[{at}]" for at in range(4)),
        *(f"output[{at}]" for at in range(3)),
    ]
    assert all(0 < edge < 1 for feature in profile.features[4:] for edge in feature.edges)  # the handler's own answers
    assert pack().digest == packaged.digest
    reference.unlink()
    with pytest.raises(ReferenceRefused, match=r"cannot be read: .*numpy\.savez"):
        pack()
    assert json.loads(members["golden.json"])["request"] == _golden_request(every_kind["plain"])


def _golden_request(packaged: PackagedVersion) -> object:
    return json.loads(read_member(packaged.archive, "golden.json"))["request"]


EAGER_HANDLER = """
from collections import OrderedDict
from torch import nn
from handlers import generic


class Eager(generic.GenericHandler):
    def network(self):
        return nn.Sequential(OrderedDict(linear=nn.Linear(4, 3)))
"""


def test_a_handler_that_brings_its_network_has_it_run_with_the_versions_weights(
    tracking_uri: str, every_kind: dict[str, PackagedVersion], signing_key: Path, tmp_path: Path
) -> None:
    handler = tmp_path / "mine.py"
    pack = partial(
        package,
        "models:/plain/1",
        tracking_uri=tracking_uri,
        archives_dir=tmp_path,
        signing_key=signing_key,
        own=OwnFiles(handler),
    )
    handler.write_text(EAGER_HANDLER)
    own, theirs = (all_members(packaged.archive) for packaged in (pack(), every_kind["plain"]))
    assert json.loads(own["runtime.json"])["runtime"] == "eager"
    found, expected = (json.loads(members["golden.json"])["response"]["outputs"][0] for members in (own, theirs))
    assert np.allclose(found["data"], expected["data"], atol=1e-6)
    handler.write_text(EAGER_HANDLER.replace("(4, 3)", "(4, 2)"))
    with pytest.raises(NotServable, match="weights do not fit the handler's network"):
        pack()


@pytest.mark.parametrize(
    ("source", "request_text", "error", "words"),
    [
        ("x = 1", "", HandlerUnusable, "the classes that it defines are: none"),
        ("class Lost: pass", "", NotServable, "exactly one subclass of BaseHandler; found none"),
        ("import nowhere\nclass Lost: pass", "", NotServable, "ModuleNotFoundError: No module named 'nowhere'"),
        (OWN_HANDLER, '{"inputs": 3}', GoldenRefused, "a list of tensors"),
        (
            OWN_HANDLER,
            '{"inputs": [{"name": "features", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}]}',
            GoldenRefused,
            "the handler refuses it: .*features",
        ),
    ],
)
@pytest.mark.usefixtures("every_kind")
def test_a_users_handler_or_request_that_does_not_work_is_refused_with_the_reason(
    tracking_uri: str, signing_key: Path, tmp_path: Path, source: str, request_text: str, error: type[Exception],
    words: str,
) -> None:  # fmt: skip
    handler, request = tmp_path / "mine.py", tmp_path / "request.json"
    handler.write_text(source)
    request.write_text(request_text)
    with pytest.raises(error, match=words):
        package(
            "models:/plain/1",
            tracking_uri=tracking_uri,
            archives_dir=tmp_path,
            signing_key=signing_key,
            own=OwnFiles(handler, request if request_text else None),
        )
    assert not list(tmp_path.rglob("*.mar"))


def test_a_key_that_cannot_sign_leaves_no_archive_behind(
    tracking_uri: str, trained: RegisteredVersion, tmp_path: Path
) -> None:
    with pytest.raises(KeyUnusable):
        package(trained.uri, tracking_uri=tracking_uri, archives_dir=tmp_path / "a", signing_key=tmp_path / "none")
    assert not list(tmp_path.rglob("*.mar"))


def test_no_server_is_said_within_seconds(free_ports: Callable[[int], list[int]]) -> None:
    (port,) = free_ports(1)
    start = time.monotonic()
    with pytest.raises(RegistryUnreachable, match=f"no MLflow server answers at http://127.0.0.1:{port}"):
        Registry(f"http://127.0.0.1:{port}")
    assert time.monotonic() - start < REACH_SECONDS + 1
