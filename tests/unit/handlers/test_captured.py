"""Segments: bounded in size and age, closed to others, and readable to the last whole request."""

import os
import stat
from pathlib import Path

import pytest

from handlers.captured import SEGMENTS, SPANS, CapturedRequest, Segments, read_segment

NOW = 1_800_000_000.0


def request(at: float = NOW, number: int = 1, size: int = 10) -> CapturedRequest:
    return CapturedRequest(f"id-{number}", 3, at, "oip_http", ("wind",), 5, bytes(range(size)))


def segments(directory: Path, keep_seconds: float = 800.0) -> Segments:
    return Segments(directory / "capture", SEGMENTS * 1000, keep_seconds)


def write(where: Segments, *requests: CapturedRequest, model: str = "flights") -> Path:
    """A segment made when its first request was."""
    with os.fdopen(where.create(model, requests[0].at), "wb") as file:
        file.write(b"".join(each.to_bytes() for each in requests))
    return max((where.directory / model).iterdir(), key=lambda path: path.name)


def test_request_survives_its_segment(tmp_path: Path) -> None:
    some = [request(number=number, size=number) for number in range(5)]
    assert list(read_segment(write(segments(tmp_path), *some).read_bytes())) == some


def test_every_cut_leaves_the_requests_before_it() -> None:
    some = [request(number=number) for number in range(3)]
    parts = [each.to_bytes() for each in some]
    data = b"".join(parts)
    for cut in range(len(data)):
        whole = sum(len(b"".join(parts[: n + 1])) <= cut for n in range(3))
        assert list(read_segment(data[:cut])) == some[:whole]


def test_what_stands_behind_damage_is_not_read() -> None:
    some = [request(number=number) for number in range(3)]
    data = bytearray(b"".join(each.to_bytes() for each in some))
    data[len(some[0].to_bytes()) + 20] ^= 1
    assert list(read_segment(bytes(data))) == some[:1]


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    path = write(segments(tmp_path), request())
    modes = {each: stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parents[1])}
    assert modes == {path: 0o600, path.parent: 0o700, path.parents[1]: 0o700}


def test_newest_of_a_model_come_first(tmp_path: Path) -> None:
    where = segments(tmp_path)
    for start in (0, 20, 10):
        write(where, *(request(NOW + start + at) for at in range(3)))
    write(where, request(NOW + 50), model="other")
    assert [each.at - NOW for each in where.newest("flights", 4, NOW + 60)] == [22, 21, 20, 12]
    assert where.newest("none", 4, NOW) == []
    assert where.newest("flights", 0, NOW + 60) == []


def test_worker_that_began_earlier_may_have_what_is_newest(tmp_path: Path) -> None:
    where = segments(tmp_path)
    older = write(where, request(NOW), request(NOW + 9))
    newer = write(where, request(NOW + 5), request(NOW + 6))
    for path, written in ((older, NOW + 9), (newer, NOW + 6)):
        os.utime(path, (written, written))
    assert [each.at - NOW for each in where.newest("flights", 2, NOW + 10)] == [9, 6]


def test_old_segments_go_and_old_requests_are_not_read(tmp_path: Path) -> None:
    where = segments(tmp_path)
    write(where, request(NOW), request(NOW + 100))
    new = write(where, request(NOW + 150))
    assert [each.at - NOW for each in where.newest("flights", 9, NOW + 850)] == [150, 100]
    where.remove_expired(NOW + 850)
    assert list((tmp_path / "capture" / "flights").iterdir()) == [new]
    # A segment's span is short, so that a request that goes with an older one is not much younger.
    assert where.span_seconds == where.keep_seconds / SPANS


def test_there_are_never_more_segments_than_fit(tmp_path: Path) -> None:
    where = segments(tmp_path)
    for at in range(SEGMENTS + 10):
        write(where, request(NOW + at / 10), model=f"model-{at % 3}")
    left = sorted(where.directory.glob("*/*.requests"), key=lambda path: path.name)
    assert len(left) == SEGMENTS
    assert left[0].name.startswith(f"{int((NOW + 1.0) * 1000):015d}-")
    assert where.segment_bytes * SEGMENTS <= where.max_bytes


def test_node_that_never_captured_has_nothing_to_remove(tmp_path: Path) -> None:
    segments(tmp_path).remove_expired(NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{}\n", b"no json\nbody"])
def test_what_no_worker_writes_is_an_error(content: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        CapturedRequest.from_content(content)
