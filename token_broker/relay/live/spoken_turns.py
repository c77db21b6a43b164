"""Turns of a talk with GPT-Live, made of timed fragments of transcripts. Pure.

GPT-Live listens and speaks at once, and says nowhere that a turn is over: fragments of both sides come interleaved, in
the order in which they are known rather than spoken (docs/azure.md §12.3). Each has its place on the timeline.
A speaker's turn is over when the other one speaks after it, or when there is nothing more for a while. It is held for a
moment longer, since words of the user's may come later than the answer to them.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from token_broker.memory.types import Role
from token_broker.relay.answers.turn_clock import TurnLatency
from token_broker.relay.transcripts.assembler import FinishedTurn

__all__ = ["TRANSCRIPT_EVENTS", "TYPED_EVENT", "LiveTurns"]

TRANSCRIPT_EVENTS: Mapping[str, Role] = {
    "session.input_transcript.delta": "user",
    "session.output_transcript.delta": "assistant",
}

TYPED_EVENT = "broker.typed"
"""What the user has typed, as `text` and `item_id`, which Azure tells nobody."""

_GAP_MS = 2_000  # a longer silence of one speaker is between two turns
_HELD_S = 1.0  # after the other side has begun
_SILENT_S = 3.0  # after the last fragment, where nobody goes on
_STOPPED_MS = 1_500  # an agent that stops so soon after the user has begun was interrupted
_LONGEST_WAIT_MS = 60_000
_LONGEST_CHARS = 65_536
_KEPT = 40  # of the latest turns, as history for another session
_KEPT_CHARS = 4_000


@dataclass(slots=True)
class _Open:
    """A turn under way. Times are of the session's timeline, in milliseconds, but for `due_s`."""

    role: Role
    item_id: str
    start_ms: float
    end_ms: float
    due_s: float
    parts: list[tuple[float, str]] = field(default_factory=list)
    closed_ms: float | None = None  # where the other side begins

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.parts).strip()


class LiveTurns:
    """One talk's. Feed it the `TRANSCRIPT_EVENTS` and what is typed.

    What has become a turn comes back, and `due` has the rest later.
    """

    def __init__(self) -> None:
        self.history: list[tuple[Role, str]] = []
        self.latencies: list[TurnLatency] = []
        """Waits that are known since this was emptied last."""
        self._session = ""
        self._offset_ms = 0.0  # of this session's timeline: the talk may have had others
        self._latest_ms = 0.0
        self._typed_ms = 0.0  # what the agent says from then on comes after what was typed
        self._open: list[_Open] = []
        self._words = ""
        self._agent_until_s = 0.0

    @property
    def due_s(self) -> float | None:
        """When the next turn counts as complete, if nothing comes before."""
        return min((turn.due_s for turn in self._open), default=None)

    @property
    def plays_until_s(self) -> float:
        """Until when the agent is heard, as far as is known."""
        return self._agent_until_s

    @property
    def awaits_user(self) -> bool:
        """Whether words of the user's are under way."""
        return any(turn.role == "user" for turn in self._open)

    def is_answering(self, now_s: float) -> bool:
        """Whether the agent speaks now."""
        return now_s < self._agent_until_s

    def begin(self, session_id: str) -> None:
        """Another session of Azure's carries the talk: its timeline begins at 0."""
        self._session = session_id
        self._offset_ms = self._latest_ms

    def take_words(self) -> str:
        """What the user has said since this was asked last."""
        words, self._words = self._words.strip(), ""
        return words

    def feed(self, event: Mapping[str, Any], now_s: float) -> list[FinishedTurn]:
        """Takes a fragment. What is no fragment changes nothing."""
        if event.get("type") == TYPED_EVENT:
            return self._type(event)
        role = TRANSCRIPT_EVENTS.get(str(event.get("type")))
        text, start, end = event.get("delta"), event.get("start_ms"), event.get("end_ms")
        if role is None or not isinstance(text, str) or not text:
            return self.due(now_s)
        start_ms = max(self._placed(start, self._latest_ms), self._typed_ms if role == "assistant" else 0.0)
        end_ms = max(start_ms, self._placed(end, start_ms))
        self._latest_ms = max(self._latest_ms, end_ms)
        if role == "user":
            self._words = (self._words + text)[-_KEPT_CHARS:]
        turn = self._place(role, start_ms, end_ms, now_s)
        turn.parts.append((start_ms, text))
        turn.parts.sort(key=lambda part: part[0])
        turn.start_ms, turn.end_ms = min(turn.start_ms, start_ms), max(turn.end_ms, end_ms)
        if turn.closed_ms is None:
            turn.due_s = now_s + _SILENT_S
        if role == "assistant":
            self._agent_until_s = max(self._agent_until_s, now_s + max(0.5, (end_ms - start_ms) / 1000))
        for other in self._open:
            if other.role != role and other.closed_ms is None and start_ms >= other.end_ms:
                other.closed_ms, other.due_s = start_ms, now_s + _HELD_S
        if sum(len(part) for _, part in turn.parts) > _LONGEST_CHARS:
            turn.due_s = now_s
        return self.due(now_s)

    def due(self, now_s: float) -> list[FinishedTurn]:
        """The turns whose time has come."""
        return self._finish([turn for turn in self._open if turn.due_s <= now_s])

    def cut(self, unsaid: AbstractSet[str], now_s: float) -> list[FinishedTurn]:
        """The session is lost: everything that is left."""
        del unsaid, now_s
        return self.flush()

    def drop(self, item_id: str) -> None:
        """Keeps no turn of that id."""
        self._open = [turn for turn in self._open if turn.item_id != item_id]

    def flush(self) -> list[FinishedTurn]:
        """Everything that is left: the talk, or its session, is over."""
        return self._finish(list(self._open), cut=True)

    def _type(self, event: Mapping[str, Any]) -> list[FinishedTurn]:
        """A turn of its own: what the agent has said is before it, and what it says from now on behind it."""
        self._latest_ms += 1
        self._typed_ms = self._latest_ms
        said = self._finish([turn for turn in self._open if turn.role == "assistant"])
        item_id, text = str(event["item_id"]), str(event["text"])
        self.history = [*self.history, ("user", text[:_KEPT_CHARS])][-_KEPT:]
        return [*said, FinishedTurn(item_id, "user", text, round(self._typed_ms) * 2)]

    def _placed(self, stated: object, otherwise: float) -> float:
        is_number = isinstance(stated, int | float) and not isinstance(stated, bool) and 0 <= stated < 1e8  # noqa: PLR2004
        return self._offset_ms + float(stated) if is_number else otherwise  # type: ignore[arg-type]

    def _place(self, role: Role, start_ms: float, end_ms: float, now_s: float) -> _Open:
        """The turn that a fragment belongs to."""
        for turn in reversed(self._open):
            is_late = turn.closed_ms is None or start_ms < turn.closed_ms
            if (
                turn.role == role
                and is_late
                and start_ms <= turn.end_ms + _GAP_MS
                and end_ms >= turn.start_ms - _GAP_MS
            ):
                return turn
        for turn in self._open:  # a new turn of the same speaker
            if turn.role == role and turn.closed_ms is None:
                turn.closed_ms, turn.due_s = start_ms, min(turn.due_s, now_s + _HELD_S)
        item_id = f"{role[0]}{round(start_ms)}_{self._session}"
        made = _Open(role, item_id, start_ms, end_ms, now_s + _SILENT_S)
        self._open.append(made)
        return made

    def _finish(self, turns: list[_Open], *, cut: bool = False) -> list[FinishedTurn]:
        done: list[FinishedTurn] = []
        for turn in sorted(turns, key=lambda each: each.start_ms):
            begun = [each for each in self._open if each.role != turn.role and each.start_ms > turn.start_ms]
            self._open.remove(turn)
            if not turn.text:
                continue
            is_agents = turn.role == "assistant"
            cut_in = any(each.start_ms < turn.end_ms < each.start_ms + _STOPPED_MS for each in begun)
            answers = [each for each in begun if each.start_ms >= turn.end_ms]
            if not is_agents and answers:
                wait_ms = min(each.start_ms for each in answers) - turn.end_ms
                if wait_ms < _LONGEST_WAIT_MS:
                    self.latencies.append(TurnLatency(wait_ms / 1000, "transcript_end"))
            self.history = [*self.history, (turn.role, turn.text[:_KEPT_CHARS])][-_KEPT:]
            done.append(
                FinishedTurn(
                    turn.item_id,
                    turn.role,
                    turn.text,
                    round(turn.start_ms) * 2 + is_agents,  # two that begin at once: the user's first
                    interrupted=is_agents and (cut_in or (cut and turn.closed_ms is None)),
                )
            )
        return done
