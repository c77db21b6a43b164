"""Where things are in a session, in either dialect, and what changes make of it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from strategies.session_model.agent_settings import Dialect

__all__ = ["ABSENT", "DETECTION", "TRANSCRIPTION", "VOICE", "Path", "merged", "put", "value_of"]

Path = tuple[str | int, ...]

ABSENT = object()
DETECTION: Mapping[Dialect, tuple[str, ...]] = {
    "ga": ("audio", "input", "turn_detection"),
    "preview": ("turn_detection",),
}
"""Where the turn detection of a session is."""
TRANSCRIPTION: Mapping[Dialect, tuple[str, ...]] = {
    "ga": ("audio", "input", "transcription"),
    "preview": ("input_audio_transcription",),
}
VOICE: Mapping[Dialect, tuple[str, ...]] = {"ga": ("audio", "output", "voice"), "preview": ("voice",)}


def value_of(session: Any, path: Path) -> Any:
    """What is at `path`; ABSENT where nothing is."""
    for step in path:
        if isinstance(step, int):
            if not isinstance(session, Sequence) or isinstance(session, str) or step >= len(session):
                return ABSENT
        elif not isinstance(session, Mapping) or step not in session:
            return ABSENT
        session = session[step]
    return session


def put(session: Any, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of `session` with this value at `path`."""
    first, *rest = path
    own = dict(session) if isinstance(session, Mapping) else {}
    return own | {first: put(own.get(first), tuple(rest), value) if rest else value}


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with these changes. A value that has a `type` is replaced as a whole, as Azure does it."""
    result = dict(settings)
    for name, value in changes.items():
        known = result.get(name)
        if isinstance(known, dict) and isinstance(value, dict) and "type" not in value:
            result[name] = merged(known, value)
        else:
            result[name] = value
    return result
