"""Places of workers: one socket each, which outlives its worker and is then the next one's."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from deploy.node.layout import Layout
from deploy.node.places import Places, Workers
from handlers.server import Place, take_place


@pytest.fixture
def places(layout: Layout) -> Iterator[Places]:
    found = Places(layout)
    yield found
    found.close("flights", 1)


def free(place: Place) -> None:
    """What a worker's death does."""
    place.listener.close()
    place.lease.close()


def serving(layout: Layout, places: Places, *works: object) -> None:
    """Run the blocking `works` one after the other in a thread, beside the launcher's loop."""

    async def main() -> None:
        task = asyncio.create_task(places.serve())
        try:
            for work in works:
                assert callable(work)
                await asyncio.wait_for(asyncio.to_thread(work), 20)
        finally:
            task.cancel()

    assert layout.root.is_dir()
    asyncio.run(main())


def test_each_worker_has_a_place_of_its_own_and_its_death_frees_it(layout: Layout, places: Places) -> None:
    first, second = places.open("flights", 1, 2)
    taken: list[Place] = []

    def take() -> None:
        taken.append(take_place(str(layout.places_socket), "flights", "1"))

    def die() -> None:
        free(taken.pop(0))

    seen: list[tuple[int, list[int], int]] = []

    def look() -> None:
        workers = places.workers("flights", 1)
        assert workers.resident_bytes > 2**20  # this very process is the worker
        seen.append((len(workers.sockets), list(workers.alive.values()), workers.restarts))

    serving(layout, places, take, look, take, die, take, look)
    try:
        assert seen == [(2, [os.getpid()], 0), (2, [os.getpid()] * 2, 1)]
        assert [place.inherited for place in taken] == [False, True]
        assert {place.listener.getsockname() for place in taken} == {str(first), str(second)}
    finally:
        for place in taken:
            free(place)


def test_request_that_comes_between_two_workers_is_the_next_ones(layout: Layout, places: Places) -> None:
    (path,) = places.open("flights", 1, 1)
    taken: list[Place] = []

    def take() -> None:
        taken.append(take_place(str(layout.places_socket), "flights", "1"))

    with closing(socket.socket(socket.AF_UNIX)) as client:

        def ask() -> None:
            free(taken.pop())
            client.connect(str(path))
            client.sendall(b"hello")

        def answer() -> None:
            place = taken[0]
            place.listener.settimeout(10)
            with place.listener.accept()[0] as connection:
                assert connection.recv(10) == b"hello"
            free(place)

        serving(layout, places, take, ask, take, answer)


def test_request_that_another_version_can_answer_does_not_wait(layout: Layout, places: Places) -> None:
    """Neither one that came before the worker's death was seen, nor one that comes then; and not when it must wait."""
    (path,) = places.open("flights", 1, 1)

    def take() -> Place:
        return take_place(str(layout.places_socket), "flights", "1")

    def asked() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(str(path))
        return client

    async def main() -> None:
        serving = asyncio.create_task(places.serve())
        await asyncio.sleep(0)  # it listens
        place = await asyncio.to_thread(take)
        places.turn_away({("flights", 1)})
        with asked() as early:
            await asyncio.sleep(0.05)  # it is the living worker's, whatever it does with it
            free(place)
            assert await asyncio.to_thread(early.recv, 1) == b""
        with asked() as late:
            assert await asyncio.to_thread(late.recv, 1) == b""
        place = await asyncio.to_thread(take)
        with asked() as served:
            await asyncio.to_thread(served.sendall, b"hello")
            place.listener.settimeout(10)
            connection, _ = await asyncio.to_thread(place.listener.accept)
            assert await asyncio.to_thread(connection.recv, 5) == b"hello"
            connection.close()
        places.turn_away(set())
        free(place)
        with asked() as waiting:
            place = await asyncio.to_thread(take)
            place.listener.settimeout(10)
            (await asyncio.to_thread(place.listener.accept))[0].close()
            assert await asyncio.to_thread(waiting.recv, 1) == b""
        free(place)
        serving.cancel()

    assert layout.root.is_dir()
    asyncio.run(main())


def test_worker_of_a_version_that_is_not_served_is_refused(layout: Layout, places: Places) -> None:
    places.open("flights", 1, 1)

    def take() -> None:
        with pytest.raises(OSError, match="no place for a worker of flights version 2"):
            take_place(str(layout.places_socket), "flights", "2")

    serving(layout, places, take)


def test_closed_places_are_gone(places: Places) -> None:
    (path,) = places.open("flights", 1, 1)
    assert path.is_socket()
    assert len(places.workers("flights", 1).sockets) == 1
    places.close("flights", 1)
    assert not path.exists()
    gone = places.workers("flights", 1)
    assert (gone.sockets, gone.alive, gone.resident_bytes) == ([], {}, 0)


def test_memory_of_a_worker_that_has_just_ended_is_none() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    with socket.socket(socket.AF_UNIX) as place:
        assert Workers(alive={place: ended.pid}).resident_bytes == 0
