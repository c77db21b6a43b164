"""What came in during a talk, in either dialect: the talks that both Python clients hold, and their report."""

import asyncio
import base64
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

__all__ = ["Heard", "chunks", "hold_talks", "typed"]

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


class Heard:
    """Reads a client's events, as far as a program asks."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events
        self.counts: Counter[str] = Counter()
        self.user: list[str] = []
        self.answers: list[str] = []
        self.audio = b""

    async def until(self, *types: str, count: int = 1) -> None:
        """Reads until so many events of each type have come. Raises RuntimeError on an error event."""
        async with asyncio.timeout(_LIMIT_S):
            while any(self.counts[kind] < count for kind in types):
                self._note(await anext(self._events))

    async def spoken(self) -> None:
        """The speech of the first exchange has been transcribed and answered."""
        await self.until(_TRANSCRIBED, "response.done")

    def report(self) -> dict[str, Any]:
        audio = base64.b64encode(self.audio).decode()
        return {"counts": dict(self.counts), "user": self.user, "answers": self.answers, "audio": audio}

    def _note(self, event: Any) -> None:
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


def hold_talks(talk: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Holds the talk that the JSON on stdin asks for, and prints what it heard as JSON, or how it failed.

    With several `keys`, a talk and a report for each.
    """
    setup: dict[str, Any] = json.load(sys.stdin)

    async def hold(key: str) -> dict[str, Any]:
        try:
            return await talk({**setup, "key": key})
        except Exception as error:  # noqa: BLE001  # whatever the client raises is what is asked for
            status, code = getattr(error, "status_code", None), getattr(error, "code", None)
            return {"failure": {"name": type(error).__name__, "message": str(error), "status": status, "code": code}}

    async def hold_all() -> Any:
        reports = [await hold(key) for key in setup.get("keys", [setup["key"]])]
        return reports if "keys" in setup else reports[0]

    sys.stdout.write(json.dumps(asyncio.run(hold_all())) + "\n")


def chunks(said: str) -> Iterator[str]:
    """The speech, 100 ms at a time, in base64."""
    pcm = base64.b64decode(said)
    for begin in range(0, len(pcm), _CHUNK_BYTES):
        yield base64.b64encode(pcm[begin : begin + _CHUNK_BYTES]).decode()


def typed(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
