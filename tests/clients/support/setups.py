"""The input of the client programs, and the assertions on their reports."""

import base64
from collections.abc import Mapping
from typing import Any

from tests.clients.support.compat import MODEL, CompatEndpoint
from tests.simulator.support import correlation, silence, speech

__all__ = ["PREVIEW_SESSION", "QUESTION", "SAID", "TURNS", "TYPED", "assert_heard", "make_setup"]

SAID = speech(2)
TYPED = "Hello there"
QUESTION = silence(0.3) + SAID + silence(1)
"""The audio that is sent: the speech, and the silence that ends a turn."""
_ANSWERS = ["[simulated] you said 2.5 s of speech", f"[simulated] you wrote: {TYPED}"]
_ANSWER_BYTES = 120_000  # 2.5 s: the speech, and the quiet around it that counts as spoken
_TRANSCRIPT = "[simulated] 2.5 s of speech"
TURNS = [("user", _TRANSCRIPT), ("assistant", _ANSWERS[0]), ("user", TYPED), ("assistant", _ANSWERS[1])]

_TURN_DETECTION = {"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 800}
GA_SESSION: dict[str, Any] = {
    "type": "realtime",
    "instructions": "You are a pirate.",
    "output_modalities": ["audio"],
    "audio": {
        "input": {"transcription": {"model": "gpt-4o-mini-transcribe"}, "turn_detection": _TURN_DETECTION},
        "output": {"voice": "marin"},
    },
}
PREVIEW_SESSION: dict[str, Any] = {
    "instructions": "You are a pirate.",
    "modalities": ["text", "audio"],
    "voice": "alloy",
    "input_audio_transcription": {"model": "whisper-1"},
    "turn_detection": _TURN_DETECTION,
}


def make_setup(compat: CompatEndpoint, key: str, **options: Any) -> dict[str, Any]:
    """The JSON that a program reads. `options`: `azure`, `mints`, `credential`, `inBrowser`, `session`."""
    return {
        "http": compat.http,
        "https": compat.https,
        "openaiPath": compat.openai_path,
        "model": MODEL,
        "key": key,
        "said": base64.b64encode(QUESTION).decode(),
        "typed": TYPED,
        "session": GA_SESSION,
        "azure": False,
        "mints": False,
        "inBrowser": False,
        **options,
    }


def assert_heard(report: Mapping[str, Any]) -> None:
    """Both exchanges are complete: the sound of the speech, the transcripts, and the end of each response."""
    assert "failure" not in report, report
    assert report["user"] == [_TRANSCRIPT]
    assert report["answers"] == _ANSWERS
    assert report["counts"]["response.done"] == 2
    heard = base64.b64decode(report["audio"])
    assert correlation(SAID, heard[:_ANSWER_BYTES]) > 0.99
    assert len(heard) > _ANSWER_BYTES
