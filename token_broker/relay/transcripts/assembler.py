"""From events to turns, in either dialect. Pure: events and the time go in, what was said comes out.

An item's place follows `previous_item_id` (docs/azure.md §4.2), so that a user's words sort before the answer to them
even where their transcript comes after it. An assistant's turn is held until it is known whether it was interrupted:
until its response is done and its audio, sent faster than real time, can have been played; or until the user's next
words, a truncation or the end of the talk decide it sooner.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from token_broker.bounded_dict import BoundedDict
from token_broker.memory.types import Role

__all__ = ["NOT_TRANSCRIBED", "TURN_EVENTS", "FinishedTurn", "TurnAssembler"]

NOT_TRANSCRIBED = "(speech that could not be transcribed)"

_ITEMS_KEPT = 2048
_PART_DELTAS_KEPT = 8192
_HELD_WITHOUT_DONE_S = 1.0
_HELD_AT_MOST_S = 30.0
_OUTSIDE_KEPT = 64
_BASE64 = 4 / 3
# Bytes of a second of sound, by the names that both dialects have for a format.
_BYTES_A_SECOND = {
    "pcm16": 48_000,
    "audio/pcm": 48_000,
    "pcm16_16000hz": 32_000,
    "pcm16-16000hz": 32_000,
    "pcm16_8000hz": 16_000,
    "pcm16-8000hz": 16_000,
    "g711_ulaw": 8_000,
    "audio/pcmu": 8_000,
    "g711_alaw": 8_000,
    "audio/pcma": 8_000,
}

_USER_DONE = "conversation.item.input_audio_transcription.completed"
_USER_FAILED = "conversation.item.input_audio_transcription.failed"
_USER_DELTA = "conversation.item.input_audio_transcription.delta"
_COMMITTED = "input_audio_buffer.committed"
_TRUNCATED = "conversation.item.truncated"
_RESPONSE_CREATED = "response.created"
_RESPONSE_DONE = "response.done"
_SESSION = frozenset({"session.created", "session.updated"})
_PLAYING = "output_audio_buffer.started"  # these two come with WebRTC alone, where Azure itself plays the audio
_PLAYED = "output_audio_buffer.stopped"
_ITEM_MADE = frozenset({"conversation.item.created", "conversation.item.added", "conversation.item.done"})
_PART_DONE = {
    "response.audio_transcript.done": "transcript",
    "response.output_audio_transcript.done": "transcript",
    "response.text.done": "text",
    "response.output_text.done": "text",
}
_PART_DELTA = frozenset(
    {
        "response.audio_transcript.delta",
        "response.output_audio_transcript.delta",
        "response.text.delta",
        "response.output_text.delta",
    }
)

TURN_EVENTS = frozenset(
    {
        _USER_DONE,
        _USER_FAILED,
        _USER_DELTA,
        _COMMITTED,
        _TRUNCATED,
        _RESPONSE_CREATED,
        _RESPONSE_DONE,
        _PLAYING,
        _PLAYED,
        *_SESSION,
        *_ITEM_MADE,
        *_PART_DONE,
        *_PART_DELTA,
    }
)

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FinishedTurn:
    """What somebody said, whole or as far as it came. `sequence` is the place among the talk's messages, from 0."""

    item_id: str
    role: Role
    content: str
    sequence: int
    interrupted: bool = False
    transcribed: bool = True


@dataclass(slots=True)
class _Answer:
    """An assistant's item on its way: its finished parts and the deltas of the one under way, by content index."""

    response_id: str | None
    parts: dict[int, str] = field(default_factory=dict)
    deltas: dict[int, list[str]] = field(default_factory=dict)
    due_s: float | None = None  # when it is taken as whole without more being heard
    interrupted: bool = False

    @property
    def text(self) -> str:
        whole = self.parts | {index: "".join(some) for index, some in self.deltas.items() if index not in self.parts}
        return " ".join(part for _, part in sorted(whole.items()) if part.strip()).strip()


class TurnAssembler:
    """One talk's turns. Feed it the events of `TURN_EVENTS`; ask `due(now)` when `due_s` has come; `flush` at the end.

    It goes on counting places where the talk moves to another upstream (`flush`, then feed the new one's events).
    """

    def __init__(self) -> None:
        self._next_place = 0
        self._places = BoundedDict[str, int](_ITEMS_KEPT)
        self._told = BoundedDict[str, None](_ITEMS_KEPT)
        self._answers = BoundedDict[str, _Answer](_ITEMS_KEPT)
        self._awaited = BoundedDict[str, list[str]](_ITEMS_KEPT)  # the user's spoken items: transcript so far
        self._outside: deque[str] = deque(maxlen=_OUTSIDE_KEPT)  # responses that are no part of the conversation
        self._chars_a_second = _BYTES_A_SECOND["pcm16"] * _BASE64
        self._playing_until_s = 0.0

    def ignore(self, item_id: str) -> None:
        """An item of the broker's own making: it is nobody's turn and takes no place."""
        self._told[item_id] = None
        self._places[item_id] = self._next_place - 1

    @property
    def awaits_user(self) -> bool:
        """Whether something the user said has not been transcribed yet."""
        return bool(self._awaited)

    @property
    def due_s(self) -> float | None:
        """When `due` has something to tell, if nothing happens before."""
        return min((a.due_s for a in self._answers.values() if a.due_s is not None), default=None)

    def heard(self, audio_chars: int, now_s: float) -> None:
        """Azure sent a delta of audio, `audio_chars` long in base64; it is played after what came before it."""
        self._playing_until_s = max(self._playing_until_s, now_s) + audio_chars / self._chars_a_second

    def feed(self, event: Event, now_s: float) -> list[FinishedTurn]:
        """What is finished by this event of Azure's, in the order of places."""
        kind = event.get("type")
        item_id = _text(event.get("item_id"))
        if kind in _PART_DELTA:
            return self._part_delta(item_id, event)
        if kind in _PART_DONE:
            return self._part_done(item_id, event, _text(event.get(_PART_DONE[str(kind)])), now_s)
        if kind == _RESPONSE_CREATED:
            return self._response_created(event)
        if kind == _RESPONSE_DONE:
            return self._response_done(event, now_s)
        if kind in _SESSION:
            return self._session(event)
        if kind == _COMMITTED:
            return self._committed(item_id, event)
        if kind == _USER_DELTA:
            return self._user_delta(item_id, event)
        if kind == _USER_DONE:
            return self._user_said(item_id, _text(event.get("transcript")))
        if kind == _USER_FAILED:
            return self._user_said(item_id, "", transcribed=False)
        if kind == _TRUNCATED:
            return self._truncated(item_id)
        if kind == _PLAYING:
            self._playing_until_s = now_s + _HELD_AT_MOST_S
            return []
        if kind == _PLAYED:
            return self._played(now_s)
        if kind in _ITEM_MADE:
            return self._item_made(event)
        return []

    def due(self, now_s: float) -> list[FinishedTurn]:
        """The held turns whose time has come."""
        ready = [
            item_id for item_id, answer in self._answers.items() if answer.due_s is not None and answer.due_s <= now_s
        ]
        return self._tell_all(ready)

    def flush(self) -> list[FinishedTurn]:
        """All that is left, as far as it came: the talk, or its upstream, is over."""
        turns = self._tell_all(list(self._answers), cut=True)
        for item_id, some in list(self._awaited.items()):
            turns += self._user_said(item_id, "".join(some), interrupted=True)
        self._playing_until_s = 0.0
        return sorted(turns, key=lambda turn: turn.sequence)

    # --- the user

    def _committed(self, item_id: str, event: Event) -> list[FinishedTurn]:
        turns = self._tell_all([known for known, answer in self._answers.items() if answer.due_s is not None])
        if item_id and item_id not in self._told:
            self._place(item_id, event.get("previous_item_id"))
            self._awaited.setdefault(item_id, [])
        return turns

    def _user_delta(self, item_id: str, event: Event) -> list[FinishedTurn]:
        # Streaming transcription begins before the audio is committed, and an utterance may end with the talk instead.
        if item_id and item_id not in self._told:
            some = self._awaited.setdefault(item_id, [])
            if len(some) < _PART_DELTAS_KEPT:
                some.append(_text(event.get("delta")))
        return []

    def _user_said(
        self, item_id: str, transcript: str, *, transcribed: bool = True, interrupted: bool = False
    ) -> list[FinishedTurn]:
        self._awaited.pop(item_id, None)
        content = transcript.strip() if transcribed else NOT_TRANSCRIBED
        return self._tell(item_id, "user", content, transcribed=transcribed, interrupted=interrupted)

    # --- items

    def _item_made(self, event: Event) -> list[FinishedTurn]:
        item = event.get("item")
        if not isinstance(item, dict) or not (item_id := _text(item.get("id"))):
            return []
        if item.get("type", "message") != "message":
            self._places.setdefault(item_id, self._next_place - 1)  # no message: it stands where the last one does
            return []
        if event.get("type") != "conversation.item.done":
            self._place(item_id, event.get("previous_item_id"))
        if item.get("role") == "user" and (typed := _typed_text(item)):
            return self._tell(item_id, "user", typed)
        return []

    def _place(self, item_id: str, previous: Any = None) -> int:
        """The item's place; one that is named as its forerunner before it was seen itself is placed first."""
        if item_id in self._places:
            return self._places[item_id]
        if isinstance(previous, str) and previous not in {"", "root", item_id}:
            self._place(previous)
        place = self._places[item_id] = self._next_place
        self._next_place += 1
        return place

    # --- the assistant

    def _session(self, event: Event) -> list[FinishedTurn]:
        """Notes the format of what Azure says, by which its playing time is known."""
        session = event.get("session")
        if isinstance(session, dict) and (bytes_a_second := _BYTES_A_SECOND.get(_output_format(session))):
            self._chars_a_second = bytes_a_second * _BASE64
        return []

    def _response_created(self, event: Event) -> list[FinishedTurn]:
        response = event.get("response")
        if isinstance(response, dict) and "conversation_id" in response and response["conversation_id"] is None:
            self._outside.append(_text(response.get("id")))
        return []

    def _answer(self, item_id: str, event: Event) -> _Answer | None:
        if not item_id or item_id in self._told or event.get("response_id") in self._outside:
            return None
        answer = self._answers.get(item_id)
        if answer is None:
            answer = self._answers[item_id] = _Answer(_text(event.get("response_id")) or None)
        return answer

    def _part_delta(self, item_id: str, event: Event) -> list[FinishedTurn]:
        if (answer := self._answer(item_id, event)) is not None:
            deltas = answer.deltas.setdefault(_index(event), [])
            if len(deltas) < _PART_DELTAS_KEPT:
                deltas.append(_text(event.get("delta")))
        return []

    def _part_done(self, item_id: str, event: Event, text: str, now_s: float) -> list[FinishedTurn]:
        if (answer := self._answer(item_id, event)) is not None:
            index = _index(event)
            answer.parts[index] = text
            answer.deltas.pop(index, None)
            answer.due_s = max(now_s + _HELD_WITHOUT_DONE_S, self._played_by_s(now_s))
        return []

    def _response_done(self, event: Event, now_s: float) -> list[FinishedTurn]:
        response = event.get("response")
        if not isinstance(response, dict):
            return []
        response_id = _text(response.get("id")) or None
        mine = [item for item, answer in self._answers.items() if answer.response_id in {response_id, None}]
        whole = response.get("status", "completed") == "completed"
        if not whole:
            self._playing_until_s = 0.0
            return self._tell_all(mine, cut=True, interrupted=True)
        for item_id in mine:
            self._answers[item_id].due_s = self._played_by_s(now_s)
        return self.due(now_s)

    def _truncated(self, item_id: str) -> list[FinishedTurn]:
        self._playing_until_s = 0.0
        if (answer := self._answers.get(item_id)) is None:
            return []
        answer.interrupted = True
        return self._tell_all([item_id]) if answer.due_s is not None else []

    def _played(self, now_s: float) -> list[FinishedTurn]:
        self._playing_until_s = 0.0
        for answer in self._answers.values():
            if answer.due_s is not None:
                answer.due_s = min(answer.due_s, now_s)
        return self.due(now_s)

    def _played_by_s(self, now_s: float) -> float:
        return min(max(self._playing_until_s, now_s), now_s + _HELD_AT_MOST_S)

    # --- telling

    def _tell_all(self, item_ids: list[str], *, cut: bool = False, interrupted: bool = False) -> list[FinishedTurn]:
        turns: list[FinishedTurn] = []
        for item_id in item_ids:
            answer = self._answers.pop(item_id)
            unfinished = cut and answer.due_s is None
            turns += self._tell(
                item_id, "assistant", answer.text, interrupted=answer.interrupted or interrupted or unfinished
            )
        return sorted(turns, key=lambda turn: turn.sequence)

    def _tell(
        self, item_id: str, role: Role, content: str, *, interrupted: bool = False, transcribed: bool = True
    ) -> list[FinishedTurn]:
        if not item_id or not content or item_id in self._told:
            return []
        self._told[item_id] = None
        place = self._place(item_id)
        return [FinishedTurn(item_id, role, content, place, interrupted=interrupted, transcribed=transcribed)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _output_format(session: Mapping[str, Any]) -> str:
    """The format's name, where either dialect has it; empty where it is not said."""
    audio = session.get("audio")
    output = audio.get("output") if isinstance(audio, dict) else None
    told = output.get("format") if isinstance(output, dict) else session.get("output_audio_format")
    return _text(told.get("type") if isinstance(told, dict) else told)


def _index(event: Event) -> int:
    index = event.get("content_index")
    return index if isinstance(index, int) else 0


def _typed_text(item: Event) -> str:
    """What the user typed rather than spoke; empty where the item holds audio, whose transcript comes by itself."""
    content = item.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return " ".join(_text(part.get("text")) for part in parts if part.get("type") == "input_text").strip()
