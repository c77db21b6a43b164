"""A model of Azure for the resume's pure core: events in, events out, no socket and no clock.

It hears whose speech an append carries (`speech`), so that a test can say which utterance each answer is for.
"""

import base64
import functools
import json
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from strategies.base import Dialect
from token_broker.relay.resume.held_audio import HeldAudio
from token_broker.relay.resume.ledger import TalkLedger
from token_broker.relay.resume.replay import NewSession, replay
from token_broker.relay.resume.restored import Restored
from token_broker.relay.resume.steps import Handover

Event = dict[str, Any]

APPEND_MS = 100
CHUNKS = 4
_LOUD_TO_START = 2
_QUIET_TO_STOP = 8
_APPEND = '{"type":"input_audio_buffer.append"'
_VAD = {"type": "server_vad"}


@functools.cache
def append(utterance: int) -> str:
    """100 ms of audio: of this utterance, or of silence (0)."""
    level = 4_000 + utterance if utterance else 0
    audio = base64.b64encode(array("h", [level] * (24 * APPEND_MS)).tobytes()).decode()
    return '{"type":"input_audio_buffer.append","audio":"' + audio + '"}'


@functools.cache
def utterance_in(payload: bytes | str) -> int:
    """Which utterance an append carries; 0: silence."""
    level = array("h", base64.b64decode(json.loads(payload)["audio"]))[0]
    return level - 4_000 if level else 0


@dataclass
class Answered:
    """An answer that a session made: to which utterance, and how much of it was delivered; `whole`: its end, too."""

    utterance: int
    goes_on: bool
    delivered: int = 0
    whole: bool = False


@dataclass
class ModelAzure:
    """One session. `receive` takes what the broker sends; `events` are what it would send, in order."""

    name: str
    events: deque[Event] = field(default_factory=deque)
    answers: dict[str, Answered] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)
    detects: bool = True
    _buffer: list[int] = field(default_factory=list)
    _heard_ms: int = 0
    _last: int = 0
    _speaking: str | None = None
    _loud: int = 0
    _quiet: int = 0
    _made: int = 0

    def receive(self, message: bytes | str) -> None:
        if message[: len(_APPEND)] == _APPEND:
            self._hear(utterance_in(message))
            return
        event = json.loads(message)
        kind = event["type"]
        if kind == "session.update":
            self.detects = event["session"]["turn_detection"] is not None
            self._buffer, self._speaking = [], None
            self.events.append({"type": "session.updated", "session": event["session"]})
        elif kind == "input_audio_buffer.commit":
            self._commit(self._new("item"))
        elif kind == "conversation.item.create":
            item = event["item"]
            for part in item.get("content", []):
                if item["role"] == "user":
                    self._last = int(part["text"].split()[-1])
            self.events.append({"type": "conversation.item.created", "item": item})
        elif kind == "response.create":
            self._answer(goes_on="instructions" in (event.get("response") or {}))

    def _hear(self, utterance: int) -> None:
        self._heard_ms += APPEND_MS
        self._buffer.append(utterance)
        if not self.detects:
            return
        self._loud = self._loud + 1 if utterance else 0
        self._quiet = 0 if utterance else self._quiet + 1
        if self._speaking is None and self._loud >= _LOUD_TO_START:
            self._speaking = self._new("item")
            self._buffer = self._buffer[-_LOUD_TO_START:]
            start_ms = self._heard_ms - _LOUD_TO_START * APPEND_MS
            self._tell("input_audio_buffer.speech_started", item_id=self._speaking, audio_start_ms=start_ms)
        elif self._speaking is not None and self._quiet >= _QUIET_TO_STOP:
            item_id, self._speaking = self._speaking, None
            self._tell("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=self._heard_ms)
            self._commit(item_id)
            self._answer(goes_on=False)

    def _commit(self, item_id: str) -> None:
        spoken = [each for each in self._buffer if each]
        assert spoken, "an empty buffer was committed"
        self._last = self.said[item_id] = spoken[-1]
        self._buffer = []
        self._tell("input_audio_buffer.committed", item_id=item_id, previous_item_id=None)
        content = [{"type": "input_audio"}]
        self._tell("conversation.item.created", item={"id": item_id, "role": "user", "content": content})

    def _answer(self, *, goes_on: bool) -> None:
        response_id, item_id = self._new("resp"), self._new("item")
        self.answers[response_id] = Answered(self._last, goes_on)
        about = {"response_id": response_id, "item_id": item_id, "content_index": 0}
        item = {"id": item_id, "type": "message", "role": "assistant", "content": []}
        self._tell("response.created", response={"id": response_id, "status": "in_progress"})
        self._tell("response.output_item.added", response_id=response_id, item=item)
        for number in range(CHUNKS):
            self._tell("response.audio_transcript.delta", **about, delta=f"word{number} ")
            self._tell("response.audio.delta", **about, delta="AAAA")
            user = next((each for each, number in self.said.items() if number == self._last), None)
            if number == 1 and user is not None:
                transcribed = "conversation.item.input_audio_transcription.completed"
                self._tell(transcribed, item_id=user, content_index=0, transcript=f"question {self._last}")
        self._tell("response.audio.done", **about)
        self._tell("response.audio_transcript.done", **about, transcript="word0 word1 word2 word3")
        self._tell("response.output_item.done", response_id=response_id, item=item)
        self._tell("response.done", response={"id": response_id, "status": "completed"})

    def _tell(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, **fields})

    def _new(self, kind: str) -> str:
        self._made += 1
        return f"{kind}_{self.name}_{self._made}"


class ModelTalk:
    """A talk's core between a client and models of Azure, of which one after the other is lost."""

    def __init__(self, *, dialect: Dialect = "preview") -> None:
        self.ledger = TalkLedger(HeldAudio(15 * 64_000))
        self.restored = Restored()
        self.sessions = [ModelAzure("s0")]
        self.shown: list[Event] = []
        self.now_s = 0.0
        self._session = NewSession(
            dialect, {"instructions": "Be Elena.", "modalities": ["audio", "text"]} | {"turn_detection": _VAD}
        )
        self.ledger.facts.note({"turn_detection": _VAD, "input_audio_transcription": {"model": "whisper-1"}})

    @property
    def azure(self) -> ModelAzure:
        return self.sessions[-1]

    def say(self, utterance: int) -> None:
        """The client sends 100 ms."""
        payload = append(utterance)
        self.azure.receive(payload)
        self.ledger.audio.append(payload)
        self.now_s += APPEND_MS / 1000
        self.ledger.trim(self.now_s)

    def send(self, event: Event) -> None:
        """The client sends another event."""
        text = json.dumps(event)
        self.ledger.client_sent(event["type"], text, event)
        self.azure.receive(self.restored.for_azure(text))

    def deliver(self) -> bool:
        """The broker handles Azure's next event, as the event handler does; False: there is none."""
        if not self.azure.events:
            return False
        event = self.azure.events.popleft()
        if event["type"] == "response.audio.delta":
            self.azure.answers[event["response_id"]].delivered += 1
            self.ledger.sounded(len(event["delta"]))
            self.shown.append(event)
            return True
        if event["type"] == "response.audio.done":
            self.azure.answers[event["response_id"]].whole = True
        self.restored.name_of(event)
        event = json.loads(self.restored.for_client(json.dumps(event)))
        if self.restored.is_known(event):
            return True
        self.ledger.azure_sent(event, self.now_s)
        if not self.restored.is_told(event):
            self.shown.append(event)
        return True

    def cut(self) -> Handover:
        """The session is lost, and the talk goes on in another. What the old one has not delivered is lost with it."""
        handover = self.ledger.cut(self.now_s)
        self.shown += handover.endings
        self.sessions.append(ModelAzure(f"s{len(self.sessions)}"))
        self.restored.begin()
        steps = self.ledger.steps()
        made = replay(steps, self._session, old=self._session.dialect, restored=self.restored)
        self.ledger.moved(replayed_chars=made.committed_chars, listened_chars=made.open_chars)
        for message in made.messages:
            self.azure.receive(message)
        return Handover(handover.endings, handover.unsaid, steps)
