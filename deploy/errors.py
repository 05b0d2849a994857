"""What can go wrong on the way from an archive to traffic, as one tree.

    ShipwayError
    ├── InvalidSettings         a SHIPWAY_* variable that does not exist, or a value that is not allowed
    ├── NotPackaged             no archive of the version that should be served
    ├── NotFetched              an archive that the registry has is not on this machine
    ├── DeploymentExists        a deployment that should be made is there already
    ├── DeploymentMissing       no such deployment
    ├── DeploymentRefused       what is asked of a deployment does not fit it
    ├── NotPromoted             a version was held or taken back on its way to a deployment
    ├── NotAnswered             the node gave no prediction where it should have
    ├── PrometheusUnreachable   no Prometheus answers at that address
    ├── QueryRefused            Prometheus would not evaluate a query
    ├── NoData                  Prometheus has nothing to compute an answer from
    ├── RolloutError            a version could not be moved to, or away from
    │   ├── LedgerUnusable      the record of rollouts cannot be read or written
    │   ├── AlertsRefused       a message that is not Alertmanager's
    │   ├── PolicyInvalid       the file of steps and limits says what is not allowed
    │   ├── RolloutUnfinished   the endpoint takes no second rollout before the first has ended
    │   ├── RolloutRuns         another process carries out the endpoint's rollout
    │   ├── NothingToResume     the endpoint's last rollout has ended
    │   ├── AlreadyServes       the version has the traffic already
    │   ├── BreaksClients       clients could not ask the version as they ask the one that serves
    │   ├── NoGoodVersion       the ledger knows no version to go back to
    │   ├── RollbackFailed      the version to go back to could not be had
    │   ├── TakenOver           somebody else has taken the rollout in hand meanwhile
    │   ├── LeftUnfinished      this process was told to end, and leaves the rollout as it is
    │   ├── NotServed           a model has no version in service to go by
    │   ├── DrillRuns           another process drills the same model
    │   └── RehearsalFailed     a version did not answer in a process of its own
    ├── ReleaseError            a Helm release, or the cluster that it is in
    │   ├── HelmMissing         no usable helm program
    │   ├── HelmFailed          helm did not do what it was told
    │   ├── ClusterUnusable     the Kubernetes API does not answer, or refuses
    │   ├── ReleaseMissing      no such release, or none of our chart
    │   ├── ReleaseServesOther  the release serves another model
    │   ├── ReleasePending      another helm is at work on the release, or was killed
    │   ├── ReleaseUnsuited     what is asked does not fit the release
    │   └── ReleaseAmbiguous    what the release serves cannot be adopted
    ├── StackError              the programs that `shipway up` runs
    │   ├── SocketPathTooLong   the run directory leaves no room for a socket's name
    │   ├── PortTaken           another process listens where one of our programs should
    │   ├── ProgramMissing      a program that is not a Python package is not installed
    │   ├── ProgramFailed       one of our programs did not start, or did not answer in time
    │   ├── SettingsChanged     the stack runs with other settings than those given now
    │   └── StackBusy           another `shipway up` or `shipway down` is at work on the same state directory
    └── NodeError               the node cannot go on
        ├── NodeRuns            another node uses the same run directory
        ├── StateFileInvalid    desired.json or actual.json is not what it should be
        ├── EdgeFileInvalid     a file of certificates, keys or clients is not what it should be
        ├── StoreUnavailable    predictions and their labels cannot be kept or looked up now
        ├── LoadFailed          a version could not be brought into service
        ├── GoldenFailed        this hardware does not reproduce the version's golden outputs
        └── ExplainerFailed     a version cannot be explained

None of them knows about HTTP or the terminal; `deploy.cli.main` is the one place that prints them.
"""

from collections.abc import Sequence
from pathlib import Path


class ShipwayError(Exception):
    """The root: whatever a person can put right is a subclass, and its message says how."""


class InvalidSettings(ShipwayError):
    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("the settings are not usable:\n" + "\n".join(f"  {problem}" for problem in problems))


class NotPackaged(ShipwayError):
    def __init__(self, archives_dir: Path, model: str, version: int, packaged: list[tuple[str, int]]) -> None:
        self.model = model
        self.version = version
        self.packaged = packaged
        found = ", ".join(f"{name} {number}" for name, number in packaged) or "nothing"
        super().__init__(
            f"{archives_dir} has no archive of {model} version {version}; found {found}. "
            f"Make it: shipway package models:/{model}/{version}"
        )


class NotFetched(ShipwayError):
    def __init__(self, archives_dir: Path, model: str, version: int, digest: str) -> None:
        self.model = model
        self.version = version
        self.digest = digest
        super().__init__(
            f"{archives_dir} lacks the archive {digest} of {model} version {version}, which the registry has. "
            f"Fetch it: shipway fetch {model} {version} {digest}"
        )


class DeploymentExists(ShipwayError):
    def __init__(self, name: str, versions: list[int]) -> None:
        self.name = name
        found = ", ".join(map(str, versions))
        super().__init__(f"a deployment {name} exists already, with version {found}; update it instead, or delete it")


class DeploymentMissing(ShipwayError):
    def __init__(self, name: str, known: list[str]) -> None:
        self.name = name
        super().__init__(f"there is no deployment {name}; there is {', '.join(known) or 'none at all'}")


class DeploymentRefused(ShipwayError):
    def __init__(self, what: str, found: str, allowed: str) -> None:
        super().__init__(f"{what} is not usable: found {found}; allowed is {allowed}")


class NotPromoted(ShipwayError):
    def __init__(self, name: str, version: int, state: str, words: str) -> None:
        self.state = state
        remedy = (
            f". The traffic stays as it is: judge on with `shipway rollout {name} --resume`, "
            f"or take it back with `shipway rollback {name}`"
            if state == "HELD"
            else ""
        )
        super().__init__(f"version {version} of {name} is {state}, and not promoted: {words}{remedy}")


class NotAnswered(ShipwayError):
    def __init__(self, asked: str, found: str) -> None:
        self.asked = asked
        self.found = found
        super().__init__(f"{asked} was not answered with a prediction: {found}")


class PrometheusUnreachable(ShipwayError):
    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(
            f"no Prometheus answers at {url}: {reason}. Start the local one with: shipway up; "
            "or name another in SHIPWAY_PROMETHEUS_URL"
        )


class QueryRefused(ShipwayError):
    def __init__(self, url: str, query: str, reason: str) -> None:
        self.url = url
        self.query = query
        self.reason = reason
        super().__init__(
            f"the Prometheus at {url} refused the query {query}: {reason}. "
            "Ask it there to see why, or name another Prometheus in SHIPWAY_PROMETHEUS_URL"
        )


class NoData(ShipwayError):
    """Silence is not health: whoever asks must hear that there was nothing to judge."""

    def __init__(self, url: str, wanted: str, window: str, found: str, advice: str) -> None:
        self.url = url
        self.wanted = wanted
        self.window = window
        super().__init__(f"the Prometheus at {url} has no {wanted} in {window}; {found}. {advice}")


class RolloutError(ShipwayError):
    """A version could not be moved to, or away from."""


class LedgerUnusable(RolloutError):
    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"the ledger {path} cannot be used: {reason}")


class AlertsRefused(RolloutError):
    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("this is no message of Alertmanager's webhook, version 4: " + "; ".join(problems))


class PolicyInvalid(RolloutError):
    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        super().__init__(f"{path} is not usable:\n" + "\n".join(f"  {problem}" for problem in problems))


class RolloutUnfinished(RolloutError):
    def __init__(self, model: str, rollout: str, state: str, words: str) -> None:
        self.rollout = rollout
        super().__init__(
            f"the rollout {rollout} of {model} is {state} ({words}), and an endpoint takes one at a time. "
            f"Finish it with: shipway rollout {model} --resume; or take it back with: shipway rollback {model}"
        )


class RolloutRuns(RolloutError):
    def __init__(self, model: str, rollout: str, process: str) -> None:
        self.rollout = rollout
        self.process = process
        super().__init__(
            f"the process {process} carries out the rollout {rollout or 'of ' + model} now. "
            f"Wait for it, or take the rollout back with: shipway rollback {model}"
        )


class NothingToResume(RolloutError):
    def __init__(self, model: str, last: str) -> None:
        super().__init__(f"{model} has no unfinished rollout; {last}. Begin one with: shipway rollout {model} VERSION")


class AlreadyServes(RolloutError):
    def __init__(self, model: str, version: int) -> None:
        super().__init__(f"{model} version {version} has the traffic already; name another version")


class BreaksClients(RolloutError):
    def __init__(self, model: str, version: int, problems: Sequence[str]) -> None:
        self.problems = problems
        super().__init__(
            f"{model} version {version} would break clients:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + f"\nSee what else changes: shipway plan {model} {version}; or roll it out all the same: --allow-breaking"
        )


class NoGoodVersion(RolloutError):
    def __init__(self, model: str, current: int | None) -> None:
        serving = f"version {current} serves" if current else "it is not in service"
        super().__init__(
            f"the ledger knows no version of {model} that was promoted and not taken back since, other than what has "
            f"the traffic ({serving}). Name one: shipway rollback {model} --to VERSION"
        )


class RollbackFailed(RolloutError):
    def __init__(self, model: str, words: str) -> None:
        super().__init__(f"{model} was not rolled back; {words}. Name another version: --to VERSION")


class TakenOver(RolloutError):
    def __init__(self, rollout: str, who: str, state: str, words: str) -> None:
        self.rollout = rollout
        self.who = who
        super().__init__(f"{who} has taken the rollout {rollout} in hand: it is {state} now ({words})")


class LeftUnfinished(RolloutError):
    def __init__(self, model: str, rollout: str, state: str) -> None:
        self.rollout = rollout
        super().__init__(
            f"told to end: the rollout {rollout} stays {state} and the traffic as it is. "
            f"Go on with: shipway rollout {model} --resume; or take it back with: shipway rollback {model}"
        )


class NotServed(RolloutError):
    def __init__(self, model: str, instead: str = "") -> None:
        self.model = model
        super().__init__(f"no version of {model} is in service; begin with: shipway serve {model} VERSION{instead}")


class DrillRuns(RolloutError):
    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(f"another process drills {model} now; wait for it to end and try again")


class RehearsalFailed(RolloutError):
    def __init__(self, version: int, reason: str, log: str) -> None:
        self.version = version
        self.reason = reason
        tail = "\n".join(f"  | {line}" for line in log.splitlines()[-12:]) or "  | (nothing)"
        super().__init__(f"version {version} was not asked to the end: {reason}. The end of what it said:\n{tail}")


class ReleaseError(ShipwayError):
    """Something about a Helm release, or the cluster that it is in."""


class HelmMissing(ReleaseError):
    def __init__(self, program: str, found: str) -> None:
        self.program = program
        super().__init__(
            f"{program} is no usable helm: {found}. Wanted is Helm 3 (3.14 or newer) or Helm 4; "
            "install one, or name it in SHIPWAY_HELM"
        )


class HelmFailed(ReleaseError):
    def __init__(self, command: str, words: str) -> None:
        self.command = command
        self.words = words
        super().__init__(f"{command} failed: {words}")


class ClusterUnusable(ReleaseError):
    def __init__(self, asked: str, reason: str) -> None:
        self.asked = asked
        super().__init__(
            f"the Kubernetes API did not do it ({asked}): {reason}. It is found as kubectl finds it: by KUBECONFIG and "
            "the current context"
        )


class ReleaseMissing(ReleaseError):
    def __init__(self, release: str, namespace: str, found: str) -> None:
        self.release = release
        super().__init__(
            f"the namespace {namespace} has no release {release} of the chart shipway: {found}. Install it first: "
            f"helm install {release} CHART --namespace {namespace} --values VALUES; or name another with --release and "
            "--namespace (SHIPWAY_HELM_RELEASE, SHIPWAY_HELM_NAMESPACE)"
        )


class ReleaseServesOther(ReleaseError):
    def __init__(self, release: str, found: str, asked: str) -> None:
        super().__init__(f"the release {release} serves the model {found}, and not {asked}; a release has one endpoint")


class ReleasePending(ReleaseError):
    def __init__(self, release: str, status: str, model: str) -> None:
        self.status = status
        super().__init__(
            f"the release {release} is {status}: another helm is at work on it, or was killed. If none is at work, "
            f"give it back its last good state: shipway rollback {model} --yes"
        )


class ReleaseUnsuited(ReleaseError):
    def __init__(self, release: str, problem: str, remedy: str) -> None:
        super().__init__(f"the release {release} {problem}; {remedy}")


class ReleaseAmbiguous(ReleaseError):
    def __init__(self, release: str, found: str, ledger: str, model: str) -> None:
        super().__init__(
            f"the release {release} has {found}, and the ledger says {ledger}: which of them is meant is not to be "
            f"guessed. Go back to the last good version: shipway rollback {model}"
        )


class StackError(ShipwayError):
    """Something about the programs that `shipway up` runs."""


class SocketPathTooLong(StackError):
    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        super().__init__(
            f"the path of the socket {path} has {len(str(path).encode())} bytes; the operating system allows "
            f"{limit_bytes}. Set SHIPWAY_RUN_DIR (or SHIPWAY_STATE_DIR) to a shorter directory, such as /tmp/shipway."
        )


class PortTaken(StackError):
    def __init__(self, host: str, port: int, setting: str, holder: str) -> None:
        self.host = host
        self.port = port
        self.setting = setting
        self.holder = holder
        super().__init__(f"{host}:{port} is taken by {holder}. Stop it, or choose another port with {setting}=<port>.")


class ProgramMissing(StackError):
    def __init__(self, program: str, remedy: str) -> None:
        self.program = program
        super().__init__(f"the program {program!r} is not on the PATH. {remedy}")


class ProgramFailed(StackError):
    def __init__(self, name: str, reason: str, log: Path, last_lines: list[str]) -> None:
        self.name = name
        self.reason = reason
        self.log = log
        tail = "\n".join(f"  | {line}" for line in last_lines) or "  | (empty)"
        super().__init__(f"{name} {reason}. The end of its log, {log}:\n{tail}")


class SettingsChanged(StackError):
    def __init__(self, differences: list[str]) -> None:
        self.differences = differences
        super().__init__(
            "the stack already runs, with other settings:\n"
            + "\n".join(f"  {difference}" for difference in differences)
            + "\nRun `shipway down` first, or give the same settings again."
        )


class StackBusy(StackError):
    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        super().__init__(
            f"another `shipway up` or `shipway down` is at work on {state_dir}. Wait for it to end and try again."
        )


class NodeError(ShipwayError):
    """Something about one serving node."""


class NodeRuns(NodeError):
    def __init__(self, lock: Path) -> None:
        self.lock = lock
        super().__init__(f"another node holds {lock}; stop it, or give this one its own SHIPWAY_RUN_DIR")


class StateFileInvalid(NodeError):
    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        super().__init__(f"{path} is not usable: " + "; ".join(problems))


class EdgeFileInvalid(NodeError):
    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path} is not usable: {problem}")


class StoreUnavailable(NodeError):
    def __init__(self, place: str, problem: str) -> None:
        self.place = place
        self.problem = problem
        super().__init__(f"the feedback store {place} cannot be used now: {problem}")


class LoadFailed(NodeError):
    """A version could not be brought into service; the message says what was tried and what came of it."""


class GoldenFailed(NodeError):
    """This hardware does not reproduce the version's golden outputs; the message names the output and the row."""


class ExplainerFailed(NodeError):
    """A version cannot be explained; the message says why. Its predictions do not depend on it."""
