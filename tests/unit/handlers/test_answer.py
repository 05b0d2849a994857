"""How a request comes in and an answer goes out: headers, statuses, and gRPC's percent-encoding."""

import json
import time
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.answer import (
    CALL_HEADER,
    GRPC,
    HTTP,
    MAX_GRPC_MESSAGE_BYTES,
    REPLAY_HEADER,
    ROWS,
    Call,
    fail,
    grpc_message,
)
from handlers.errors import (
    ArchiveUnusable,
    DeadlineExpired,
    HandlerError,
    InvalidRequest,
    PredictionFailed,
    RequestRefused,
    UnsupportedContentType,
    UnsupportedEncoding,
)


def call(protocol: str = HTTP, arrived: str = "", limits: str = "30", content_type: str = "", **headers: str) -> Call:
    made = f"{float(arrived or 0):017.6f}-0b6c9d1e-8f2a-4c3d-9e7f-1a2b3c4d5e6f"
    said = f"{made} {protocol} {limits}" if arrived else f"- {protocol}"
    return Call.read({CALL_HEADER: said, "content-type": content_type, **headers}, b"x")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_short_message_survives_grpc(text: str) -> None:
    encoded = grpc_message(text)
    assert unquote(encoded, errors="strict") == text
    assert all(" " <= character <= "~" for character in encoded)


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.integers(0, 7),
    st.integers(200, 2000),
)
def test_long_message_is_cut_between_characters(text: str, shift: int, times: int) -> None:
    text = "a" * shift + text * times
    encoded = grpc_message(text)
    assert len(encoded) <= MAX_GRPC_MESSAGE_BYTES
    # Strictly: half a character, or half an escape, would be an error.
    decoded = unquote(encoded, errors="strict")
    assert text.startswith(decoded)
    # A character is at most twelve bytes; nothing but that need be lost.
    assert decoded == text or len(encoded) > MAX_GRPC_MESSAGE_BYTES - 12


@pytest.mark.parametrize(
    ("text", "encoded"),
    [("a b~", "a b~"), ("100%", "100%25"), ("a\r\nb", "a%0D%0Ab"), ("é", "%C3%A9"), ("\x7f", "%7F"), ("%41", "%2541")],
)
def test_message_is_encoded_by_the_rule_of_grpc(text: str, encoded: str) -> None:
    assert grpc_message(text) == encoded


def test_very_long_message_costs_little() -> None:
    started = time.perf_counter()
    assert len(grpc_message("\0" * 10**7)) <= MAX_GRPC_MESSAGE_BYTES
    assert time.perf_counter() - started < 0.1


ERRORS: dict[HandlerError, tuple[str, str]] = {
    InvalidRequest("id", "wrong\ntype"): ("400", "3"),
    UnsupportedContentType("text/csv", ("application/json",)): ("415", "3"),
    UnsupportedEncoding("br"): ("415", "12"),
    DeadlineExpired(31.5, 30.0): ("504", "4"),
    RequestRefused("no"): ("400", "3"),
    PredictionFailed(IndexError("secret")): ("500", "13"),
}
NOT_FOR_CLIENTS = {HandlerError, ArchiveUnusable}


def test_every_error_has_a_status_here() -> None:
    def below(kind: type[HandlerError]) -> set[type[HandlerError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    assert {type(error) for error in ERRORS} == below(HandlerError) - NOT_FOR_CLIENTS


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", [HTTP, ROWS])
def test_error_over_http_is_json_with_a_status(error: HandlerError, protocol: str) -> None:
    answer = fail(call(protocol), error)
    assert json.loads(answer.body) == {"error": str(error)}
    assert (answer.content_type, answer.headers) == ("application/json", {})
    assert str(answer.status) == ERRORS[error][0]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_over_grpc_is_in_headers(error: HandlerError) -> None:
    answer = fail(call(GRPC), error)
    assert (answer.body, answer.content_type) == (b"", "application/x-protobuf")
    assert unquote(answer.headers.pop("x-shipway-grpc-message")) == str(error)
    assert answer.headers == {"x-shipway-grpc-status": ERRORS[error][1]}
    assert answer.status == 200  # gRPC's own status is in its trailers


def test_fault_of_the_model_is_not_told_in_full() -> None:
    assert str(PredictionFailed(IndexError("secret"))) == "the model failed on this input: IndexError"


def test_call_without_headers_is_a_plain_one() -> None:
    plain = Call.read({}, b"")
    assert (plain.protocol, bytes(plain.body), plain.replay) == (ROWS, b"", "")
    assert plain.arrived_at is None


def test_replay_is_told_by_its_header() -> None:
    assert call(**{REPLAY_HEADER: "1"}).replay


def test_id_and_time_of_arrival_are_read_off_the_edges_header() -> None:
    found = call(arrived="1795000000.250000")
    assert (found.id, found.arrived_at) == ("1795000000.250000-0b6c9d1e-8f2a-4c3d", 1795000000.25)


@pytest.mark.parametrize("found", ["application/json", "Application/JSON; charset=utf-8", " application/json ", ""])
def test_content_type_is_compared_without_its_parameters(found: str) -> None:
    call(content_type=found).check_content_type(("application/json",))


def test_wrong_content_type_is_refused() -> None:
    with pytest.raises(UnsupportedContentType) as refused:
        call(content_type="text/csv;x").check_content_type(("application/json", "application/octet-stream"))
    assert str(refused.value) == (
        "content-type: 'text/csv' is not read here; allowed: application/json, application/octet-stream"
    )


def test_compressed_body_is_refused() -> None:
    call(**{"content-encoding": "identity"}).check_content_type(())
    with pytest.raises(UnsupportedEncoding) as refused:
        call(**{"content-encoding": "br"}).check_content_type(())
    assert str(refused.value) == "content-encoding: 'br' is not unpacked here; allowed: identity, gzip"


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        *[("30", 30.0), ("2.5", 2.5), ("30 -", 30.0), ("30 5S", 5.0), ("30 1H", 30.0), ("600 1M", 60.0)],
        *[("30 250m", 0.25), ("30 99999999u", 30.0), ("30 1000000n", 0.001)],
        # What is no timeout by gRPC's rule is no deadline: Envoy and the client's library know of none either.
        *[("30 S", 30.0), ("30 5", 30.0), ("30 -5S", 30.0), ("30 123456789S", 30.0), ("30 ²S", 30.0)],
    ],
)
def test_shortest_limit_is_the_deadline(limits: str, seconds: float) -> None:
    found = call(GRPC, "1000.0", limits)
    assert found.seconds == pytest.approx(seconds)
    found.check_deadline(1000.0 + seconds * 0.99)
    with pytest.raises(DeadlineExpired, match="not computed: it waited for"):
        found.check_deadline(1000.0 + seconds * 1.01)


def test_call_of_unknown_arrival_has_no_deadline() -> None:
    call().check_deadline(1e12)
