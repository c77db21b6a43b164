"""The settings that a talk's next session needs: the agent's, with what the client has changed. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from strategies.base import Dialect, SessionSpec
from strategies.session_model.session_fields import overlaid
from token_broker.relay.dialects.session_settings import MaySet, client_session, session_settings
from token_broker.relay.dialects.shapes import permitted

__all__ = ["client_settings", "formats_of", "with_changes"]

Event = Mapping[str, Any]


def client_settings(changes: Event, *, old: Dialect, new: Dialect, may_set: MaySet) -> dict[str, Any]:
    """What the client has changed of its session, in the dialect of the new one, as far as the agent's `may_set` goes.

    Formats always stay: the client plays and records in them.
    """
    kept: dict[str, Any] = permitted(changes, client_session(may_set | {"formats"})).value
    return kept if old == new else session_settings(kept, client=old, upstream=new)


def formats_of(changes: Event) -> dict[str, Any]:
    """Of these changes the formats alone; empty where they have none."""
    found: dict[str, Any] = _without_empty(permitted(changes, client_session(frozenset({"formats"}))).value)
    return found if found.keys() - {"type"} else {}


def _without_empty(fields: Event) -> dict[str, Any]:
    kept = {name: _without_empty(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return {name: value for name, value in kept.items() if value != {}}


def with_changes(spec: SessionSpec, dialect: Dialect, changes: Event) -> SessionSpec:
    """The spec of a session that a client has changed already; `changes` in the session's dialect."""
    own = spec.settings.session
    laid = {**own, dialect: overlaid(own.get(dialect, {}), changes)}
    return replace(spec, settings=spec.settings.model_copy(update={"session": laid})) if changes else spec
