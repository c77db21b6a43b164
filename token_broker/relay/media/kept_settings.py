"""Keeps the agent's session in a call: its page can write to Azure by itself, and what it changes is put back. Pure."""

from collections.abc import Mapping
from typing import Any

from token_broker.relay.confirmation.agreement import disagreements
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.event_text import compact

__all__ = ["RESTORE_ID", "KeptSettings"]

RESTORE_ID = f"{OWN_EVENT_IDS}restore_"
# A page may set a session of its own when it connects, and once or twice by mistake. More is deliberate.
_CHANGES_AT_MOST = 5


class KeptSettings:
    """One call's. `session` are the agent's fields that its client may not change."""

    def __init__(self, session: Mapping[str, Any]) -> None:
        self.changes = 0
        self._session = dict(session)

    @property
    def is_hopeless(self) -> bool:
        """Whether the session was changed so often that putting it back is of no use."""
        return self.changes > _CHANGES_AT_MOST

    def restoring(self, stated: object) -> str | None:
        """The event that puts the session back; None: Azure states the agent's."""
        if not self._session or not disagreements(self._session, stated):
            return None
        self.changes += 1
        update = {"type": "session.update", "event_id": f"{RESTORE_ID}{self.changes}", "session": self._session}
        return compact(update)
