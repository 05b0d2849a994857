"""What helm 3 and 4 are told, and how they are read: a program stands in for them that writes down its command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.errors import HelmFailed, HelmMissing, ReleaseMissing
from deploy.kubernetes import helm
from deploy.kubernetes.helm import Helm, Work
from tests.waiting import wait_for

WHERE = ["--namespace", "team", "--kube-context", "desk"]
SCRIPT = """\
#!/usr/bin/python3
import json, os, signal, sys, time
here = os.path.dirname(os.path.abspath(__file__))
says = json.load(open(here + "/says.json"))
answer = says.get(" ".join(sys.argv[1:3])) or says.get(sys.argv[1], {})
if os.path.exists(here + "/told"):
    answer = answer.get("then", answer)
told = "" if answer.get("deaf") else sys.stdin.read()
with open(here + "/told", "a") as calls:
    calls.write(json.dumps({"words": sys.argv[1:], "told": told, "environment": dict(os.environ)}) + "\\n")
if answer.get("deaf to SIGTERM"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(answer.get("out", ""), end="", flush=True)
time.sleep(answer.get("seconds", 0))
print(answer.get("error", ""), end="", file=sys.stderr)
sys.exit(answer.get("code", 0))
"""
COMMAND = """
import sys, time
from pathlib import Path
from deploy.kubernetes.helm import Helm
work = Helm(Path(sys.argv[1]), 3, "flights", "team", None).rollback(1, 60)
print(work._process.pid, flush=True)
time.sleep(60)
"""
HISTORY_3 = """\
[{"revision":2,"updated":"2026-11-24T10:02:03.123456789Z","status":"deployed","chart":"shipway-0.1.0",\
"app_version":"0.1.0","description":"flights version 2 sha256:2"},\
{"revision":1,"updated":"2026-11-24T11:00:00+01:00","status":"superseded","chart":"shipway-0.1.0",\
"app_version":"0.1.0","description":"Install complete"}]
"""
HISTORY_4 = HISTORY_3.replace('"app_version"', '"rollback_revision":1,"app_version"')


@dataclass
class Stand:
    """In place of helm."""

    directory: Path

    def says(self, **answers: Mapping[str, Any]) -> None:
        """What it answers to a command (`get_values` to both words of `get values`)."""
        told = {command.replace("_", " "): dict(answer) for command, answer in answers.items()}
        (self.directory / "says.json").write_text(json.dumps(told))

    @property
    def program(self) -> Path:
        return self.directory / "helm"

    @property
    def calls(self) -> list[dict[str, Any]]:
        """All of it, call by call."""
        told = self.directory / "told"
        return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []

    def helm(self, major: int = 3, context: str | None = "desk") -> Helm:
        return Helm(self.program, major, "flights", "team", context)


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    made = Stand(tmp_path)
    made.program.write_text(SCRIPT)
    made.program.chmod(0o755)
    made.says()
    return made


@pytest.fixture
def started() -> Iterator[Callable[[Work], Work]]:
    """A function that has a helm at work end with the test at the latest."""
    with ExitStack() as stack:

        def ends(work: Work) -> Work:
            stack.callback(lambda: work.done() or work.end())
            return work

        yield ends


@pytest.mark.parametrize(
    ("version", "major"),
    [("v3.14.0", 3), ("v3.17.2", 3), ("v4.1.4", 4), ("v4.0.0-rc.1", 4), ("3.20.1+g12", 3), ("v4.3", 4)],
)
def test_helm_3_and_4_are_found(stand: Stand, version: str, major: int) -> None:
    stand.says(version={"out": version})
    assert Helm.found(str(stand.program), "flights", "team", None).major == major
    assert stand.calls[0]["words"] == ["version", "--template", "{{.Version}}"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"out": "v3.13.3"}, "it says version v3.13.3"),
        ({"out": "v2.17.0"}, "it says version v2.17.0"),
        ({"out": "v5.0.0"}, "it says version v5.0.0"),
        ({"out": ""}, "it says version nothing"),
        ({"out": "Helm, a text editor"}, "it says version Helm, a text editor"),
        ({"error": "Error: unknown flag: --template", "code": 1}, "unknown flag: --template"),
    ],
)
def test_other_programs_are_none(stand: Stand, answer: dict[str, Any], words: str) -> None:
    stand.says(version=answer)
    with pytest.raises(HelmMissing, match=f"is no usable helm: {words}. Wanted is Helm 3 .3.14 or newer. or Helm 4"):
        Helm.found(str(stand.program), "flights", "team", None)


def test_no_program_is_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HelmMissing, match=r"there is no such program on the PATH.*SHIPWAY_HELM"):
        Helm.found(str(tmp_path / "helm"), "flights", "team", None)
    script = tmp_path / "helm"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HelmMissing, match="No such file"):
        Helm.found("helm", "flights", "team", None)


@pytest.mark.parametrize(("major", "said"), [(3, HISTORY_3), (4, HISTORY_4)])
def test_the_history_is_read_oldest_first(stand: Stand, major: int, said: str) -> None:
    stand.says(history={"out": said})
    found = stand.helm(major).history()
    assert [(one.revision, one.status, one.description) for one in found] == [
        (1, "superseded", "Install complete"),
        (2, "deployed", "flights version 2 sha256:2"),
    ]
    assert (found[1].updated - found[0].updated).total_seconds() == pytest.approx(123.123456)
    assert stand.calls[0]["words"] == ["history", "flights", "--output", "json", "--max", "25", *WHERE]


@pytest.mark.parametrize(
    ("status", "good", "pending"),
    [
        ("deployed", True, False),
        ("superseded", True, False),
        ("failed", False, False),
        ("uninstalling", False, False),
        ("pending-install", False, True),
        ("pending-upgrade", False, True),
        ("pending-rollback", False, True),
    ],
)
def test_a_status_says_how_a_revision_ended(stand: Stand, status: str, *, good: bool, pending: bool) -> None:
    stand.says(history={"out": HISTORY_3.replace("deployed", status)})
    assert (stand.helm().history()[-1].good, stand.helm().history()[-1].pending) == (good, pending)


def test_a_release_that_helm_does_not_know_is_missing(stand: Stand) -> None:
    stand.says(history={"error": "Error: release: not found\n", "code": 1})
    with pytest.raises(ReleaseMissing, match=r"team has no release flights .*: helm knows none"):
        stand.helm().history()


def test_something_else_that_is_not_found_is_no_missing_release(stand: Stand) -> None:
    stand.says(history={"error": "Error: exec: executable cloud-auth not found\n", "code": 1})
    with pytest.raises(HelmFailed, match=r"^helm history flights failed: exec: executable cloud-auth not found$"):
        stand.helm().history()


def test_values_are_read_with_and_without_the_charts_own(stand: Stand) -> None:
    stand.says(get_values={"out": '{"model": {"version": 2}}\n'})
    assert stand.helm().values(7) == stand.helm().own_values(7) == {"model": {"version": 2}}
    both = ["get", "values", "flights", "--revision", "7"]
    assert stand.calls[0]["words"] == [*both, "--all", "--output", "json", *WHERE]
    assert stand.calls[1]["words"] == [*both, "--output", "json", *WHERE]


def test_a_release_without_values_of_its_own_has_none(stand: Stand) -> None:
    stand.says(get_values={"out": "null\n"})
    assert stand.helm().own_values(1) == {}


def test_a_chart_is_named_as_a_history_does(stand: Stand, tmp_path: Path) -> None:
    stand.says(show_chart={"out": "apiVersion: v2\nname: shipway\nversion: 0.1.0\n"})
    assert stand.helm().chart(tmp_path / "chart") == "shipway-0.1.0"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": "WARNING: old\nError: Kubernetes is away\n", "code": 1}, "Kubernetes is away"),
        ({"error": "panic: nil map", "code": 2}, "panic: nil map"),
        ({"code": 1}, "it said nothing"),
    ],
)
def test_what_helm_cannot_read_is_said_in_its_words(stand: Stand, answer: dict[str, Any], words: str) -> None:
    stand.says(get_values=answer)
    with pytest.raises(HelmFailed, match=f"^helm get values failed: {words}$"):
        stand.helm().values(1)


def test_a_helm_that_hangs_is_not_waited_for_for_ever(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm, "_READ_WITHIN_SECONDS", 0.5)
    stand.says(get_values={"seconds": 60})
    with pytest.raises(HelmFailed, match="timed out"):
        stand.helm().values(1)


def test_an_api_server_that_is_away_is_waited_for(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm, "_PAUSE_SECONDS", 0.01)
    away = {"error": "Error: Kubernetes cluster unreachable: connection refused\n", "code": 1}
    stand.says(history={**away, "then": {"out": HISTORY_3}})
    assert len(stand.helm().history()) == len(stand.calls) == 2
    monkeypatch.setattr(helm, "PATIENCE_SECONDS", -1.0)
    stand.says(history=away)
    with pytest.raises(HelmFailed, match="connection refused"):
        stand.helm().history()


def test_an_upgrade_is_told_values_and_waits(stand: Stand, started: Callable[[Work], Work], tmp_path: Path) -> None:
    work = started(stand.helm().upgrade(tmp_path, {"model": {"version": 2}}, "flights version 2", 240.4))
    assert end(work) == ""
    call = stand.calls[0]
    assert json.loads(call["told"]) == {"model": {"version": 2}}
    command = ["upgrade", "flights", str(tmp_path), "--reset-values", "--values", "-"]
    waits = ["--wait", "--timeout", "240s", "--history-max", "20"]
    assert call["words"] == [*command, "--description", "flights version 2", *waits, *WHERE]


@pytest.mark.parametrize(
    ("major", "applied", "forced"),
    [(3, "ssa", []), (4, "ssa", ["--force-conflicts"]), (4, "csa", []), (4, None, [])],
)
def test_a_rollback_takes_fields_that_somebody_else_set(
    stand: Stand, started: Callable[[Work], Work], major: int, applied: str | None, forced: list[str]
) -> None:
    stand.says(get_metadata={"out": json.dumps({"name": "flights", "applyMethod": applied})})
    end(started(stand.helm(major).rollback(3, 60)))
    words = ["rollback", "flights", "3", "--wait", "--timeout", "60s", "--history-max", "20"]
    assert stand.calls[-1]["words"] == [*words, *forced, *WHERE]


def test_helm_looks_where_we_do_and_nowhere_else(
    stand: Stand, started: Callable[[Work], Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HELM_KUBECONTEXT", "HELM_KUBEAPISERVER", "HELM_KUBETOKEN", "HELM_NAMESPACE", "HELM_DEBUG"):
        monkeypatch.setenv(name, "elsewhere")
    for name in ("HELM_DRIVER", "KUBECONFIG"):
        monkeypatch.setenv(name, "kept")
    answers = {"history": {"out": "[]"}, "get": {"out": "{}"}, "show": {"out": "{name: a, version: 1}"}}
    stand.says(**answers)
    found = stand.helm(4)
    found.history()
    found.values(1)
    found.own_values(1)
    found.chart(tmp_path)
    end(started(found.upgrade(tmp_path, {}, "", 60)))
    end(started(found.rollback(1, 60)))
    assert len(stand.calls) == 7
    for call in stand.calls:
        assert call["words"][-4:] == WHERE
        assert not {"--force", "--force-replace", "--atomic", "--rollback-on-failure"} & set(call["words"])
        assert "elsewhere" not in call["environment"].values()
        assert (call["environment"]["HELM_DRIVER"], call["environment"]["KUBECONFIG"]) == ("kept", "kept")


def test_in_a_pod_there_is_no_context(stand: Stand) -> None:
    stand.says(history={"out": "[]"})
    stand.helm(context=None).history()
    assert stand.calls[0]["words"][-2:] == ["--namespace", "team"]


def test_a_helm_at_work_ends_when_told(stand: Stand, started: Callable[[Work], Work]) -> None:
    stand.says(rollback={"seconds": 60, "out": "at work\n"})
    work = started(stand.helm().rollback(1, 60))
    wait_for(lambda: stand.calls, 60)
    assert not work.done()
    assert work.end() == "helm: at work (ended by signal 15)"
    assert work.done()


def test_one_that_does_not_hear_it_is_killed(
    stand: Stand, started: Callable[[Work], Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helm, "_ENDS_WITHIN_SECONDS", 0.2)
    stand.says(rollback={"seconds": 60, "deaf to SIGTERM": True, "out": "deaf\n"})
    work = started(stand.helm().rollback(1, 60))
    wait_for(lambda: b"deaf" in _output(work), 60)
    assert work.end() == "helm: deaf (ended by signal 9)"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"out": "Release has been upgraded\n"}, ""),
        (
            {"out": "warning\n", "error": "Error: UPGRADE FAILED: timed out\n\n", "code": 1},
            "helm: UPGRADE FAILED: timed out",
        ),
        ({"code": 1}, "helm said nothing"),
    ],
)
def test_a_helm_that_has_ended_says_why(
    stand: Stand, started: Callable[[Work], Work], answer: dict[str, Any], words: str
) -> None:
    stand.says(rollback=answer)
    work = started(stand.helm().rollback(1, 60))
    assert end(work) == words


def test_values_that_helm_does_not_read_keep_nobody_waiting(
    stand: Stand, started: Callable[[Work], Work], tmp_path: Path
) -> None:
    stand.says(upgrade={"deaf": True, "error": "Error: no such chart\n", "code": 1})
    work = started(stand.helm().upgrade(tmp_path, {"model": "x" * 1_000_000}, "", 60))
    assert end(work) == "helm: no such chart"


def test_a_helm_that_has_gone_meanwhile_is_said_in_words(stand: Stand) -> None:
    found = stand.helm()
    stand.program.unlink()
    with pytest.raises(HelmFailed, match="No such file"):
        found.rollback(1, 60)


def test_a_terminals_ctrl_c_is_not_for_helm(stand: Stand, started: Callable[[Work], Work]) -> None:
    stand.says(rollback={"seconds": 60})
    work = started(stand.helm().rollback(1, 60))
    assert os.getpgid(work._process.pid) != os.getpgid(0)
    work.end()


def test_a_helm_at_work_dies_with_the_command_that_started_it(stand: Stand) -> None:
    stand.says(rollback={"seconds": 60})
    command = [sys.executable, "-c", COMMAND, str(stand.program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        wait_for(lambda: stand.calls, 60)
        process.kill()
    wait_for(lambda: not psutil.pid_exists(pid), 60)


def end(work: Work) -> str:
    """Of a helm that ends by itself."""
    wait_for(work.done, 60)
    return work.end()


def _output(work: Work) -> bytes:
    return os.pread(work._output.fileno(), 1000, 0)
