"""A rollout of version 2 in a process of its own that kills itself: `python -m ... NAMESPACE HELM DIRECTORY WHEN`.

WHEN is a state whose entry was just written, or `upgrade` for when helm is at work; both for a helm after that state.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from deploy.rollout.record import Entry
from tests.cluster.cluster import Cluster
from tests.cluster.image import Image
from tests.cluster.test_helm_driver import Bench, helms, release
from tests.waiting import wait_for


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_with_helm_at_work(bench: Bench) -> None:
    wait_for(lambda: helms(bench.namespace, "upgrade"), 60)
    wait_for(lambda: bench.history[-1]["status"] == "pending-upgrade", 60)
    kill()


def main(namespace: str, major: int, directory: Path, when: list[str]) -> None:
    state = next((word for word in when if word != "upgrade"), "PENDING")

    def meanwhile(entry: Entry) -> None:
        if entry.state != state:
            return
        if "upgrade" in when:
            threading.Thread(target=kill_with_helm_at_work, args=(bench,)).start()
        else:
            kill()

    cluster = Cluster(Path(os.environ["KUBECONFIG"]), directory / "helm", (), None)
    bench = Bench(cluster, Image("", ""), namespace, major, directory, meanwhile=meanwhile)
    bench.endpoint.roll_out(release(2))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
