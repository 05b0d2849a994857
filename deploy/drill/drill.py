"""`shipway drill`: each kind of bad version is rolled out, under load, on an endpoint of its own beside the model's.

The endpoint NAME-drill stands on the same node, is judged by the same policy and Prometheus, and begins with a copy of
the model's champion. So nobody who depends on the model is harmed, and no version of a drill is ever taken for one of
the model's: none is registered, each is signed for the other name, and the ledger is one of the drill's own.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.caller import caller
from deploy.drill.exercises import Outcome, expected, harm
from deploy.drill.load import Load, rows_of
from deploy.errors import DrillRuns, LoadFailed, NotServed
from deploy.rollout import here
from deploy.rollout.driver import Local
from deploy.rollout.endpoint import Endpoint
from deploy.rollout.ledger import Ledger
from deploy.rollout.machine import Traffic
from deploy.rollout.policy import Policy
from deploy.rollout.record import Release
from deploy.rollout.run import Tell
from deploy.settings import Settings
from model_store.archive import archive_name, pack, read_members, signature_path, verify_archive
from model_store.faulty import KINDS, members_of_kind
from model_store.golden import GOLDEN
from model_store.profiling import PROFILE
from model_store.signing import load_trusted
from monitoring.profile import Profile

SUFFIX = "-drill"
GONE_WITHIN_SECONDS = 60.0
POLL_SECONDS = 0.1
FIRST, GOOD = 1, "good"
LABELLED = ("wrong",)
"""Kinds in whose exercise the users tell what really happened."""


@dataclass(frozen=True)
class Range:
    """Where a drill takes place: an endpoint of its own, which serves a copy of the champion, under load."""

    endpoint: Endpoint
    policy: Policy
    load: Load
    releases: dict[str, Release]
    """By kind."""

    @property
    def kinds(self) -> list[str]:
        return list(self.releases)

    def exercise(self, kind: str) -> Outcome:
        """Roll a version of this kind out, and take back what is held or promoted: the next one meets the same."""
        endpoint, started = self.endpoint, time.monotonic()
        with self.load.labelling(kind in LABELLED):
            entry = endpoint.roll_out(self.releases[kind])
        seconds = time.monotonic() - started
        entries = [one for one in endpoint.ledger.entries() if one.rollout == entry.rollout]
        found = harm(self.load.seen(entries[0].at), entries, self.policy)
        if entry.state in ("HELD", "PROMOTED"):
            endpoint.roll_back()
        verdicts = [one.verdict for one in entries if one.verdict]
        return Outcome(kind, expected(kind, self.policy), entry, verdicts[-1] if verdicts else None, found, seconds)


@contextlib.contextmanager
def prepared(settings: Settings, model: str, only: Sequence[str], rate: float, tell: Tell) -> Iterator[Range]:
    """A drill's range; afterwards nothing of it is left but its ledger.

    `only` these kinds, or all that make sense for the champion where none is named; `rate` is the users' requests a
    second.

    Raises:
        NotServed: the model is not in service, so there is nothing to make bad versions of.
        DrillRuns: another process is at it.
        LoadFailed: the node does not take the copy of the champion.
        ModelStoreError: the champion's archive is not what it should be, or its like cannot be made.
    """
    name, directory = model + SUFFIX, settings.state_dir / "drill"
    with _alone(directory / f"{name}.drill", model):
        members = champion_members(settings, model)
        classes = Profile.from_json(members[PROFILE]).classes
        kinds = dict.fromkeys(only) or [name for name, kind in KINDS.items() if classes or not kind.needs_classes]
        policy = _policy(settings, model)
        endpoint = replace(
            here.endpoint(settings, name, tell=tell, policy=policy),
            ledger=_new_ledger(directory, name),
            locks_dir=directory,
        )
        _out_of_service(endpoint)  # of a drill that was killed
        with _packed(settings, name, members, [GOOD, *kinds]) as (champion, *releases):
            try:
                first = endpoint.roll_out(champion)
                if first.state != "PROMOTED":
                    raise LoadFailed(f"{name}: {first.words}")
                with Load(caller(settings), name, rows_of(members[GOLDEN], classes), rate) as load:
                    yield Range(endpoint, policy, load, dict(zip(kinds, releases, strict=True)))
            finally:
                _out_of_service(endpoint)


def champion_members(settings: Settings, model: str) -> dict[str, bytes]:
    """What the archive holds of the version that has most of the model's traffic, once it is verified.

    Raises NotServed, ArchiveMissing or ArchiveRefused.
    """
    champion = Local(settings.desired_file, settings.actual_file).serving(model).champion
    if champion is None:
        raise NotServed(model)
    archive = settings.archives_dir / archive_name(model, champion.version, champion.digest)
    # Its handler is executed.
    verify_archive(archive, model, champion.version, champion.digest, load_trusted(settings.trust_dir))
    return read_members(archive)


@contextlib.contextmanager
def _packed(settings: Settings, name: str, members: dict[str, bytes], kinds: Sequence[str]) -> Iterator[list[Release]]:
    """An archive of each kind, the first as version FIRST; removed afterwards."""
    made: list[Path] = []
    releases = []
    try:
        for version, kind in enumerate(kinds, start=FIRST):
            packed = members_of_kind(members, kind, name, version)
            archive, digest = pack(packed, name, version, settings.archives_dir, settings.signing_key)
            made.append(archive)
            releases.append(Release(version=version, digest=digest))
        yield releases
    finally:
        for archive in made:
            signature_path(archive).unlink(missing_ok=True)
            archive.unlink(missing_ok=True)


def _policy(settings: Settings, model: str) -> Policy:
    """The model's own. Of its inputs a drill's users know few, and ask with them over and over: they always drift."""
    policy = here.endpoint(settings, model).read_policy()
    return policy.model_copy(update={"on_input_drift": "nothing"})


def _new_ledger(directory: Path, name: str) -> Ledger:
    for path in directory.glob(f"{name}.db*"):
        path.unlink()
    return Ledger(directory, name)


def _out_of_service(endpoint: Endpoint) -> None:
    nothing = Traffic(serving=None)
    endpoint.driver.ask(endpoint.model, nothing)
    deadline = time.monotonic() + GONE_WITHIN_SECONDS
    while not endpoint.driver.reached(endpoint.model, nothing):
        if time.monotonic() > deadline:
            raise LoadFailed(
                f"{endpoint.model} did not go out of service in {GONE_WITHIN_SECONDS:g} s; see: shipway status"
            )
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _alone(path: Path, model: str) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DrillRuns(model) from error
        yield
