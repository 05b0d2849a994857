"""What a handler may answer to a client instead of a prediction.

    HandlerError
    ├── RequestRefused               the client's mistake: this item alone gets it, its neighbours are answered
    │   ├── InvalidRequest           a field is wrong, missing or unknown
    │   ├── UnsupportedContentType   the body is of a kind that this path does not read
    │   └── UnsupportedEncoding      the body is compressed in a way that this node does not unpack
    ├── DeadlineExpired              nobody waits for the answer any more: it is not computed
    ├── PredictionFailed             the model raised on this item
    └── ArchiveUnusable              the archive's files do not fit this worker: it cannot start

None of them knows a protocol: `handlers/answer.py` translates them for HTTP and gRPC.
"""

from collections.abc import Iterable
from itertools import islice

MAX_LISTED = 12
MAX_SHOWN_CHARACTERS = 80
MAX_SHOWN_DEPTH = 3


class Words(str):
    """What was found, described by us; a client's own text is quoted, this is not."""

    __slots__ = ()


NOT_SAID = Words()
"""For a message that says nothing of what was found; None is a client's null, and is shown."""


class HandlerError(Exception):
    """Root of everything this package raises on purpose."""


class RequestRefused(HandlerError):
    """The request cannot be answered and repeating it unchanged will not help."""


class InvalidRequest(RequestRefused):
    """A field of the request is wrong.

    The message is built from facts: which field, what is wrong with it, what was found, what is allowed.
    """

    def __init__(self, field: str, problem: str, *, found: object = NOT_SAID, allowed: str = "") -> None:
        self.field = field
        self.problem = problem
        self.found = found
        self.allowed = allowed
        message = f"{field}: {problem}"
        if found is not NOT_SAID:
            message += f"; found {shown(found)}"
        if allowed:
            message += f"; allowed: {allowed}"
        super().__init__(message)


class UnsupportedContentType(RequestRefused):
    def __init__(self, found: str, allowed: Iterable[str]) -> None:
        self.found = found
        self.allowed = tuple(allowed)
        super().__init__(f"content-type: {shown(found)} is not read here; allowed: {', '.join(self.allowed)}")


class UnsupportedEncoding(RequestRefused):
    def __init__(self, found: str) -> None:
        self.found = found
        super().__init__(f"content-encoding: {shown(found)} is not unpacked here; allowed: identity, gzip")


class DeadlineExpired(HandlerError):
    def __init__(self, waited_seconds: float, limit_seconds: float) -> None:
        self.waited_seconds = waited_seconds
        self.limit_seconds = limit_seconds
        super().__init__(f"not computed: it waited for {waited_seconds:.3f} s, and its limit is {limit_seconds:g} s")


class PredictionFailed(HandlerError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"the model failed on this input: {type(cause).__name__}")


class ArchiveUnusable(HandlerError):
    pass


def shown(value: object) -> str:
    """`value` as a client may see it: in JSON's words, quoted when it is the client's text, one line, never long."""
    text = _brief(value, MAX_SHOWN_DEPTH)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"


def _brief(value: object, depth: int) -> str:
    """Looks at no more of a value than can be shown: a client's may be megabytes long or a thousand lists deep."""
    if isinstance(value, Words):
        return value
    if isinstance(value, bytes | bytearray):
        value = bytes(value[: 4 * MAX_SHOWN_CHARACTERS]).decode(errors="replace")
    if isinstance(value, str):
        return repr(value[: MAX_SHOWN_CHARACTERS + 1])
    if isinstance(value, dict):
        entries = (f"{_brief(key, 0)}: {_brief(item, depth - 1)}" for key, item in value.items())
        return "{" + (_joined(entries) if depth else "…") + "}"
    if isinstance(value, list | tuple):
        return "[" + (_joined(_brief(item, depth - 1) for item in value) if depth else "…") + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _joined(items: Iterable[str]) -> str:
    return ", ".join(islice(items, MAX_SHOWN_CHARACTERS // 2))


def listed(names: Iterable[str]) -> str:
    """Names for a message, the first dozen of many."""
    names = list(names)
    text = ", ".join(names[:MAX_LISTED])
    return text if len(names) <= MAX_LISTED else f"{text} and {len(names) - MAX_LISTED} more"
