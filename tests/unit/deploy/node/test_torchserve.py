"""TorchServe's configuration and command: what closes it, and paths as Java reads them."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.node.layout import Layout
from deploy.node.torchserve import WORKER_START, Options, Ports, command, configuration, free_ports


def options(directory: Path) -> Options:
    return Options(heap_mib=256, max_body_bytes=1000, timeout_seconds=2.5, logs_dir=directory)


def read_properties(text: str) -> dict[str, str]:
    """As `java.util.Properties` does: Latin-1, where a backslash begins an escape."""
    lines = text.encode("latin-1").decode("latin-1").splitlines()
    return {name: unescaped(value) for name, _, value in (line.partition("=") for line in lines)}


def unescaped(value: str) -> str:
    units = value.encode("ascii").decode("unicode_escape").encode("utf-16-be", "surrogatepass")
    return units.decode("utf-16-be")


def test_torchserve_is_closed_to_the_network_and_to_downloads(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    found = read_properties(configuration(layout, Ports(1234, 5678), options(tmp_path)))
    for name in ("inference", "management", "metrics"):
        assert found[f"{name}_address"].startswith(f"unix:{tmp_path}/")
        if name != "metrics":
            assert found[f"grpc_{name}_address"] == "127.0.0.1"
    assert (found["grpc_inference_port"], found["grpc_management_port"]) == ("1234", "5678")
    assert found["allowed_urls"] == "^disabled$"
    assert found["disable_token_authorization"] == "false"
    assert found["install_py_dep_per_model"] == "false"
    assert found["model_store"] == str(layout.store)


def test_bodies_that_the_edge_lets_through_fit(tmp_path: Path) -> None:
    found = read_properties(configuration(Layout(tmp_path), Ports(1, 2), options(tmp_path)))
    assert int(found["max_request_size"]) > 1000
    assert int(found["max_response_size"]) > 1000
    assert found["default_response_timeout"] == "2"


@pytest.mark.parametrize("name", ["plain", "with space", "jürgen", "日本", "🛫", "back\\slash"])
def test_path_is_what_java_reads(name: str) -> None:
    layout = Layout(Path("/run") / name)
    found = read_properties(configuration(layout, Ports(1, 2), options(Path("/logs"))))
    assert found["model_store"] == f"/run/{name}/store"


@pytest.mark.parametrize(
    ("name", "uri"), [("with space", "with%20space"), ("50%", "50%25"), ("jürgen", "j%C3%BCrgen"), ("a#b", "a%23b")]
)
def test_command_names_the_logging_file_as_a_uri(name: str, uri: str) -> None:
    found = command(Layout(Path("/run") / name), options(Path("/logs")))
    assert f"-Dlog4j.configurationFile=file:///run/{uri}/ts/log4j2.xml" in found
    assert "-Xmx256m" in found
    assert "-ncs" in found  # no snapshots: desired.json is the only memory


def test_free_ports_differ() -> None:
    assert len(set(free_ports(8))) == 8


def test_a_worker_ends_with_the_jvm_that_started_it() -> None:
    worker = f"{WORKER_START}\ntime.sleep(60)"
    jvm = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {worker!r}]); time.sleep(1)"
    # Its output has an end only when the worker, which holds it too, has ended.
    subprocess.run([sys.executable, "-c", jvm], stdout=subprocess.PIPE, check=True, timeout=30)
