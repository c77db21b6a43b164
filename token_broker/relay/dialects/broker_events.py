"""The events that the broker itself sends: `broker.*` and errors to the client. Pure but
for the ids that it makes.
"""

from collections.abc import Mapping
from typing import Any

from token_broker.relay.event_text import compact
from token_broker.web.requests import uuid7

__all__ = [
    "OWN_EVENT_IDS",
    "SAY_ID",
    "api_error",
    "broker_error",
    "broker_event",
    "is_own",
]

OWN_EVENT_IDS = "broker_"
"""The prefix of the `event_id`s that the broker sends to Azure: an error about one of them is not the client's."""

SAY_ID = f"{OWN_EVENT_IDS}say_"
"""The prefix of the `event_id` by which words for a wait are asked for: after a move they are not asked for again."""

_OWN_ERROR = f"event_{OWN_EVENT_IDS}"


def broker_event(kind: str, **fields: Any) -> str:
    """A `broker.*` event for the client, with an `event_id` as Azure's events have."""
    return compact({"type": kind, "event_id": f"event_{uuid7()}", **fields})


def broker_error(code: str, message: str, *, retryable: bool = False, param: str | None = None) -> str:
    """`broker.error`: something failed, and the talk goes on. `param` is the path of a client's field that is wrong."""
    about = {} if param is None else {"param": param}
    return broker_event("broker.error", code=code, message=message, retryable=retryable, **about)


def api_error(
    code: str,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    event_id: str | None = None,
) -> str:
    """The same as the Realtime API's `error`, for official clients, which do not know `broker.*` events."""
    error = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
    return compact({"type": "error", "event_id": f"{_OWN_ERROR}{uuid7()}", "error": error})


def is_own(event: Mapping[str, Any]) -> bool:
    """Whether it is such an error of the broker's: it names fields as the client has them already."""
    event_id = event.get("event_id")
    return isinstance(event_id, str) and event_id.startswith(_OWN_ERROR)
