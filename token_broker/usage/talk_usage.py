"""What one talk uses: time and tokens, by Azure resource and UTC day."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from token_broker.security.limits import BoundedDict
from token_broker.security.tokens import Owner
from token_broker.usage.billed import ANSWER_COUNTS, TRANSCRIPTION_COUNTS, Counts, answer_counts, transcription_counts
from token_broker.usage.days import StoreClock, split_by_day

__all__ = ["BILLED_BY_TIME", "LEAST_ANSWER_TOKENS", "MOVED", "UNSEEN", "CountedReport", "TalkUsage", "UsageRow"]

BILLED_BY_TIME = "live"
"""The dialect, GPT-Live's, of which Azure bills the time, and says how long it was: until then it is unknown."""
LEAST_ANSWER_TOKENS = 4096
"""What an answer is taken to have cost whose usage nobody knows, unless the talk had a larger one."""

_ANSWER_US = 1_000_000  # a gap of less can't hide a whole answer: its beginning or its end was heard
_MOST_BILLED_S = 604_800.0
_KEPT = 10_000  # ids of answers and items: more than a talk of two hours has


MOVED = "moved"
"""How a talk ends for a replica whose call another one holds from then on."""

UNSEEN = "unseen"
"""The part of a talk whose page has a secret of Azure's: it counts where nothing of the talk is seen."""


@dataclass(slots=True)
class UsageRow:
    """An agent's part of a talk at one resource on one day. Counts that are None are unknown.

    `unmeasured` are answers of which Azure did not say what they cost; `live_us` is None for a talk that nobody sees.
    """

    agent_id: str
    resource: str
    dialect: str
    day: int
    started_us: int
    live_us: int | None
    counts: Counts = field(default_factory=lambda: dict.fromkeys((*ANSWER_COUNTS, *TRANSCRIPTION_COUNTS)))
    responses: int = 0
    unmeasured: int = 0
    tools_run: int = 0
    billed_ms: dict[str, int] = field(default_factory=dict)  # by Azure's session, in all so far, not written yet
    written_us: int | None = None  # of `live_us`, as the store has it
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

    def take_back(self, counts: Counts | None, *, is_answer: bool) -> None:
        """Another writer has counted this already."""
        self.is_dirty = True
        for name, count in (counts or {}).items():
            if count is not None:
                self.counts[name] = (self.counts[name] or 0) - count
        if is_answer:
            self.responses -= 1
            self.unmeasured -= counts is None or counts["input_tokens"] is None or counts["output_tokens"] is None

    @property
    def tokens(self) -> int:
        """Of the model's answers, in and out."""
        return (self.counts["input_tokens"] or 0) + (self.counts["output_tokens"] or 0)


@dataclass(frozen=True, slots=True)
class CountedReport:
    """An answer, or a transcription, by Azure's id, and where it was counted."""

    key: str
    row: UsageRow
    counts: Counts | None
    is_answer: bool


class TalkUsage:
    """One talk over one transport. Every observer feeds it; each answer and each transcription counts once.

    `seen` is false where the broker does not hear the talk: then its seconds and tokens are unknown. `changed` is
    called where something should be written soon: also with each answer of a call, which outlives its process.
    `on_answer` is called where an answer has ended, `on_closed` at the end. A call `may_move`: another replica may hear
    the same answers, so each is claimed in the store (`unclaimed`).

    A call goes on without its sideband, or has ended with it. So the time in which no call of the talk is in sight
    counts only once the call is heard again, or is known to have gone on.
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
        changed: Callable[["TalkUsage"], None] = lambda _usage: None,
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
        self.unclaimed: list[CountedReport] = []
        self.may_move = transport.startswith("webrtc")
        self.hears = seen
        self.is_kept = False  # it is over, and the ledger needs to write no more of it
        self._agents = [agent_id]
        self.is_measured = True
        """Whether Azure tells the broker what answers cost."""
        self._dialect = dialect
        self._clock = clock
        self._changed = changed
        self._closed = closed
        self._resource: str | None = None  # None: not live
        self._looked_s = clock.monotonic_s()
        self._unheard_since_s: float | None = None
        self._unheard_us = 0
        self._calls: dict[str, bool] = {}  # by Azure's id: whether it is in sight
        self._doubtful_since_s: float | None = None  # no call is in sight, and they may have ended
        self._doubtful_us = 0
        self._begun = BoundedDict[str, UsageRow](_KEPT)  # answers under way
        self._counted = BoundedDict[str, None](_KEPT)
        self._billed = BoundedDict[str, int](_KEPT)  # milliseconds, by session of Azure's

    def azure_billed(self, session_id: str, seconds: object, *, resource: str, dialect: str) -> None:
        """Counts how long Azure bills a session, in all so far: the highest finite number counts, anything else not.

        Another replica may have counted a part of it. So the store adds to the row what is new to the talk.
        """
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not 0 <= seconds < _MOST_BILLED_S:  # type: ignore[operator]  # NaN is none of these
            return
        billed_ms = round(seconds * 1000)  # type: ignore[operator]
        if billed_ms > self._billed.get(session_id, -1):
            row = self._row(resource, dialect)
            row.billed_ms[session_id] = self._billed[session_id] = billed_ms
            row.is_dirty = True

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
                    row, counts = row or self._row(resource, dialect), answer_counts(used)
                    self.largest_answer = max(self.largest_answer, row.add_answer(counts))
                    self._note(key, row, counts, is_answer=True)
                    self.on_answer()
            case "conversation.item.input_audio_transcription.completed":
                key = _id_of(event, "item_id")
                key = key and f"{key} {event.get('content_index')}"
                if self._is_new(key):
                    row, counts = self._row(resource, dialect), transcription_counts(event.get("usage"))
                    row.add(counts or {})
                    row.is_dirty = True
                    self._note(key, row, counts, is_answer=False)

    def tool_ran(self) -> None:
        """Counts a tool that was run for the talk."""
        if self._resource is not None:
            row = self._row(self._resource, self._dialect)
            row.tools_run += 1
            row.is_dirty = True

    def expect(self, resource: str, dialect: str) -> None:
        """A call that is there and not heard yet: until it is, nobody knows what it uses."""
        if not self.rows:
            self.seen = False
            self._unheard_since_s = self._clock.monotonic_s()
            self._row(resource, dialect)
            self._changed(self)

    @property
    def is_unheard(self) -> bool:
        """Whether it is a call that nobody here has heard yet."""
        return self._unheard_since_s is not None

    def went_live(
        self, resource: str, dialect: str, *, by: str = "", unheard_s: float | None = None, lost_s: float | None = None
    ) -> None:
        """From now on the talk is at this resource: at its start, and whenever it has moved.

        `by` is the call that is heard from now on, or again; empty for a talk over a socket.
        Of a call that another process held: `unheard_s` is the time since that process wrote the call's time, `lost_s`
        the time since it last heard the call for sure.
        """
        self.went_on(by)
        self.look()
        self.seen = self.hears
        self._unheard_since_s = self._doubtful_since_s = None
        self._doubtful_us = 0
        self._resource, self._dialect, self._looked_s = resource, dialect, self._clock.monotonic_s()
        row = self._row(resource, dialect)
        if self.seen and row.live_us is None:
            row.live_us = 0
        if unheard_s:
            self._looked_s -= unheard_s
            row.is_exact = row.is_exact and lost_s == 0
        if by:
            self._calls[by] = lost_s is None
        if lost_s is not None and not any(self._calls.values()):
            now_s = self._clock.monotonic_s()
            self._doubtful_since_s = max(self._looked_s, now_s - lost_s)
            self._count(self._doubtful_since_s)
        self._changed(self)

    def out_of_sight(self, by: str) -> None:
        """The call is not heard any more: it has ended, or its sideband has."""
        if self._calls.get(by):
            self.look()
            self._calls[by] = False
            if not any(self._calls.values()):
                self._doubtful_since_s = self._looked_s

    @property
    def out_of_sight_s(self) -> float | None:
        """For how long no call of the talk has been in sight; None where one is."""
        return None if self._doubtful_since_s is None else self._clock.monotonic_s() - self._doubtful_since_s

    def went_on(self, by: str) -> None:
        """The call has not ended until now, although it was out of sight: what it used meanwhile is unknown."""
        if self._calls.get(by) is False:
            self.look()
            if self._resource is not None and self._doubtful_us > _ANSWER_US:
                self._row(self._resource, self._dialect).is_exact = False
            self._doubtful_since_s, self._doubtful_us = None, 0
            self.look()
            self._calls[by] = True
            self.out_of_sight(by)

    def handed_over(self, agent_id: str) -> None:
        """From now on the talk is this agent's."""
        if agent_id != self.agent_id:
            self.look()
            self.agent_id = agent_id
            if agent_id not in self._agents:
                self._agents.append(agent_id)

    def counted_elsewhere(self, counted: CountedReport) -> None:
        """Another replica was first to count this."""
        counted.row.take_back(counted.counts, is_answer=counted.is_answer)

    def look(self) -> None:
        """Counts the time since it was counted last."""
        now_s = self._clock.monotonic_s()
        if self._unheard_since_s is not None and self.observers > 0:
            self._unheard_us = round((now_s - self._unheard_since_s) * 1_000_000)
        if self._doubtful_since_s is None:
            self._count(now_s)
        elif self.observers > 0:
            self._doubtful_us = round((now_s - self._doubtful_since_s) * 1_000_000)

    def _count(self, until_s: float) -> None:
        if self._resource is None:
            return
        elapsed_us, self._looked_s = round((until_s - self._looked_s) * 1_000_000), until_s
        if not self.seen:
            return
        until_us = self._clock.now_us() - round((self._clock.monotonic_s() - until_s) * 1_000_000)
        for day, part_us in split_by_day(until_us, elapsed_us):
            row = self._row(self._resource, self._dialect, day)
            row.live_us = (row.live_us or 0) + part_us
            row.is_dirty = True

    def end(self, how: str, *, by: str = "") -> None:
        """An observer is done, of the call `by`; with the last one the rows are closed. `how` is the first given.

        A replica that takes a call counts its time from the last row that was written; what came after is not kept.
        """
        self.look()
        self.out_of_sight(by)
        self._calls.pop(by, None)
        self.observers -= 1
        self.ended = self.ended or how
        if self.observers <= 0 and self.ended == MOVED:
            for row in self.rows:
                row.live_us = row.live_us if row.written_us is None else row.written_us
        for row in self.rows:
            row.is_dirty = True
        if self.observers <= 0 and self._resource is not None:
            self._resource = None
            for key, row in self._begun.items():  # they were abandoned: they cost something, and nobody knows what
                if self.ended != MOVED:  # else who holds the call hears their end
                    row.add_answer(None)
                    self._note(key, row, None, is_answer=True)
            self._begun.clear()
        if self.observers <= 0:
            self._doubtful_us = 0
            self.on_closed()
            self._closed(self)

    def spent(self, day: int) -> tuple[int, int]:
        """Milliseconds, rounded up, and tokens of that day. Answers of unknown cost count as the largest one.

        A call that is not heard counts from its answer on, and one that is out of sight as if it went on.
        """
        rows = [row for row in self.rows if row.day == day]
        unknown = sum(row.unmeasured for row in rows) * self.largest_answer
        live_us = self._unheard_us if rows and not self.seen else sum(row.live_us or 0 for row in rows)
        if rows and rows[-1] is self.rows[-1]:
            live_us += self._doubtful_us
        return -(-live_us // 1000), sum(row.tokens for row in rows) + unknown

    def values(self, row: UsageRow) -> dict[str, Any]:
        """The row as the store keeps it. It has the time until `looked_s` of the monotonic clock."""
        live_ms = None if row.live_us is None else row.live_us // 1000
        is_over = self.observers <= 0
        return {
            "talk_id": self.owner.talk_id,
            # A row has one agent: a writer has a part for each.
            "part": f"{self.part}.{agent}" if (agent := self._agents.index(row.agent_id)) else self.part,
            "resource": row.resource,
            "day": row.day,
            "session_id": self.owner.session_id,
            "principal": self.owner.principal,
            "agent_id": row.agent_id,
            "transport": self.transport,
            "dialect": row.dialect,
            "started_at_us": row.started_us,
            "live_ms": None if row.dialect == BILLED_BY_TIME else live_ms,
            **row.counts,
            "responses": row.responses if self.seen else None,
            "unmeasured": row.unmeasured if self.seen else None,
            "tools_run": row.tools_run if self.seen else None,
            "seen": self.seen,
            "complete": self.seen and self.is_measured and row.is_exact and self.ended is not None and is_over,
            "ended": self.ended if is_over else None,
            "looked_s": self._looked_s,
        }

    def _note(self, key: str | None, row: UsageRow, counts: Counts | None, *, is_answer: bool) -> None:
        if key is not None and self.may_move:
            self.unclaimed.append(CountedReport(key, row, counts, is_answer))
            self._changed(self)

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
            if (row.resource, row.day, row.agent_id) == (resource, day, self.agent_id):
                return row
        made = UsageRow(self.agent_id, resource, dialect, day, self._clock.now_us(), 0 if self.seen else None)
        self.rows.append(made)
        return made


def _id_of(what: object, name: str) -> str | None:
    value = what.get(name) if isinstance(what, Mapping) else None
    return value if isinstance(value, str) and value else None
