"""What one talk uses: time and tokens, by Azure resource and UTC day."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from token_broker.security.limits import BoundedDict
from token_broker.security.tokens import Owner
from token_broker.usage.billed import ANSWER_COUNTS, TRANSCRIPTION_COUNTS, Counts, answer_counts, transcription_counts
from token_broker.usage.days import StoreClock, split_by_day

__all__ = ["LEAST_ANSWER_TOKENS", "TalkUsage", "UsageRow"]

LEAST_ANSWER_TOKENS = 4096
"""What an answer is taken to have cost whose usage nobody knows, unless the talk had a larger one."""

_BILLED_BY_TIME = "live"  # GPT-Live's dialect
_MOST_BILLED_S = 604_800.0
_KEPT = 10_000  # ids of answers and items: more than a talk of two hours has


@dataclass(slots=True)
class UsageRow:
    """A talk's part at one resource on one day. Counts that are None are unknown.

    `unmeasured` are answers of which Azure did not say what they cost; `live_us` is None for a talk that nobody sees.
    """

    resource: str
    dialect: str
    day: int
    started_us: int
    live_us: int | None
    counts: Counts = field(default_factory=lambda: dict.fromkeys((*ANSWER_COUNTS, *TRANSCRIPTION_COUNTS)))
    responses: int = 0
    unmeasured: int = 0
    tools_run: int = 0
    billed_ms: int | None = None  # where Azure bills by time, as it says itself
    is_exact: bool = True  # nothing in it is known to be missing
    is_dirty: bool = True

    def add(self, counts: Counts) -> None:
        """Adds what is known."""
        for name, count in counts.items():
            if count is not None:
                self.counts[name] = (self.counts[name] or 0) + count

    def add_answer(self, counts: Counts | None) -> int:
        """Adds an answer, whose tokens it returns as far as they are known; None: nothing is known of it."""
        self.responses += 1
        self.is_dirty = True
        if counts is None or counts["input_tokens"] is None or counts["output_tokens"] is None:
            self.unmeasured += 1
            self.is_exact = False
        self.add(counts or {})
        return 0 if counts is None else (counts["input_tokens"] or 0) + (counts["output_tokens"] or 0)

    @property
    def tokens(self) -> int:
        """Of the model's answers, in and out."""
        return (self.counts["input_tokens"] or 0) + (self.counts["output_tokens"] or 0)


class TalkUsage:
    """One talk over one transport. Every observer feeds it; each answer and each transcription counts once.

    `seen` is false where the broker does not hear the talk: then its seconds and tokens are unknown. `changed` is
    called where something should be written soon, `on_answer` where an answer has ended, `on_closed` at the end.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        agent_id: str,
        transport: str,
        dialect: str,
        seen: bool,
        part: str,
        clock: StoreClock,
        changed: Callable[[], None] = lambda: None,
        closed: Callable[["TalkUsage"], None] = lambda _usage: None,
    ) -> None:
        self.owner = owner
        self.agent_id = agent_id
        self.transport = transport
        self.seen = seen
        self.part = part
        self.rows: list[UsageRow] = []
        self.ended: str | None = None
        self.largest_answer = LEAST_ANSWER_TOKENS
        self.on_answer: Callable[[], None] = lambda: None
        self.on_closed: Callable[[], None] = lambda: None
        self.observers = 1
        self._dialect = dialect
        self._clock = clock
        self._changed = changed
        self._closed = closed
        self._resource: str | None = None  # None: not live
        self._looked_s = 0.0
        self._begun = BoundedDict[str, UsageRow](_KEPT)  # answers under way
        self._counted = BoundedDict[str, None](_KEPT)
        self._billed = BoundedDict[str, int](_KEPT)  # milliseconds, by session of Azure's

    def azure_billed(self, session_id: str, seconds: object, *, resource: str, dialect: str) -> None:
        """Counts how long Azure bills a session, in all so far: the highest finite number counts, anything else not."""
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not 0 <= seconds < _MOST_BILLED_S:  # type: ignore[operator]  # NaN is none of these
            return
        known = self._billed.get(session_id, 0)
        row = self._row(resource, dialect)
        more_ms = max(0, round(seconds * 1000) - known)  # type: ignore[operator]
        row.billed_ms = (row.billed_ms or 0) + more_ms
        row.is_dirty = True
        self._billed[session_id] = known + more_ms

    def azure_sent(self, event: Mapping[str, Any], *, resource: str, dialect: str) -> None:
        """Counts what one of Azure's events says; any other event is left alone."""
        match event.get("type"):
            case "response.created" if isinstance(key := _id_of(event.get("response"), "id"), str):
                if key not in self._counted:
                    self._begun[key] = self._row(resource, dialect)
            case "response.done":
                response = event.get("response")
                key = _id_of(response, "id")
                row = self._begun.pop(key or "", None)
                if self._is_new(key):
                    used = response.get("usage") if isinstance(response, Mapping) else None
                    answer = (row or self._row(resource, dialect)).add_answer(answer_counts(used))
                    self.largest_answer = max(self.largest_answer, answer)
                    self.on_answer()
            case "conversation.item.input_audio_transcription.completed":
                key = _id_of(event, "item_id")
                if self._is_new(key and f"{key} {event.get('content_index')}"):
                    row = self._row(resource, dialect)
                    row.add(transcription_counts(event.get("usage")) or {})
                    row.is_dirty = True

    def tool_ran(self) -> None:
        """Counts a tool that was run for the talk."""
        if self._resource is not None:
            row = self._row(self._resource, self._dialect)
            row.tools_run += 1
            row.is_dirty = True

    def went_live(self, resource: str, dialect: str) -> None:
        """From now on the talk is at this resource: at its start, and whenever it has moved."""
        self.look()
        self._resource, self._dialect, self._looked_s = resource, dialect, self._clock.monotonic_s()
        self._row(resource, dialect)
        self._changed()

    def look(self) -> None:
        """Counts the time since it was counted last."""
        if self._resource is None:
            return
        now_s = self._clock.monotonic_s()
        elapsed_us, self._looked_s = round((now_s - self._looked_s) * 1_000_000), now_s
        if not self.seen:
            return
        for day, part_us in split_by_day(self._clock.now_us(), elapsed_us):
            row = self._row(self._resource, self._dialect, day)
            row.live_us = (row.live_us or 0) + part_us
            row.is_dirty = True

    def end(self, how: str) -> None:
        """An observer is done; with the last one the rows are closed. `how` is the first that was given."""
        self.look()
        self.observers -= 1
        self.ended = self.ended or how
        for row in self.rows:
            row.is_dirty = True
        if self.observers <= 0 and self._resource is not None:
            self._resource = None
            for row in self._begun.values():  # they were abandoned: they cost something, and nobody knows what
                row.add_answer(None)
            self._begun.clear()
        if self.observers <= 0:
            self.on_closed()
            self._closed(self)

    def spent(self, day: int) -> tuple[int, int]:
        """Milliseconds, rounded up, and tokens of that day. Answers of unknown cost count as the largest one."""
        rows = [row for row in self.rows if row.day == day]
        unknown = sum(row.unmeasured for row in rows) * self.largest_answer
        return -(-sum(row.live_us or 0 for row in rows) // 1000), sum(row.tokens for row in rows) + unknown

    def values(self, row: UsageRow) -> dict[str, Any]:
        """The row as the store keeps it."""
        return {
            "talk_id": self.owner.talk_id,
            "part": self.part,
            "resource": row.resource,
            "day": row.day,
            "session_id": self.owner.session_id,
            "principal": self.owner.principal,
            "agent_id": self.agent_id,
            "transport": self.transport,
            "dialect": row.dialect,
            "started_at_us": row.started_us,
            "live_ms": self._live_ms(row),
            **row.counts,
            "responses": row.responses if self.seen else None,
            "unmeasured": row.unmeasured if self.seen else None,
            "tools_run": row.tools_run if self.seen else None,
            "seen": self.seen,
            "complete": self.seen and row.is_exact and self.ended is not None and self.observers <= 0,
            "ended": self.ended if self.observers <= 0 else None,
        }

    def _live_ms(self, row: UsageRow) -> int | None:
        """The row's time. Where Azure bills by time, what it says; it has not said it: unknown."""
        if row.dialect == _BILLED_BY_TIME:
            return row.billed_ms
        return None if row.live_us is None else row.live_us // 1000

    def _is_new(self, key: str | None) -> bool:
        if key is None:
            return True
        if key in self._counted:
            return False
        self._counted[key] = None
        return True

    def _row(self, resource: str, dialect: str, day: int | None = None) -> UsageRow:
        day = self._clock.day() if day is None else day
        for row in reversed(self.rows):
            if row.resource == resource and row.day == day:
                return row
        made = UsageRow(resource, dialect, day, self._clock.now_us(), 0 if self.seen else None)
        self.rows.append(made)
        return made


def _id_of(what: object, name: str) -> str | None:
    value = what.get(name) if isinstance(what, Mapping) else None
    return value if isinstance(value, str) and value else None
