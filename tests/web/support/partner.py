"""Azure's side of a fake talk: detects speech by loudness, and answers with the same sound."""

import array
import asyncio
import base64
import itertools
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["WIRE_RATE", "Partner"]

WIRE_RATE = 24_000
_LOUD = 500  # of 32,768
_PAUSE_S = 0.5
_LEAD_IN_S = 0.2
_DELTA_SAMPLES = 2_400  # 100 ms

Event = dict[str, Any]


class Partner:
    """One talk. `hear` takes PCM16 at 24 kHz; events go to `tell`; audio goes to `speak` where there is one (WebRTC).

    Without `speak` the audio goes into events of the dialect, faster than real time.
    """

    def __init__(
        self,
        tell: Callable[[Event], Awaitable[None]],
        speak: Callable[[bytes], Awaitable[None]] | None = None,
        *,
        dialect: str = "ga",
    ) -> None:
        self._tell = tell
        self._speak = speak
        self._dialect = dialect
        self._name = secrets.token_hex(4)  # unique ids, as Azure's
        self._numbers = itertools.count(1)
        self._heard = bytearray()
        self._speaking = False
        self._quiet_s = 0.0
        self._last_item: str | None = None
        self.from_client: list[Event] = []
        self.heard_s = 0.0
        self.was_loud = False
        self.recorded = bytearray()
        """All that was heard."""
        self._news = asyncio.Event()

    async def hear(self, pcm: bytes) -> None:
        loud = max(map(abs, array.array("h", pcm)), default=0) > _LOUD
        length_s = len(pcm) / 2 / WIRE_RATE
        self.heard_s += length_s
        self.recorded += pcm
        self.was_loud |= loud
        self._heard += pcm
        if loud and not self._speaking:
            self._speaking = True
            await self._tell({"type": "input_audio_buffer.speech_started", "audio_start_ms": 0})
        self._quiet_s = 0.0 if loud else self._quiet_s + length_s
        if not self._speaking:
            del self._heard[: -int(_LEAD_IN_S * WIRE_RATE) * 2]
        elif self._quiet_s >= _PAUSE_S:
            said, self._heard, self._speaking = bytes(self._heard), bytearray(), False
            await self._answer_speech(said)

    async def take(self, event: Event) -> None:
        """An event from the client."""
        if event.get("type") != "input_audio_buffer.append":
            self.from_client.append(event)
            self._news.set()
        match event.get("type"):
            case "input_audio_buffer.append":
                await self.hear(base64.b64decode(event["audio"]))
            case "conversation.item.create":
                await self._item(event["item"])
            case "response.create":
                await self._respond(bytes(WIRE_RATE), "You wrote to me.")

    async def wait_for(self, kind: str, timeout_s: float = 5) -> Event:
        """The first event of this kind from the client."""
        async with asyncio.timeout(timeout_s):
            while True:
                for event in self.from_client:
                    if event["type"] == kind:
                        return event
                self._news.clear()
                await self._news.wait()

    async def answer_with_tone(self, seconds: float, *, finished: bool = True) -> None:
        """Sends an answer of `seconds`, a tone."""
        samples = (8_000 if n // 60 % 2 else -8_000 for n in range(int(seconds * WIRE_RATE)))
        await self._respond(array.array("h", samples).tobytes(), "Once upon a time.", finished=finished)

    async def begin_to_say(self, words: str) -> None:
        """Sends the first words of an answer that never ends."""
        ids = {"response_id": self._new("resp"), "item_id": self._new("item_a"), "output_index": 0, "content_index": 0}
        infix = "output_audio" if self._dialect == "ga" else "audio"
        await self._tell({"type": f"response.{infix}_transcript.delta", **ids, "delta": words})

    async def call_function(self, name: str, arguments: str = "{}") -> str:
        """Calls a function of the client's; the call's id."""
        call_id = self._new("call")
        call = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
        await self._tell({"type": "response.output_item.done", "item": {**call, "status": "completed"}})
        return call_id

    @property
    def outputs(self) -> list[tuple[str, str]]:
        """What the client gave for each call, by the call's id."""
        items = [event["item"] for event in self.from_client if event["type"] == "conversation.item.create"]
        return [(item["call_id"], item["output"]) for item in items if item["type"] == "function_call_output"]

    async def notice_speech(self) -> None:
        """Says that the user speaks. Azure cancels its answer by itself then."""
        await self._tell({"type": "input_audio_buffer.speech_started", "audio_start_ms": 0})

    async def _answer_speech(self, said: bytes) -> None:
        item_id = self._new("item_u")
        await self._tell({"type": "input_audio_buffer.speech_stopped", "item_id": item_id})
        await self._tell(
            {"type": "input_audio_buffer.committed", "item_id": item_id, "previous_item_id": self._last_item}
        )
        await self._item({"id": item_id, "type": "message", "role": "user", "content": []})
        seconds = round(len(said) / 2 / WIRE_RATE - _PAUSE_S, 1)
        heard = {"item_id": item_id, "content_index": 0, "transcript": f"I spoke for {seconds} s."}
        await self._respond(said, f"You spoke for {seconds} s.")
        await self._tell({"type": "conversation.item.input_audio_transcription.completed", **heard})

    async def _item(self, item: Event) -> None:
        item = {"id": self._new("item"), **item}
        made = "conversation.item.added" if self._dialect == "ga" else "conversation.item.created"
        await self._tell({"type": made, "previous_item_id": self._last_item, "item": item})
        self._last_item = item["id"]

    async def _respond(self, pcm: bytes, words: str, *, finished: bool = True) -> None:
        ids = {"response_id": self._new("resp"), "item_id": self._new("item_a"), "output_index": 0, "content_index": 0}
        infix = "output_audio" if self._dialect == "ga" else "audio"
        await self._tell({"type": "response.created", "response": {"id": ids["response_id"], "status": "in_progress"}})
        await self._item({"id": ids["item_id"], "type": "message", "role": "assistant", "content": []})
        if self._speak:
            await self._tell({"type": "output_audio_buffer.started", "response_id": ids["response_id"]})
            await self._speak(pcm)
        for word in words.split():
            await self._tell({"type": f"response.{infix}_transcript.delta", **ids, "delta": f"{word} "})
        for start in range(0, 0 if self._speak else len(pcm), 2 * _DELTA_SAMPLES):
            delta = base64.b64encode(pcm[start : start + 2 * _DELTA_SAMPLES]).decode()
            await self._tell({"type": f"response.{infix}.delta", **ids, "delta": delta})
            await asyncio.sleep(0)
        if not finished:
            return
        await self._tell({"type": f"response.{infix}.done", **ids})
        await self._tell({"type": f"response.{infix}_transcript.done", **ids, "transcript": words})
        await self._tell({"type": "response.done", "response": {"id": ids["response_id"], "status": "completed"}})

    def _new(self, prefix: str) -> str:
        return f"{prefix}_{self._name}_{next(self._numbers)}"
