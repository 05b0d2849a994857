"""The ledger of a release: one immutable ConfigMap an entry, written under a Lease.

The Lease keeps commands from waiting for each other in vain; what makes the ledger safe is that the next number can
be created only once. A place that an entry was copied to stands in the ConfigMap's annotations, which may change.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from deploy.errors import LedgerUnusable
from deploy.kubernetes.cluster import Cluster, Json
from deploy.rollout.ledger import whoami
from deploy.rollout.record import Entry

LABEL = "shipway.dev/ledger"
DELIVERED = "shipway.dev/delivered-to-"
LEASE_SECONDS = 5
"""Appending takes less; who holds it longer was killed, or cannot append any more when it goes on."""
BUSY_SECONDS = 30.0
_PAUSE_SECONDS = 0.1


class ClusterLedger:
    """Of one release. Every method raises LedgerUnusable or ClusterUnusable."""

    def __init__(self, cluster: Cluster, fullname: str, model: str) -> None:
        self.model = model
        self._cluster = cluster
        self._name = f"{fullname}-ledger"
        self._label = fullname
        self._known: dict[int, Entry] = {}
        """Entries never change, so that none is read twice."""

    def entries(self) -> list[Entry]:
        self._read_on()
        return [self._known[number] for number in sorted(self._known)]

    def newest(self) -> Entry | None:
        return _newest(self.entries())

    @contextlib.contextmanager
    def writing(self) -> Iterator["ClusterWriter"]:
        holder = f"{whoami()} {os.getpid()} {uuid.uuid4()}"
        held = self._taken(holder)
        try:
            writer = ClusterWriter(self)
            yield writer
            for entry in writer.appended:
                self._create(entry)
        finally:
            self._cluster.write_lease(self._name, held, "", LEASE_SECONDS)

    def undelivered(self, place: str) -> list[Entry]:
        found = self._cluster.config_maps(f"{LABEL}={self._label}")
        lacking = [one for one in found if f"{DELIVERED}{place}" not in (one["metadata"].get("annotations") or {})]
        return sorted(map(self._entry, lacking), key=lambda entry: entry.number)

    def delivered(self, place: str, number: int) -> None:
        note = {"metadata": {"annotations": {f"{DELIVERED}{place}": f"{time.time():.3f}"}}}
        self._cluster.patch_config_map(self._config_map(number), note)

    def _read_on(self) -> None:
        """Read what was written since."""
        if not self._known:
            found = map(self._entry, self._cluster.config_maps(f"{LABEL}={self._label}"))
            self._known = {entry.number: entry for entry in found}
        while (found_next := self._cluster.config_map(self._config_map(max(self._known, default=0) + 1))) is not None:
            entry = self._entry(found_next)
            self._known[entry.number] = entry

    def _create(self, entry: Entry) -> None:
        data = {"entry.json": entry.model_dump_json()}
        name = self._config_map(entry.number)
        if not self._cluster.create_config_map(name, {LABEL: self._label}, data, immutable=True):
            raise LedgerUnusable(name, "another command wrote an entry of this number meanwhile; try again")
        self._known[entry.number] = entry

    def _config_map(self, number: int) -> str:
        return f"{self._name}-{number:06}"

    def _entry(self, found: Json) -> Entry:
        try:
            return Entry.model_validate_json(found["data"]["entry.json"])
        except (KeyError, ValidationError) as error:
            raise LedgerUnusable(f"entry {found['metadata']['name']}", str(error)) from error

    def _taken(self, holder: str) -> Json:
        """The Lease in our hands. One that does not change for its time is of somebody who was killed."""
        deadline = time.monotonic() + BUSY_SECONDS
        seen, since = "", time.monotonic()
        while True:
            found = self._cluster.lease(self._name)
            version = found["metadata"]["resourceVersion"] if found else ""
            if version != seen:
                seen, since = version, time.monotonic()
            held_by = found["spec"].get("holderIdentity") if found else ""
            if not held_by or time.monotonic() - since > LEASE_SECONDS:
                taken = self._cluster.write_lease(self._name, found, holder, LEASE_SECONDS)
                if taken is not None:
                    return taken
            if time.monotonic() > deadline:
                raise LedgerUnusable(self._name, f"{held_by or 'others'} held its Lease for {BUSY_SECONDS:g} s")
            time.sleep(_PAUSE_SECONDS)


class ClusterWriter:
    """Appends while the Lease is held: what is appended is created when nothing was raised."""

    def __init__(self, ledger: ClusterLedger) -> None:
        self._entries = ledger.entries()
        self._model = ledger.model
        self.appended: list[Entry] = []

    def entries(self) -> list[Entry]:
        return [*self._entries, *self.appended]

    def newest(self) -> Entry | None:
        return _newest(self.entries())

    def next_number(self) -> int:
        return max((entry.number for entry in self.entries()), default=0) + 1

    def append(self, entry: Entry) -> Entry:
        entry = entry.model_copy(update={"number": self.next_number(), "model": self._model})
        self.appended.append(entry)
        return entry


def _newest(entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.state is not None), None)
