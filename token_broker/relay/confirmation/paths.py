"""Where things are in a session, in either dialect. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from strategies.base import Dialect

__all__ = ["ABSENT", "DETECTION", "TRANSCRIPTION", "VOICE", "Path", "value_of"]

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
