"""The settings that a talk's next session needs: the agent's, with what the client has changed. Pure."""

from collections.abc import Mapping
from typing import Any

from strategies.base import Dialect
from token_broker.relay.dialects.session_settings import MaySet, client_session, session_settings
from token_broker.relay.dialects.shapes import permitted

__all__ = ["client_settings"]

Event = Mapping[str, Any]


def client_settings(changes: Event, *, old: Dialect, new: Dialect, may_set: MaySet) -> dict[str, Any]:
    """What the client has changed of its session, in the dialect of the new one, as far as the agent's `may_set` goes.

    Formats always stay: the client plays and records in them.
    """
    kept: dict[str, Any] = permitted(changes, client_session(may_set | {"formats"})).value
    return kept if old == new else session_settings(kept, client=old, upstream=new)
