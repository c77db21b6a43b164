"""The server events of one talk, in either dialect: a program waits for them, and reports them to its test."""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

__all__ = ["TalkLog", "audio_chunks", "text_message"]

_AUDIO = {"response.output_audio.delta", "response.audio.delta"}
_ANSWER = {
    "response.output_audio_transcript.done": "transcript",
    "response.audio_transcript.done": "transcript",
    "response.output_text.done": "text",
    "response.text.done": "text",
}
_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
_LIMIT_S = 20
_CHUNK_BYTES = 4_800  # 100 ms


class TalkLog:
    """Reads a client's events only while a program waits for one: the log holds what the program has waited for."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events
        self.counts: Counter[str] = Counter()
        self.user: list[str] = []
        self.answers: list[str] = []
        self.audio = b""

    async def until(self, *types: str, count: int = 1) -> None:
        """Reads until `count` events of each type have come. Raises RuntimeError on an error event."""
        async with asyncio.timeout(_LIMIT_S):
            while any(self.counts[kind] < count for kind in types):
                self._add(await anext(self._events))

    async def until_first_answer(self) -> None:
        """Returns once the speech has been transcribed and answered."""
        await self.until(_TRANSCRIBED, "response.done")

    def report(self) -> dict[str, Any]:
        audio = base64.b64encode(self.audio).decode()
        return {"counts": dict(self.counts), "user": self.user, "answers": self.answers, "audio": audio}

    def _add(self, event: Any) -> None:
        kind = str(getattr(event.type, "value", event.type))
        self.counts[kind] += 1
        if kind == "error":
            raise RuntimeError(f"an error came: {event.error}")
        if kind in _AUDIO:
            self.audio += event.delta if isinstance(event.delta, bytes) else base64.b64decode(event.delta)
        elif kind in _ANSWER:
            self.answers.append(getattr(event, _ANSWER[kind]))
        elif kind == _TRANSCRIBED:
            self.user.append(event.transcript)


def audio_chunks(pcm_base64: str) -> Iterator[str]:
    """The speech, 100 ms at a time, in base64."""
    pcm = base64.b64decode(pcm_base64)
    for begin in range(0, len(pcm), _CHUNK_BYTES):
        yield base64.b64encode(pcm[begin : begin + _CHUNK_BYTES]).decode()


def text_message(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
