"""Sessions that do not answer by themselves, and what their clients see of that. Pure.

With a guardrail `create_response` is false towards Azure, whatever agent and client have set: the broker asks for the
answer. A client sees its own wish, and its wish still counts: one that asks for its answers itself is not answered
before it does.
"""

from collections.abc import Mapping
from typing import Any

from strategies.session_model.agent_settings import DetectionSettings, Dialect
from strategies.session_model.session_paths import ABSENT, DETECTION, put, value_of

__all__ = ["AnswerWish", "held_changes", "held_session"]

Fields = Mapping[str, Any]

_BY_LOUDNESS = {"type": "server_vad"}  # what Azure has where nothing is said (docs/azure.md §4.5)


def held_session(session: Fields, dialect: Dialect) -> dict[str, Any]:
    """A whole session that never answers by itself."""
    path = DETECTION[dialect]
    if value_of(session, path) is ABSENT:
        session = put(session, path, _BY_LOUDNESS)
    return held_changes(session)


def held_changes(changes: Fields) -> dict[str, Any]:
    """A client's changes of a session that never answers by itself."""
    for path in DETECTION.values():
        detection = value_of(changes, path)
        if isinstance(detection, Mapping):
            changes = put(changes, path, {**detection, "create_response": False})
    return dict(changes)


class AnswerWish:
    """One talk's: whether turn detection would ask for answers, if it were for agent and client."""

    def __init__(self) -> None:
        self.by_itself = True
        self._is_clients = False

    def begin(self, detection: DetectionSettings | None) -> None:
        """An agent with this turn detection has the talk. What the client has set holds."""
        if not self._is_clients:
            self.by_itself = detection is None or (detection.type != "none" and detection.create_response is not False)

    def note(self, changes: Fields) -> None:
        """Takes a client's changes of its session."""
        for path in DETECTION.values():
            detection = value_of(changes, path)
            if detection is not ABSENT:  # without the flag Azure answers
                self._is_clients = True
                self.by_itself = isinstance(detection, Mapping) and detection.get("create_response") is not False

    def shown(self, event: dict[str, Any]) -> dict[str, Any]:
        """One of Azure's events that show the session, as the client sees it; the same object where nothing changes."""
        session = event.get("session")
        if not isinstance(session, Mapping):
            return event
        for path in DETECTION.values():
            detection = value_of(session, path)
            if isinstance(detection, Mapping) and detection.get("create_response") is not self.by_itself:
                return {**event, "session": put(session, path, {**detection, "create_response": self.by_itself})}
        return event
