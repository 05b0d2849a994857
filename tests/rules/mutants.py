"""Small faults in PromQL: one comparison turned round, one number changed, or one sign of arithmetic."""

import re
from collections.abc import Iterator

# What is not to be changed: strings, durations, names with their digits; then what is.
_TOKEN = re.compile(
    r'(?P<kept>"[^"]*"|\[[^\]]*\]|offset \w+|=~|!~|!=|[A-Za-z_:][\w:]*)'
    r"|(?P<comparison>>=|<=|==|>|<)"
    r"|(?P<sign>[-+*/])"
    r"|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)"
)
_OPPOSITE = {">": "<", ">=": "<", "<": ">", "<=": ">", "==": ">", "-": "+", "+": "-", "*": "/", "/": "*"}
_FACTOR = 1.5


def mutants(expr: str) -> Iterator[str]:
    """`expr` with one fault each."""
    compared = False
    for token in _TOKEN.finditer(expr):
        kind, text = token.lastgroup, token.group()
        for instead in _instead(kind, text, compared=compared):
            yield expr[: token.start()] + instead + expr[token.end() :]
        compared = kind == "comparison"


def _instead(kind: str | None, text: str, *, compared: bool) -> tuple[str, ...]:
    if kind in ("comparison", "sign"):
        return (_OPPOSITE[text],)
    if kind != "number":
        return ()
    if float(text) == 0:
        # Against 0 only the direction counts: no counter lies between 0 and a threshold near it.
        return () if compared else ("1",)
    return repr(float(text) * _FACTOR), repr(float(text) / _FACTOR)
