"""The events that the broker itself sends, `broker.*` to the client and the agent's changes to Azure; and which of
Azure's show the session.
"""

from typing import Any

from strategies.base import Dialect, SessionSpec
from token_broker.memory.types import Role
from token_broker.relay.event_text import compact
from token_broker.web.ids import uuid7

__all__ = [
    "OWN_EVENT_IDS",
    "SESSION_EVENTS",
    "api_error",
    "broker_error",
    "broker_event",
    "history_item",
    "new_agent_update",
]

OWN_EVENT_IDS = "broker_"
SESSION_EVENTS = frozenset({"session.created", "session.updated"})
"""Azure's, in either dialect; they show the session whole, with the agent's instructions."""

_LONGEST_HISTORY_CHARS = 4_000


def broker_event(kind: str, **fields: Any) -> str:
    """An event of the broker's own, with an `event_id` as Azure's have one."""
    return compact({"type": kind, "event_id": f"event_{uuid7()}", **fields})


def broker_error(code: str, message: str, *, retryable: bool = False) -> str:
    """`broker.error`: something did not work, and the talk goes on."""
    return broker_event("broker.error", code=code, message=message, retryable=retryable)


def api_error(code: str, message: str, *, kind: str = "invalid_request_error") -> str:
    """The same as the Realtime API's own `error`, for clients that know no events of ours."""
    error = {"type": kind, "code": code, "message": message, "param": None, "event_id": None}
    return compact({"type": "error", "event_id": f"event_{uuid7()}", "error": error})


def new_agent_update(spec: SessionSpec, dialect: Dialect, event_id: str) -> str:
    """The `session.update` that makes another agent speak with the same voice, which is not named: it can't change."""
    session: dict[str, Any] = {"type": "realtime"} if dialect == "ga" else {}
    session |= {"instructions": spec.instructions, "tools": [dict(tool) for tool in spec.tools]}
    return compact({"type": "session.update", "event_id": event_id, "session": session})


def history_item(role: Role, content: str, dialect: Dialect, number: int) -> tuple[str, str]:
    """An earlier turn as an item of a new conversation: its id, and the event that makes it."""
    item_id = f"broker{uuid7().replace('-', '')[-24:]}"  # at most 32 characters are taken
    said_by_assistant = "text" if dialect == "preview" else "output_text"
    part = {"type": "input_text" if role == "user" else said_by_assistant, "text": content[:_LONGEST_HISTORY_CHARS]}
    event = {
        "type": "conversation.item.create",
        "event_id": f"{OWN_EVENT_IDS}history_{number}",
        "item": {"id": item_id, "type": "message", "role": role, "content": [part]},
    }
    return item_id, compact(event)
