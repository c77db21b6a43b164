"""What Azure says of itself in a session's events: a limit that is reached, or a failure of its own. Pure."""

from collections.abc import Mapping, Reversible
from itertools import islice
from typing import Any

from strategies.errors import MintError, RateLimitedError, TransientError
from token_broker.relay.event_text import event_of, event_type

__all__ = ["LIMIT_CODES", "last_word", "stated_fault"]

LIMIT_CODES = frozenset({"rate_limit_exceeded", "insufficient_quota", "too_many_requests"})
_SERVER_CODES = frozenset({"server_error", "internal_error"})
_LOOKED_AT = 8  # of the events that nobody has read yet


def stated_fault(error: object, *, in_talk: bool = False) -> MintError | None:
    """The fault of Azure's own that an `error` states; None where it is about what Azure was sent.

    `in_talk`: the session was there already, so that a limit is the model's, and not one of connections.
    """
    stated: Mapping[str, Any] = error if isinstance(error, dict) else {}
    code, kind, message = (str(stated.get(name) or "") for name in ("code", "type", "message"))
    if LIMIT_CODES & {code, kind}:
        is_of_tokens = in_talk or kind == "tokens" or RateLimitedError.names_tokens(f"{code} {kind} {message}")
        return RateLimitedError("Azure's rate limit is reached", is_of_tokens=is_of_tokens, status=429)
    if kind == "server_error" or code in _SERVER_CODES:
        return TransientError("Azure failed", status=500)  # what it wanted of the agent's session, perhaps
    if code == "session_expired":
        return MintError("the session has reached its longest time")  # nobody's fault, also where no end was told
    return None


def last_word(frames: Reversible[str]) -> MintError | None:
    """The fault of which Azure told last. `frames` are the events that wait to be read, in order."""
    for text in islice(reversed(frames), _LOOKED_AT):
        kind = event_type(text)
        if kind not in {"error", "response.done"}:
            continue
        event = event_of(text) or {}
        if kind == "error":
            return stated_fault(event.get("error"), in_talk=True)
        response = event.get("response")
        details = response.get("status_details") if isinstance(response, dict) else None
        return stated_fault(details.get("error"), in_talk=True) if isinstance(details, dict) else None
    return None
