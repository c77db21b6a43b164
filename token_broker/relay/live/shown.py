"""The names of GPT-Live's dialect that several parts need, and what a client may see of its session. Pure."""

from typing import Any

__all__ = ["CLOSED", "DIALECT", "shown_session"]

DIALECT = "live"
CLOSED = "session.closed"
_SHOWN_OF_SESSION = frozenset({"id", "model", "status", "expires_at"})


def shown_session(session: Any) -> Any:
    """Azure's session as a client may see it: without instructions, voice, delegation and history."""
    if not isinstance(session, dict):
        return session
    shown = {name: value for name, value in session.items() if name in _SHOWN_OF_SESSION}
    audio = session.get("audio")
    if isinstance(audio, dict) and isinstance(audio.get("format"), dict):
        shown["audio"] = {"format": audio["format"]}
    return shown
