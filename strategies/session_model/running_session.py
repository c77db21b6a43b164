"""The updates of a running session: what puts an agent's settings back, and what hands over to another. Pure."""

from collections.abc import Mapping
from typing import Any

from strategies.session_model.agent_settings import LEFT_OUT, AgentSettings, ClientSetting, DetectionSettings, Dialect
from strategies.session_model.session_fields import (
    SESSION_FIELDS,
    AskedSession,
    Body,
    body_of,
    overlaid,
    put_at,
    value_at,
)

__all__ = ["agents_session", "handoff_session", "is_same_session"]

_OF_THE_TALK = frozenset({"voices", "modalities", "input_format", "input_rate", "output_format"})
_ALWAYS_HANDED = frozenset({"instructions", "tools"})
# What Azure has where an agent says nothing, for a session in which another agent, or the client, has set it.
_RESET = {
    "max_output_tokens": "inf",
    "speed": 1.0,
    "temperature": 0.7,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}


def agents_session(
    spec: AskedSession, dialect: Dialect, *, without: frozenset[ClientSetting] = frozenset()
) -> dict[str, Any]:
    """The agent's session for an update in mid-talk, which puts back what a client changed; nothing of `without`.

    It switches off what the agent does not have. It names no voice, since Azure refuses a change of voice once the
    model has spoken (docs/azure.md §4.2), no modality and no format, which are the talk's.
    """
    kept = [each for each in SESSION_FIELDS if each.name not in _OF_THE_TALK and each.client not in without]
    session = body_of(spec, _socket(dialect), kept, explicit=True)
    return _typed({"tools": [], **session}, dialect)


def handoff_session(
    old: AskedSession,
    new: AskedSession,
    dialect: Dialect,
    *,
    changes: Mapping[str, Any],
    may_set: frozenset[ClientSetting],
) -> dict[str, Any]:
    """The session of the update that hands a running session over: instructions, tools, and what else differs.

    `changes` is what the client changed of the session. It stays where the new agent's `may_set` permits it, and else
    the agent's own value comes back. Formats always stay: the client plays and records in them.
    """
    body = _socket(dialect)
    session: dict[str, Any] = {"tools": []}
    for row in SESSION_FIELDS:
        path = row.path(dialect)
        if row.stated is None or path is None or row.name in _OF_THE_TALK - {"modalities"}:
            continue
        is_changed = row.client is not None and value_at(changes, path) is not LEFT_OUT
        value = row.stated(new, body)
        is_sent = row.name in _ALWAYS_HANDED or is_changed or value != row.stated(old, body)
        if (is_changed and row.client in may_set) or not is_sent:
            continue
        value = _RESET.get(row.name, LEFT_OUT) if value is LEFT_OUT else value
        if value is not LEFT_OUT:
            put_at(session, path, value)
    overlay = new.settings.session.get(dialect)
    return _typed(overlaid(session, overlay) if overlay else session, dialect)


def _socket(dialect: Dialect) -> Body:
    return "ga_socket" if dialect == "ga" else "voice_live"


def _typed(session: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    return {"type": "realtime", **session} if dialect == "ga" else session


def is_same_session(old: AgentSettings, new: AgentSettings, dialect: Dialect) -> bool:
    """Whether a running session can go over from the one agent's settings to the other's.

    Voice Live takes no other type of turn detection (docs/azure.md §12.1); of reasoning nobody knows the default; and a
    raw field may be one that a session is opened with.
    """
    if old.session.get(dialect, {}) != new.session.get(dialect, {}):
        return False
    if old.reasoning_effort is not None and new.reasoning_effort is None:
        return False
    if dialect == "ga":
        return True
    kinds = {(each.turn_detection or DetectionSettings()).type for each in (old, new)}
    return len(kinds) == 1
