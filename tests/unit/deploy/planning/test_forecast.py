"""Two real versions asked in processes of their own: nothing changes, answers change, clients break."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result

from deploy.cli import cli
from deploy.errors import RehearsalFailed
from deploy.node.desired import serve
from deploy.planning.forecast import (
    BREAKING,
    CHANGED,
    SAFE,
    Asked,
    Forecast,
    Places,
    Question,
    ask_both,
    clear_scratch,
    forecast,
)
from deploy.planning.markdown import markdown
from deploy.planning.rehearsal import rehearse, unpack_release
from deploy.rollout.record import Release
from deploy.settings import Settings
from handlers.captured import CapturedRequest, Segments
from handlers.protocol import oip_json
from handlers.tensors import Tensor
from model_store.archive import archive_name
from model_store.errors import ArchiveMissing, ArchiveRefused
from model_store.signing import create_key, load_trusted
from tests.unit.deploy.planning.tiny_versions import MODEL, ROWS, SCHEMA, Late, make

NOW = 1_800_000_000.0
DELAYS = (0, 11, 12.4, 900, float("nan"))
"""Of the captured requests. The champion itself refuses the last."""
CARRIER = "seen | by\nnobody"


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Release]]:
    """The directory of the archives, and the releases: `retrained` answers 3 of 20 golden rows otherwise."""
    directory = tmp_path_factory.mktemp("archives")
    create_key(directory / "signing.pem", directory / "trust")
    made = {
        "champion": make(directory, 1, Late(10)),
        "retrained": make(directory, 2, Late(13)),
        "narrow": make(directory, 3, Late(10), replace(SCHEMA, numbers=SCHEMA.numbers[:1])),
        "raising": make(directory, 4, Late(10, limit=ROWS)),
    }
    return directory, made


Compare = Callable[..., Forecast]


@pytest.fixture(scope="module")
def compared(versions: tuple[Path, dict[str, Release]], tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """A function that compares one of the versions with the champion. Each is asked once, for all tests."""
    directory, made = versions
    state = tmp_path_factory.mktemp("state")
    capture(state, *DELAYS)
    known: dict[str, Asked] = {}

    def comparing(candidate: str, **changed: Any) -> Forecast:
        given = {"requests": 100, "max_changed": 0.05, **changed}
        question = Question(MODEL, made["champion"], made[candidate], **given)
        if candidate not in known:
            known[candidate] = ask_both(question, places(directory, state), NOW)
            assert list((state / "plans").iterdir()) == []
        return forecast(question, known[candidate])

    return comparing


def places(directory: Path, state: Path) -> Places:
    return Places(
        directory, load_trusted(directory / "trust"), Segments(state / "capture", 2**20, 3600.0), state / "plans"
    )


def capture(state: Path, *delays: float) -> None:
    """Requests of one row each, as a worker keeps them where wind is masked."""
    with os.fdopen(places(state, state).captured.create(MODEL, NOW - 10), "wb") as file:
        for number, delay in enumerate(delays):
            tensors = [
                Tensor("delay", "FP32", (1,), np.array([delay], np.float32)),
                Tensor("wind", "FP32", (1,), np.array([2.5], np.float32)),
                Tensor("carrier", "BYTES", (1,), [CARRIER.encode()]),
            ]
            body, length = oip_json.encode_request(tensors)
            request = CapturedRequest(f"id-{number}", 1, NOW - number, "oip_grpc", ("wind",), length, body)
            file.write(request.to_bytes())


def test_same_version_changes_nothing(compared: Compare) -> None:
    found = compared("champion", max_changed=0.0)
    assert (found.exit_code, found.words) == (SAFE, "safe, as far as these requests tell")
    captured, golden = found.sources
    assert (golden.name, golden.requests, golden.rows, golden.changed) == ("golden", ROWS, ROWS, 0)
    assert golden.largest_difference == 0
    # What the champion refuses itself is nothing that the candidate could lose.
    assert (captured.requests, captured.rows, captured.unanswered, captured.refused) == (5, 4, 1, 0)
    assert found.worst == ()
    for cost in (found.champion_cost, found.candidate_cost):
        assert 0 < cost.alone_p50_ms <= cost.alone_p95_ms < 10_000
        assert 0 < cost.batch_p50_ms < 10_000
        assert 50 < cost.peak_mib < 10_000


def test_retrained_version_changes_some_answers(compared: Compare) -> None:
    found = compared("retrained")
    assert found.exit_code == CHANGED
    assert found.changes.breaking == ()
    captured, golden = found.sources
    assert (captured.rows, captured.changed, golden.changed) == (4, 2, 3)
    assert captured.largest_difference == pytest.approx(0.635, abs=0.001)
    assert {row.id for row in found.worst[:5]} == {"id-1", "id-2", "golden-10", "golden-11", "golden-12"}
    first = found.worst[0]
    assert (first.id, first.row, first.before, first.after) == ("id-1", 0, "yes (0.818 of yes)", "no (0.182 of yes)")
    assert "50.0% of the answers to captured requests change; 5.0% may" in found.words
    assert compared("retrained", max_changed=0.5).exit_code == SAFE


def test_inputs_are_shown_only_when_asked_for_and_never_where_masked(compared: Compare) -> None:
    hidden, shown = (compared("retrained", show_inputs=show) for show in (False, True))
    assert "nobody" not in markdown(hidden) + json.dumps(hidden.as_dict())
    assert shown.worst[0].inputs == {"delay": "11.0", "carrier": r"'seen | by\nnobody'"}
    assert r"carrier='seen \| by\nnobody'" in markdown(shown)


def test_removed_column_breaks_clients(compared: Compare) -> None:
    found = compared("narrow")
    assert found.exit_code == BREAKING
    assert found.changes.breaking == ("input wind is removed: requests with it are refused",)
    captured, golden = found.sources
    assert (golden.refused, golden.failed, golden.changed) == (ROWS, 0, ROWS)
    assert golden.reasons == ("columns: unknown 'wind'; allowed: delay, carrier",)
    assert (captured.refused, captured.reasons) == (4, ())
    assert found.worst[0].after == "no answer"
    # What is allowed is still told, and what is lost still counts.
    allowed = compared("narrow", allow_breaking=True)
    assert (allowed.exit_code, allowed.changes) == (CHANGED, found.changes)


def test_version_that_fails_on_a_request_is_not_safe(compared: Compare) -> None:
    found = compared("raising", max_changed=0.5)
    assert found.exit_code == CHANGED
    captured = found.sources[0]
    assert (captured.failed, captured.changed, captured.refused) == (1, 1, 0)
    assert found.reasons == ["1 of 5 captured requests are answered by the champion alone"]


def test_forecast_is_json_and_markdown(compared: Compare) -> None:
    found = compared("retrained")
    document = json.loads(json.dumps(found.as_dict()))
    assert (document["verdict"], document["exit_code"]) == ("answers change", CHANGED)
    assert document["sources"][0]["share"] == 0.5
    text = markdown(found)
    assert text.startswith("## tiny: version 2 in place of version 1\n\n**Not safe: 50.0% of the answers")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 10
    assert all(line.endswith(" |") for line in tables)


def test_altered_or_missing_archive_is_not_run(versions: tuple[Path, dict[str, Release]], tmp_path: Path) -> None:
    directory, made = versions
    champion = made["champion"]
    missing = Release(version=9, digest=champion.digest)
    with pytest.raises(ArchiveMissing):
        ask_both(Question(MODEL, champion, missing, 0, 0.05), places(directory, tmp_path), NOW)
    other = tmp_path / "archives"
    other.mkdir()
    create_key(other / "signing.pem", other / "trust")
    alone = make(other, 1, Late(10))
    with (other / archive_name(MODEL, 1, alone.digest)).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArchiveRefused):
        ask_both(Question(MODEL, alone, alone, 0, 0.05), places(other, tmp_path), NOW)


def test_version_that_cannot_be_opened_says_why(versions: tuple[Path, dict[str, Release]], tmp_path: Path) -> None:
    directory, made = versions
    good, bad = (tmp_path / name for name in ("good", "bad"))
    for each in (good, bad):
        each.mkdir()
    one, other = (
        unpack_release(directory, load_trusted(directory / "trust"), MODEL, made["champion"], each)
        for each in (good, bad)
    )
    (other.directory / "schema.json").write_text("{}")
    with pytest.raises(RehearsalFailed, match=r"version 1 was not asked to the end: (?s:.*)schema\.json"):
        asyncio.run(rehearse(MODEL, one, other, [], tmp_path))


def test_killed_command_leaves_no_process_and_the_next_no_files(
    versions: tuple[Path, dict[str, Release]], tmp_path: Path
) -> None:
    directory, _ = versions
    given = {"state_dir": tmp_path, "archives_dir": directory, "trust_dir": directory / "trust"}
    environment = {**os.environ, **Settings.model_validate(given).as_environment()}
    command = [sys.executable, "-m", "deploy.cli", "plan", MODEL, "2", "--against", "1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as killed:
        deadline = time.monotonic() + 60
        while len(children := psutil.Process(killed.pid).children()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        killed.kill()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    (left,) = (tmp_path / "plans").iterdir()
    assert {path.name for path in left.iterdir()} == {"champion", "candidate", "champion.log", "candidate.log"}
    clear_scratch(tmp_path / "plans")
    assert list((tmp_path / "plans").iterdir()) == []


def run(settings: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", MODEL, *arguments], env=settings.as_environment())


def test_command_compares_with_what_is_served_and_says_so_by_its_exit_code(
    versions: tuple[Path, dict[str, Release]], tmp_path: Path
) -> None:
    directory, made = versions
    given = {"state_dir": tmp_path / "state", "archives_dir": directory, "trust_dir": directory / "trust"}
    settings = Settings.model_validate(given)
    assert "name one to compare with: --against VERSION" in str(run(settings, "2").exception)
    serve(settings.desired_file, MODEL, 1, made["champion"].digest)
    changed = run(settings, "2", "--json")
    assert changed.exit_code == CHANGED, changed.output
    assert json.loads(changed.output)["question"]["champion"]["version"] == 1
    breaking = run(settings, "3", "--against", "2")
    assert breaking.exit_code == BREAKING
    assert breaking.output.startswith("## tiny: version 3 in place of version 2\n")
    assert breaking.output.endswith(" |\n")
    wrong = run(settings, "latest")
    assert wrong.exit_code == 2
    assert "'latest' is neither a version" in wrong.output
