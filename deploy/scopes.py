"""What a client may be allowed to do: apart from `node/auth.py`, so that a base install prints its help."""

from typing import Literal, get_args

Scope = Literal["infer", "explain", "feedback"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
