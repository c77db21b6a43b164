"""What all versions of Zep have in common: names of users, limits of messages, and what a status means."""

import hashlib
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from token_broker.memory.types import Failure, StoredTurn
from token_broker.security.tokens import ANONYMOUS

__all__ = [
    "MAX_CHARS",
    "MAX_MESSAGES",
    "metadata_of",
    "part_of",
    "retry_after_s",
    "split_text",
    "status_failure",
    "zep_user_id",
]

MAX_MESSAGES = 30  # a call
MAX_CHARS = 2_500  # of a message; Zep refuses longer ones
_CUT = "…"  # where a message goes on in the next
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Unavailable to any delivery: overloaded, down, or a key that an operator has to correct.
_UNAVAILABLE = frozenset({401, 403, 408, 429, 502, 503, 504})
_WILL_NEVER_TAKE = frozenset({400, 405, 409, 410, 413, 414, 415, 422})
_UNCERTAIN = frozenset({408, 500, 502, 504})  # Zep may have stored the messages, though a gateway before it gave up
_MAX_RETRY_AFTER_S = 3600.0


def zep_user_id(principal: str, session_id: str) -> str:
    """The Zep user of a session. Each anonymous session gets a user of its own: the callers may be different people."""
    if principal == ANONYMOUS:
        return f"anonymous-{session_id}"
    if _PLAIN_ID.fullmatch(principal):
        return principal
    return f"user-{hashlib.sha256(principal.encode()).hexdigest()[:32]}"


def status_failure(sink: str, status: int, retry_after: float | None, *, storing: bool) -> Failure:
    """What a status of Zep's means, in any of its versions."""
    reason = f"{sink}: {status}"
    uncertain = storing and status in _UNCERTAIN
    if status in _UNAVAILABLE:
        return Failure(reason, uncertain=uncertain, retry_after_s=retry_after)
    if status in _WILL_NEVER_TAKE:
        return Failure(reason, permanent=True)
    return Failure(reason, counts=True, uncertain=uncertain, retry_after_s=retry_after)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` as seconds, from a number or a date; at most an hour, None where there is none to read."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return min(float(value), _MAX_RETRY_AFTER_S)
    try:
        wait_s = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S)


def split_text(text: str, max_chars: int) -> list[str]:
    """The text in parts of at most so many characters, cut at blanks where there are any; each cut has a mark."""
    parts: list[str] = []
    room = max_chars - 2 * len(_CUT)
    while len(text) > max_chars - len(_CUT if parts else ""):
        blank = text.rfind(" ", room // 2, room + 1)
        at = blank if blank > 0 else room
        parts.append((_CUT if parts else "") + text[:at] + _CUT)
        text = text[at:].lstrip(" ") if blank > 0 else text[at:]
    parts.append((_CUT if parts else "") + text)
    return parts


def part_of(metadata: Mapping[str, Any] | None) -> tuple[str, str]:
    """Turn and part of a message; both empty where it is not one of ours."""
    return str((metadata or {}).get("turn_id", "")), str((metadata or {}).get("part", ""))


def metadata_of(turn: StoredTurn, number: int, parts: int) -> dict[str, Any]:
    """The metadata of a turn's message, or of that part of it."""
    metadata: dict[str, Any] = {
        "turn_id": turn.turn_id,
        "sequence": turn.sequence,
        "agent_id": turn.agent_id,
        "source": turn.source,
        "interrupted": turn.interrupted,
        "channel": turn.channel,
        "part": f"{number}/{parts}" if parts > 1 else None,
    }
    return {key: value for key, value in metadata.items() if value is not None}
