"""Assembles turns from Azure's events, in either dialect. Pure: events and the time go in, turns come out.

An item's sequence number follows `previous_item_id` (docs/azure.md §4.2), so a user's turn sorts before the answer to
it even where its transcript arrives later. An assistant's turn is returned as soon as Azure has completed it. Its audio
arrives faster than it is played, so the user may still cut in: then the turn is returned again, as interrupted.
"""

from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from token_broker.memory.types import Role
from token_broker.security.limits import BoundedDict

__all__ = ["NOT_TRANSCRIBED", "TURN_EVENTS", "FinishedTurn", "TurnAssembler"]

NOT_TRANSCRIBED = "(speech that could not be transcribed)"

_ITEMS_KEPT = 2048
_PART_DELTAS_KEPT = 8192
_HELD_WITHOUT_DONE_S = 1.0  # of an answer whose response is not known: nothing else tells that it is complete
_HELD_AT_MOST_S = 30.0  # `response.done` follows the last audio, which may take longer than the words
_PLAYS_AT_MOST_S = 600.0
_PLAYED_LATE_S = 1.0  # a client buffers what it plays
_RESPONSES_KEPT = 64
_ANSWERS_KEPT = 64  # that were returned and may still be playing
_BASE64 = 4 / 3
# Bytes of a second of audio, by the names that both dialects have for a format.
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
_PLAYING = "output_audio_buffer.started"  # these three come over WebRTC only, where Azure itself plays the audio
_PLAYED = "output_audio_buffer.stopped"
_CLEARED = "output_audio_buffer.cleared"
_PLAYBACK = frozenset({_PLAYING, _PLAYED, _CLEARED, _TRUNCATED})
_ITEM_CREATED = frozenset({"conversation.item.created", "conversation.item.added", "conversation.item.done"})
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
        _RESPONSE_CREATED,
        _RESPONSE_DONE,
        *_SESSION,
        *_PLAYBACK,
        *_ITEM_CREATED,
        *_PART_DONE,
        *_PART_DELTA,
    }
)

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FinishedTurn:
    """One turn, complete or as far as it came. `sequence` is its number among the talk's messages, from 0.

    `again`: it was returned before, and more is known now: that it was interrupted, or that it is no history.
    `put_back`: typed before anything else happened in the talk, so it may be history that the client puts back.
    """

    item_id: str
    role: Role
    content: str
    sequence: int
    interrupted: bool = False
    transcribed: bool = True
    again: bool = False
    put_back: bool = False


@dataclass(slots=True)
class _Answer:
    """An assistant's item under way: its finished parts, and the deltas of unfinished ones, by content index."""

    response_id: str | None
    parts: dict[int, str] = field(default_factory=dict)
    deltas: dict[int, list[str]] = field(default_factory=dict)
    due_s: float | None = None  # when it counts as complete if no event comes before
    interrupted: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether each part that began is finished."""
        return self.deltas.keys() <= self.parts.keys()

    @property
    def text(self) -> str:
        whole = self.parts | {index: "".join(some) for index, some in self.deltas.items() if index not in self.parts}
        return " ".join(part for _, part in sorted(whole.items()) if part.strip()).strip()


@dataclass(slots=True)
class _ToldAnswer:
    """An assistant's turn that was returned, and may still be playing."""

    turn: FinishedTurn
    response_id: str | None
    playing_until_s: float


class TurnAssembler:
    """One talk's turns. Feed it `TURN_EVENTS`, call `due(now)` when `due_s` is reached, and `flush` at the end.

    Sequence numbers continue when the talk moves to another upstream: `flush`, then feed the new one's events.
    With `expects_history` the client may put history back that the memory has.
    """

    def __init__(self, *, expects_history: bool = False) -> None:
        self._expects_history = expects_history
        self._began = False  # somebody spoke, or was answered
        self._typed_before: list[FinishedTurn] = []  # that; the first two, since only a single one is no history
        self._next_sequence = 0
        # By item id. All are bounded, and forget the oldest.
        self._sequences = BoundedDict[str, int](_ITEMS_KEPT)
        self._finished = BoundedDict[str, None](_ITEMS_KEPT)
        self._answers = BoundedDict[str, _Answer](_ITEMS_KEPT)
        self._awaited = BoundedDict[str, list[str]](_ITEMS_KEPT)  # the user's spoken items: transcript so far
        self._outside: deque[str] = deque(maxlen=_RESPONSES_KEPT)  # responses that are no part of the conversation
        self._responses = BoundedDict[str, None](_RESPONSES_KEPT)  # under way
        self._told = BoundedDict[str, _ToldAnswer](_ANSWERS_KEPT)
        self._chars_a_second = _BYTES_A_SECOND["pcm16"] * _BASE64
        self._playing_until_s = 0.0

    @property
    def awaits_user(self) -> bool:
        """Whether an utterance of the user's has not been transcribed yet."""
        return bool(self._awaited)

    @property
    def due_s(self) -> float | None:
        """When `due` has turns to return, if no event comes before."""
        return min((a.due_s for a in self._answers.values() if a.due_s is not None), default=None)

    @property
    def plays_until_s(self) -> float:
        """When what has come of answers has been played."""
        return self._playing_until_s

    def is_answering(self, now_s: float) -> bool:
        """Whether an answer is being made, or can still be playing."""
        return bool(self._responses) or now_s < self._playing_until_s

    def heard(self, audio_chars: int, now_s: float) -> None:
        """Notes a delta of audio, `audio_chars` long in base64; it is played after the ones before."""
        self._playing_until_s = max(self._playing_until_s, now_s) + audio_chars / self._chars_a_second

    def feed(self, event: Event, now_s: float) -> list[FinishedTurn]:
        """The turns that this event of Azure's finishes, in their order in the talk."""
        kind = event.get("type")
        item_id = _text(event.get("item_id"))
        if kind in _PART_DELTA:
            if (answer := self._answer(item_id, event)) is not None:
                index = _index(event)
                if index not in answer.parts:
                    answer.due_s = None
                deltas = answer.deltas.setdefault(index, [])
                if len(deltas) < _PART_DELTAS_KEPT:
                    deltas.append(_text(event.get("delta")))
            return []
        if kind in _PART_DONE:
            if (answer := self._answer(item_id, event)) is not None:
                index = _index(event)
                answer.parts[index] = _text(event.get(_PART_DONE[str(kind)]))
                answer.deltas.pop(index, None)
                known = answer.response_id in self._responses
                answer.due_s = now_s + (_HELD_AT_MOST_S if known else _HELD_WITHOUT_DONE_S)
            return []
        if kind == _USER_DELTA:
            # Streaming transcription begins before the commit, and an utterance may end with the talk instead.
            self._began = True
            if item_id and item_id not in self._finished:
                some = self._awaited.setdefault(item_id, [])
                if len(some) < _PART_DELTAS_KEPT:
                    some.append(_text(event.get("delta")))
            return []
        if kind == _USER_DONE:
            return self._finish_user(item_id, _text(event.get("transcript")))
        if kind == _USER_FAILED:
            return self._finish_user(item_id, "", transcribed=False)
        if kind == _COMMITTED:
            return self._commit(item_id, event, now_s)
        if kind == _RESPONSE_CREATED:
            return self._begin_response(event.get("response"))
        if kind == _RESPONSE_DONE:
            return self._end_response(event, now_s)
        if kind in _SESSION:
            return self._note_session(event)
        if kind in _PLAYBACK:
            return self._note_playback(event, item_id, now_s)
        if kind in _ITEM_CREATED:
            return self._note_item(event)
        return []

    def due(self, now_s: float) -> list[FinishedTurn]:
        """The held turns whose time has come."""
        ready = [
            item_id for item_id, answer in self._answers.items() if answer.due_s is not None and answer.due_s <= now_s
        ]
        return self._finish_answers(ready, now_s)

    def cut(self, unsaid: AbstractSet[str], now_s: float) -> list[FinishedTurn]:
        """The answers that are left: their session is lost, and the talk goes on in another.

        Those of `unsaid` were not heard, and are asked for again. What the user said is still awaited: the next session
        transcribes it.
        """
        for item_id in unsaid & self._answers.keys():
            del self._answers[item_id]
        self._responses.clear()
        return self._finish_answers(list(self._answers), now_s, cut=True)

    def drop(self, item_id: str) -> None:
        """What the user says in this item is no turn, whatever its transcript will be."""
        self._awaited.pop(item_id, None)
        self._finished[item_id] = None

    def flush(self) -> list[FinishedTurn]:
        """Everything that is left, complete or not: the talk, or its upstream, is over."""
        turns = self._finish_answers(list(self._answers), 0.0, cut=True)
        for item_id, some in list(self._awaited.items()):
            turns += self._finish_user(item_id, "".join(some), interrupted=True)
        self._playing_until_s = 0.0
        self._responses.clear()
        self._told.clear()
        return sorted(turns, key=lambda turn: turn.sequence)

    # --- one kind of event each

    def _begin_response(self, response: Any) -> list[FinishedTurn]:
        """Notes a response. A single text that was typed before it is a question, not history."""
        if not isinstance(response, dict):
            return []
        response_id = _text(response.get("id"))
        if response_id:
            self._responses[response_id] = None
        if "conversation_id" in response and response["conversation_id"] is None:
            self._outside.append(response_id)
            return []
        typed = [] if self._began else self._typed_before
        self._began = True
        return [replace(turn, put_back=False, again=True) for turn in typed] if len(typed) == 1 else []

    def _commit(self, item_id: str, event: Event, now_s: float) -> list[FinishedTurn]:
        """The user spoke: answers that are held were heard before, so they are finished."""
        self._began = True
        held = [known for known, answer in self._answers.items() if answer.due_s is not None]
        turns = self._finish_answers(held, now_s)
        if item_id and item_id not in self._finished:
            self._sequence(item_id, event.get("previous_item_id"))
            self._awaited.setdefault(item_id, [])
        return turns

    def _note_session(self, event: Event) -> list[FinishedTurn]:
        """Notes the format of Azure's audio, which gives its playing time."""
        session = event.get("session")
        if not isinstance(session, dict):
            return []
        audio = session.get("audio")
        output = audio.get("output") if isinstance(audio, dict) else None
        format_ = output.get("format") if isinstance(output, dict) else session.get("output_audio_format")
        name = _text(format_.get("type") if isinstance(format_, dict) else format_)
        if (bytes_a_second := _BYTES_A_SECOND.get(name)) is not None:
            self._chars_a_second = bytes_a_second * _BASE64
        return []

    def _note_item(self, event: Event) -> list[FinishedTurn]:
        item = event.get("item")
        if not isinstance(item, dict) or not (item_id := _text(item.get("id"))):
            return []
        if item.get("type", "message") != "message":
            # Not a message, so not a turn: it shares the number of the message before it.
            self._sequences.setdefault(item_id, self._next_sequence - 1)
            return []
        if event.get("type") != "conversation.item.done":
            self._sequence(item_id, event.get("previous_item_id"))
        if item.get("role") != "user":
            return []
        # Only what the user typed: the transcript of audio comes in an event of its own.
        content = item.get("content")
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        typed = " ".join(_text(part.get("text")) for part in parts if part.get("type") == "input_text").strip()
        put_back = self._expects_history and not self._began
        turns = self._finish(item_id, "user", typed, put_back=put_back)
        if put_back and len(self._typed_before) < 2:  # noqa: PLR2004
            self._typed_before += turns
        return turns

    def _end_response(self, event: Event, now_s: float) -> list[FinishedTurn]:
        response = event.get("response")
        if not isinstance(response, dict):
            return []
        response_id = _text(response.get("id")) or None
        self._responses.pop(response_id or "", None)
        of_response = [item for item, answer in self._answers.items() if answer.response_id in {response_id, None}]
        if response.get("status", "completed") == "completed":
            for item_id in of_response:
                whole = self._answers[item_id].is_whole
                self._answers[item_id].due_s = now_s if whole else now_s + _HELD_WITHOUT_DONE_S
            return self.due(now_s)
        self._playing_until_s = 0.0
        told = [item for item, told in self._told.items() if response_id and told.response_id == response_id]
        return self._finish_answers(of_response, now_s, cut=True, interrupted=True) + self._interrupt(told)

    def _note_playback(self, event: Event, item_id: str, now_s: float) -> list[FinishedTurn]:
        kind, response_id = event.get("type"), _text(event.get("response_id"))
        playing = {item: told for item, told in self._told.items() if now_s <= told.playing_until_s}
        if kind in {_PLAYING, _PLAYED}:
            until_s = now_s + _PLAYS_AT_MOST_S if kind == _PLAYING else now_s
            self._playing_until_s = until_s if kind == _PLAYING else 0.0
            for told in playing.values():
                if not response_id or told.response_id in {response_id, None}:
                    told.playing_until_s = until_s
            return []
        self._playing_until_s = 0.0
        all_answers: dict[str, _Answer | _ToldAnswer] = {**playing, **self._answers}
        cut = (
            {item_id}
            if kind == _TRUNCATED
            else {item for item, answer in all_answers.items() if not response_id or answer.response_id == response_id}
        )
        for item in cut & self._answers.keys():
            self._answers[item].interrupted = True
        held = [item for item in cut & self._answers.keys() if self._answers[item].due_s is not None]
        return self._finish_answers(held, now_s) + self._interrupt([item for item in playing if item in cut])

    # --- parts of the above

    def _sequence(self, item_id: str, previous: Any = None) -> int:
        """The item's sequence number. An item named as its predecessor before it was seen itself gets one first."""
        if item_id in self._sequences:
            return self._sequences[item_id]
        if isinstance(previous, str) and previous not in {"", "root", item_id}:
            self._sequence(previous)
        sequence = self._sequences[item_id] = self._next_sequence
        self._next_sequence += 1
        return sequence

    def _answer(self, item_id: str, event: Event) -> _Answer | None:
        if not item_id or item_id in self._finished or event.get("response_id") in self._outside:
            return None
        answer = self._answers.get(item_id)
        if answer is None:
            answer = self._answers[item_id] = _Answer(_text(event.get("response_id")) or None)
        return answer

    def _interrupt(self, item_ids: list[str]) -> list[FinishedTurn]:
        """These answers again, as interrupted, once each."""
        told = [self._told.pop(item_id) for item_id in item_ids]
        return [replace(each.turn, interrupted=True, again=True) for each in told if not each.turn.interrupted]

    def _finish_user(
        self, item_id: str, transcript: str, *, transcribed: bool = True, interrupted: bool = False
    ) -> list[FinishedTurn]:
        self._awaited.pop(item_id, None)
        content = transcript.strip() if transcribed else NOT_TRANSCRIBED
        return self._finish(item_id, "user", content, transcribed=transcribed, interrupted=interrupted)

    def _finish_answers(
        self, item_ids: list[str], now_s: float, *, cut: bool = False, interrupted: bool = False
    ) -> list[FinishedTurn]:
        turns: list[FinishedTurn] = []
        played_by_s = min(max(self._playing_until_s, now_s), now_s + _PLAYS_AT_MOST_S) + _PLAYED_LATE_S
        for item_id in item_ids:
            answer = self._answers.pop(item_id)
            unfinished = cut and answer.due_s is None
            finished = self._finish(
                item_id, "assistant", answer.text, interrupted=answer.interrupted or interrupted or unfinished
            )
            for turn in finished:
                self._told[item_id] = _ToldAnswer(turn, answer.response_id, played_by_s)
            turns += finished
        return sorted(turns, key=lambda turn: turn.sequence)

    def _finish(
        self,
        item_id: str,
        role: Role,
        content: str,
        *,
        interrupted: bool = False,
        transcribed: bool = True,
        put_back: bool = False,
    ) -> list[FinishedTurn]:
        if not item_id or not content or item_id in self._finished:
            return []
        self._finished[item_id] = None
        sequence = self._sequence(item_id)
        return [
            FinishedTurn(
                item_id,
                role,
                content,
                sequence,
                interrupted=interrupted,
                transcribed=transcribed,
                put_back=put_back,
            )
        ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _index(event: Event) -> int:
    index = event.get("content_index")
    return index if isinstance(index, int) else 0
