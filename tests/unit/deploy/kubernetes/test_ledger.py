"""A release's ledger in ConfigMaps: no entry is lost, changed or counted twice, whoever is killed meanwhile."""

import threading
from collections.abc import Callable

import pytest

from deploy.errors import ClusterUnusable, LedgerUnusable
from deploy.kubernetes import ledger
from deploy.kubernetes.ledger import ClusterLedger
from deploy.rollout.record import Entry, State
from tests.unit.deploy.kubernetes.api import Api
from tests.unit.deploy.rollout.stories import VERDICT, entry

LEASE = "flights-shipway-ledger"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LEASE_SECONDS", 1), ("BUSY_SECONDS", 60.0), ("_PAUSE_SECONDS", 0.01)):
        monkeypatch.setattr(ledger, name, seconds)


def ledger_of(api: Api, fullname: str = "flights-shipway") -> ClusterLedger:
    """As another process sees it."""
    return ClusterLedger(api, fullname, "flights")


def write(found: ClusterLedger, *states: State | None) -> list[Entry]:
    with found.writing() as writer:
        return [writer.append(entry(state, 1000.0, number=99, model="other")) for state in states]


def holder(api: Api) -> str:
    return str(api.objects[f"leases/{LEASE}"]["spec"]["holderIdentity"])


def test_entries_are_counted_and_stay() -> None:
    api = Api()
    written = write(ledger_of(api), "PENDING", "READY") + write(ledger_of(api), "CANARY")
    assert [(one.number, one.state, one.model) for one in written] == [
        (1, "PENDING", "flights"),
        (2, "READY", "flights"),
        (3, "CANARY", "flights"),
    ]
    assert ledger_of(api).entries() == written
    assert api.names("configmaps") == [f"{LEASE}-00000{number}" for number in (1, 2, 3)]
    assert all(one["immutable"] for key, one in api.objects.items() if key.startswith("configmaps/"))
    assert holder(api) == ""


def test_a_verdict_is_read_as_it_was_written() -> None:
    api = Api()
    with ledger_of(api).writing() as writer:
        writer.append(entry("ROLLING_BACK", 1010.0, verdict=VERDICT))
    found = ledger_of(api).newest()
    assert found is not None
    assert found.model_dump_json() == entry("ROLLING_BACK", 1010.0, verdict=VERDICT).model_dump_json()


def test_newest_is_what_says_where_a_rollout_stands() -> None:
    api = Api()
    write(ledger_of(api), "PENDING", None)
    newest = ledger_of(api).newest()
    assert newest is not None
    assert (newest.number, newest.state) == (1, "PENDING")


def test_nothing_was_written_yet() -> None:
    found = ledger_of(Api())
    assert (found.entries(), found.newest(), found.undelivered("mlflow")) == ([], None, [])


def test_a_writer_sees_what_it_appended_and_nobody_else_does() -> None:
    api = Api()
    found, other = ledger_of(api), ledger_of(api)
    write(found, "PENDING")
    with found.writing() as writer:
        assert writer.next_number() == 2
        writer.append(entry("READY", 1001.0))
        newest = writer.newest()
        assert newest is not None
        assert (newest.state, writer.next_number(), len(writer.entries())) == ("READY", 3, 2)
        assert len(other.entries()) == 1
    assert len(other.entries()) == 2


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_nothing_is_written_where_something_is_raised(raised: type[BaseException]) -> None:
    api = Api()

    def interrupted() -> None:
        with ledger_of(api).writing() as writer:
            writer.append(entry("PENDING", 1.0))
            raise raised

    with pytest.raises(raised):
        interrupted()
    assert (api.names("configmaps"), holder(api)) == ([], "")


def test_ledgers_of_one_namespace_do_not_mix() -> None:
    api = Api()
    write(ledger_of(api), "PENDING")
    write(ledger_of(api, "topics-shipway"), "READY", "PROMOTED")
    assert [one.state for one in ledger_of(api).entries()] == ["PENDING"]
    assert len(ledger_of(api, "topics-shipway").entries()) == 2


def test_another_processs_entries_are_read_on_and_none_twice() -> None:
    api = Api()
    ours, theirs = ledger_of(api), ledger_of(api)
    write(ours, "PENDING")
    assert len(ours.entries()) == 1
    write(theirs, "READY", "CANARY")
    api.asked.clear()
    assert [one.state for one in ours.entries()] == ["PENDING", "READY", "CANARY"]
    assert [one.rpartition("-")[2] for one in api.asked] == ["000002", "000003", "000004"]
    assert (api.count("GET", "labelSelector"), len(ours.entries())) == (0, 3)


def test_whoever_lost_the_lease_meanwhile_writes_nothing() -> None:
    api = Api()
    slow = ledger_of(api)

    def too_late() -> None:
        with slow.writing() as writer:
            writer.append(entry("READY", 1001.0))
            write(ledger_of(api), "ROLLING_BACK")  # who waited for the Lease to run out

    with pytest.raises(LedgerUnusable, match=rf"{LEASE}-000001 .* another command wrote an entry of this number"):
        too_late()
    assert [one.state for one in slow.entries()] == ["ROLLING_BACK"]
    assert len(write(slow, "ROLLED_BACK")) == 1
    assert [one.number for one in ledger_of(api).entries()] == [1, 2]


def test_the_late_one_does_not_free_a_lease_that_is_another_ones() -> None:
    api = Api()
    slow, quick = ledger_of(api).writing(), ledger_of(api).writing()
    slow.__enter__()
    quick.__enter__()
    theirs = holder(api)
    slow.__exit__(None, None, None)
    assert holder(api) == theirs != ""
    quick.__exit__(None, None, None)
    assert holder(api) == ""


def test_a_lease_that_was_freed_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "LEASE_SECONDS", 1000)
    monkeypatch.setattr(ledger, "BUSY_SECONDS", 0.1)
    found = ledger_of(Api())
    assert [len(write(found, "PENDING")), len(write(found, "READY"))] == [1, 1]


def test_a_lease_that_is_renewed_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "BUSY_SECONDS", 2.5)
    api = Api()
    held = api.write_lease(LEASE, None, "ann@desk 17", 1)
    ended = threading.Event()

    def busy() -> None:
        newest = held
        while not ended.wait(0.05) and newest is not None:
            newest = api.write_lease(LEASE, newest, "ann@desk 17", 1)

    renewing = threading.Thread(target=busy)
    renewing.start()
    try:
        with pytest.raises(LedgerUnusable, match=r"ann@desk 17 held its Lease for 2\.5 s"):
            write(ledger_of(api), "PENDING")
    finally:
        ended.set()
        renewing.join()
    assert api.names("configmaps") == []


def test_of_two_at_once_one_waits() -> None:
    api = Api()
    first = ledger_of(api).writing()
    writer = first.__enter__()
    writer.append(entry("PENDING", 1000.0))
    done = threading.Event()

    def second() -> None:
        with ledger_of(api).writing() as other:
            other.append(entry("READY", 1001.0, words=f"after {len(other.entries())}"))
        done.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    assert not done.wait(0.2)
    first.__exit__(None, None, None)
    waiting.join(60)
    assert [(one.number, one.words) for one in ledger_of(api).entries()] == [(1, "now PENDING"), (2, "after 1")]


def test_an_entry_whose_answer_was_lost_is_written_once() -> None:
    api = Api()
    with ledger_of(api).writing() as writer:
        writer.append(entry("PENDING", 1.0))
        api.lost_answers = ["POST"]
    assert [one.number for one in ledger_of(api).entries()] == [1]


def test_what_was_delivered_is_noted_on_the_entry_and_changes_nothing_of_it() -> None:
    api = Api()
    found = ledger_of(api)
    written = write(found, "PENDING", "READY", "CANARY")
    found.delivered("mlflow", 2)
    found.delivered("grafana", 1)
    found.delivered("mlflow", 2)
    assert [one.number for one in found.undelivered("mlflow")] == [1, 3]
    assert [one.number for one in ledger_of(api).undelivered("grafana")] == [2, 3]
    assert ledger_of(api).entries() == written


@pytest.mark.parametrize("data", [{"entry.json": "{}"}, {"entry.json": "no JSON"}, {}, None])
@pytest.mark.parametrize(
    "use", [ClusterLedger.entries, ClusterLedger.newest, lambda found: found.undelivered("mlflow"), write]
)
def test_an_entry_that_cannot_be_read_is_said_in_words(
    data: dict[str, str] | None, use: Callable[[ClusterLedger], object]
) -> None:
    api = Api()
    write(ledger_of(api), "PENDING")
    api.objects[f"configmaps/{LEASE}-000001"].pop("data")
    if data is not None:
        api.objects[f"configmaps/{LEASE}-000001"]["data"] = data
    with pytest.raises(LedgerUnusable, match=rf"the ledger entry {LEASE}-000001 cannot be used"):
        use(ledger_of(api))


def test_an_api_that_refuses_is_said_in_words() -> None:
    api = Api()
    api.away = [(403, b'{"message":"leases.coordination.k8s.io is forbidden"}')]
    with pytest.raises(ClusterUnusable, match="is forbidden"):
        write(ledger_of(api), "PENDING")
