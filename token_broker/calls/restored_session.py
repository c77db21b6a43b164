"""The agent's session of a WebRTC call: it is sent on each join, and put back whenever it differs.

Nobody checks what such a client sends to Azure. Some clients set instructions of their own as soon as they connect. A
sideband begins in silence, so what was changed before it joined is not seen: each join sends the agent's session. From
then on the session is restored whenever it differs, and a client that keeps changing it loses the call.
"""

from collections.abc import Callable
from typing import Any

import structlog

from strategies.base import SessionSpec
from strategies.session_model.refused_field import field_to_leave_out, shown_path, without
from strategies.session_model.running_session import agents_session
from strategies.session_model.session_paths import Path
from token_broker.observability.logging import audit_changed_call
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.event_text import compact
from token_broker.relay.talk_parts import TalkParts
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import DONE, Ending
from token_broker.sessions.agents import Agent

__all__ = ["RestoredSession"]

log = structlog.get_logger("token_broker.relay")

# An official client sets its own session when it connects, and perhaps with each of its agents. More is deliberate.
_CHANGES_AT_MOST = 5
_REMINDER = f"{OWN_EVENT_IDS}reminder_"
_CHANGED = Ending(DONE, "its client changed the agent's session again and again", ends_talk=True)
_REFUSED = Ending(DONE, "Azure refuses the agent's settings", ends_talk=True)


class RestoredSession:
    """One call's. It has what the client may not change, and no voice. `end` hangs the call up for that reason.

    A field that Azure refuses is left out from then on; a second one ends the call.
    """

    def __init__(
        self,
        parts: TalkParts,
        owner: Owner,
        agent: Agent,
        spec: SessionSpec,
        *,
        resource: str,
        end: Callable[[Ending], None],
    ) -> None:
        self._parts = parts
        self._owner = owner
        self._about = {"resource": resource, "agent_id": agent.id}
        self._end = end
        self._session = agents_session(spec, "ga", without=agent.client_may_set)
        self._wanted = _shown(self._session)
        self._sent = 0
        self._changes = 0
        self._confirmed = False  # whether Azure has ever shown exactly the agent's session
        self._left_out: Path | None = None  # a field that Azure has refused
        self._gave_up = False
        self._deviation: dict[str, Any] | None = None  # what the last reminder was sent to correct

    @property
    def instructions(self) -> str:
        """The agent's."""
        return str(self._session.get("instructions", ""))

    def send(self, socket: AzureSocket) -> None:
        """Sends the session."""
        self._sent += 1
        update = {"type": "session.update", "event_id": f"{_REMINDER}{self._sent}", "session": self._session}
        socket.send(compact(update))

    def updated(self, socket: AzureSocket, session: Any) -> None:
        """Azure has stated its session: restores it where it has other instructions, tools or transcription."""
        if not isinstance(session, dict):
            return
        if _agrees(session, self._wanted):
            self._confirmed = True
            self._deviation = None
            return
        deviation = {name: session.get(name) for name in self._wanted}
        if deviation == self._deviation and not self._confirmed:
            # A reminder changed nothing, and Azure has never shown the agent's session exactly: it normalises some
            # value. That is not a change by the client.
            return
        self._deviation = deviation
        self._restore(socket)

    def refused(self, socket: AzureSocket, error: dict[str, Any]) -> None:
        """Azure has refused something: where it was the session, nothing was restored."""
        event_id = error.get("event_id")
        if not isinstance(event_id, str) or not event_id.startswith(_REMINDER):
            return
        log.warning("reminder_refused", session_id=self._owner.session_id, code=str(error.get("code"))[:64])
        report = self._parts.connector.settings_report
        field = field_to_leave_out(error, self._session)
        if field is None:
            self._restore(socket)
        elif self._left_out is None:
            self._left_out = field
            self._session = without(self._session, field)
            self._wanted = _shown(self._session)
            report.note_left_out((shown_path(field),), **self._about)
            self.send(socket)
        elif not self._gave_up:
            self._gave_up = True
            report.note_refused(**self._about)
            self._end(_REFUSED)

    def _restore(self, socket: AzureSocket) -> None:
        """Sends the agent's session again, and hangs the call up where that was needed too often."""
        self._changes += 1
        if self._changes == _CHANGES_AT_MOST + 1:
            self._parts.counters.calls_ended += 1
            audit_changed_call(
                principal=self._owner.principal,
                session_id=self._owner.session_id,
                agent_id=self._about["agent_id"],
                changes=self._changes,
            )
            self._end(_CHANGED)
        self.send(socket)


def _shown(session: dict[str, Any]) -> dict[str, Any]:
    """The session as Azure states it: of the transcription's hints only these (docs/azure.md §4.5)."""
    hints = session.get("audio", {}).get("input", {}).get("transcription")
    if not hints:
        return session
    shown = {name: hints[name] for name in ("model", "language", "prompt") if name in hints}
    return {**session, "audio": {**session["audio"], "input": {**session["audio"]["input"], "transcription": shown}}}


def _agrees(stated: Any, wanted: Any) -> bool:
    """Whether `stated` has everything that is `wanted`; it may have more."""
    if isinstance(wanted, dict):
        return isinstance(stated, dict) and all(_agrees(stated.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        stated = stated or []
        return len(stated) == len(wanted) and all(map(_agrees, stated, wanted))
    return bool(stated == wanted)
