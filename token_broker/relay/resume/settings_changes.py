"""The settings that a talk's next session needs: the agent's, with what the client has changed. Pure."""

from collections.abc import Mapping
from typing import Any

from strategies.base import Dialect
from token_broker.relay.dialects.session_settings import session_settings

__all__ = ["client_settings", "merged"]

Event = Mapping[str, Any]


def client_settings(changes: Event, *, old: Dialect, new: Dialect) -> dict[str, Any]:
    """What the client has changed of its session, in the dialect of the new one."""
    return dict(changes) if old == new else session_settings(changes, client=old, upstream=new)


def merged(settings: Event, changes: Event) -> dict[str, Any]:
    """The settings with these changes. A value that has a `type` is replaced as a whole, as Azure does it."""
    result = dict(settings)
    for name, value in changes.items():
        known = result.get(name)
        if isinstance(known, dict) and isinstance(value, dict) and "type" not in value:
            result[name] = merged(known, value)
        else:
            result[name] = value
    return result
