"""Clocks that tests move, and Azure's events about what it bills."""

from typing import Any

from token_broker.security.tokens import Owner
from token_broker.usage.days import DAY_US, StoreClock

__all__ = ["DAY", "Hands", "created", "done", "make_owner", "tokens", "transcribed"]

DAY = 20_000  # a UTC day, counted from 1970


class OwnClock(StoreClock):
    """Keeps its time, whatever the database says."""

    def note(self, now_us: int) -> None:
        del now_us


class Hands:
    """A clock's hands: `move` moves them. Begins `before_s` before the end of `DAY`."""

    def __init__(self, before_s: float = 3600.0) -> None:
        self.s = 1000.0
        wall_s = (DAY + 1) * DAY_US / 1_000_000 - before_s
        self.clock = OwnClock(wall_s=lambda: wall_s, monotonic_s=lambda: self.s)

    def move(self, seconds: float) -> None:
        self.s += seconds


def make_owner(talk_id: str = "talk-1", principal: str = "ann", session_id: str = "session-0000000000") -> Owner:
    return Owner(session_id, principal, 1, None, talk_id)


def tokens(
    text_in: int = 3, audio_in: int = 10, text_out: int = 2, audio_out: int = 20, cached: int = 4
) -> dict[str, Any]:
    return {
        "total_tokens": text_in + audio_in + text_out + audio_out,
        "input_tokens": text_in + audio_in,
        "output_tokens": text_out + audio_out,
        "input_token_details": {
            "text_tokens": text_in,
            "audio_tokens": audio_in,
            "cached_tokens": cached,
            "cached_tokens_details": {"text_tokens": 0, "audio_tokens": cached},
        },
        "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
    }


def created(key: str) -> dict[str, Any]:
    return {"type": "response.created", "response": {"id": key}}


def done(key: str, usage: object = None) -> dict[str, Any]:
    return {"type": "response.done", "response": {"id": key, "usage": tokens() if usage is None else usage}}


def transcribed(key: str, usage: object) -> dict[str, Any]:
    kind = "conversation.item.input_audio_transcription.completed"
    return {"type": kind, "item_id": key, "content_index": 0, "usage": usage}
