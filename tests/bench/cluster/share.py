"""How much of the traffic a canary at 5% really gets, over HTTP and over one long-lived gRPC channel."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable

from tests.bench.cluster.ground import Ground, State
from tests.cluster.registry import MODEL
from tests.cluster.steady import Client, OverGrpc, OverHttp1

WEIGHT = 5
REQUESTS = 10_000
USERS = 8


def share(ground: Ground) -> None:
    """As fast as it goes, while the steady load goes on."""
    canary = ground.lab.other
    ground.bring(State(ground.lab.good, canary, WEIGHT))
    host, port = ground.lab.cluster.node_ip, ground.release.port
    channel = OverGrpc(host, port)
    for protocol, client in (("HTTP", lambda: OverHttp1(host, port, MODEL)), ("one gRPC channel", lambda: channel)):
        answered = asked(ground, client)
        ground.console.log(f"{protocol}: {dict(answered)}")
        ground.shares[protocol] = 100 * answered[canary.number] / answered.total()
    channel.close()


def asked(ground: Ground, client: Callable[[], Client]) -> Counter[int]:
    """How many requests each version answered. What is no right answer ends it."""
    left, answered = iter(range(REQUESTS)), Counter[int]()
    problems: list[str] = []
    lock = threading.Lock()

    def ask(one: Client) -> None:
        for question in itertools.cycle(ground.load.questions):
            with lock:
                if problems or next(left, None) is None:
                    return
            try:
                version = int(one.ask(question)[0]["x-shipway-version"])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                problems.append(repr(error))
                return
            with lock:
                answered[version] += 1

    users = [threading.Thread(target=ask, args=(client(),)) for _ in range(USERS)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not problems, problems[0]
    return answered
