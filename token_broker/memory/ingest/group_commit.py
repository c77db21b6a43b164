"""Group commit: what many hand in at once is written in one transaction, and each hears of its own.

The writing task belongs to no request: a caller that leaves cancels nothing. A batch that a row spoils is repeated row
by row, so that only that row is refused.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from token_broker.bounded_dict import BoundedDict
from token_broker.memory.drivers.database import Database
from token_broker.memory.errors import (
    StoreAwayError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    StoreUnreachableError,
)
from token_broker.memory.ingest.sizes import SessionSizes, note_sizes, stored_bytes
from token_broker.memory.store.keys import ArrivalClock
from token_broker.memory.types import NOT_THEIRS, Outcome, Turn
from token_broker.security.owner import Owner

if TYPE_CHECKING:
    from token_broker.memory.store.turns import Arrived

__all__ = ["GroupWriter", "WriterCounts", "give_up", "turn_bytes"]

_SESSIONS_GATHER_S = 0.05
_MAX_ROWS = 400  # a transaction: while it is written, the loop prepares the next
_MAX_QUEUED_TURNS = 5_000
_MAX_QUEUED_BYTES = 16 * 1024 * 1024
_MAX_QUEUED_SESSIONS = 10_000
_SESSIONS_KNOWN = 20_000
_SILENCE_S = 0.5
_SESSIONS_AGAIN_S = 1.0
_TURN_OVERHEAD_BYTES = 500  # ids, numbers, Python's own


def turn_bytes(turn: Turn) -> int:
    """What a turn costs while it waits in memory, roughly and never too little for plain text."""
    return stored_bytes(turn) + _TURN_OVERHEAD_BYTES


@dataclass(slots=True)
class WriterCounts:
    """Since the process began."""

    stored: int = 0
    duplicates: int = 0
    foreign: int = 0  # of another principal's session, or of one that was erased
    refused: int = 0
    full: int = 0  # their session had no room
    short_of_disk: int = 0  # the disk had none; tried again, in the proxy's case
    commits: int = 0
    failed_commits: int = 0


@dataclass(slots=True, eq=False)
class _Submission:
    turns: "list[Arrived]"
    size_bytes: int
    done: "asyncio.Future[list[Outcome]]" = field(repr=False)


class GroupWriter:
    """Writes turns and sessions; `queue` says whether turns go on to a sink. `run` is to be started once."""

    def __init__(
        self,
        database: Database,
        *,
        queue: bool,
        gather_s: float,
        clock: Callable[[], float],
        on_stored: Callable[[Collection[str]], None],
        session_bytes: int = 0,
        disk_is_short: Callable[[int], bool] = lambda _wanted_bytes: False,
    ) -> None:
        self._database = database
        self._queue = queue
        self._gather_s = gather_s
        self._clock = clock
        self._on_stored = on_stored
        self._disk_is_short = disk_is_short
        self._sizes = SessionSizes(session_bytes)
        self._noting = asyncio.Lock()
        self._noting_task: asyncio.Task[None] | None = None
        self._arrivals = ArrivalClock(clock)
        self._waiting: deque[_Submission] = deque()
        self._waiting_turns = 0
        self._waiting_bytes = 0
        self._sessions = BoundedDict[str, tuple[Owner, str]](_MAX_QUEUED_SESSIONS)
        self._known = BoundedDict[str, tuple[str, int]](_SESSIONS_KNOWN)  # session → principal, epoch as stored
        self._wake = asyncio.Event()
        self._turn_came = asyncio.Event()
        self._silent_until_s = 0.0
        self.failing: str | None = None  # why the last commit failed, if it did
        self.counts = WriterCounts()

    @property
    def waiting_turns(self) -> int:
        return self._waiting_turns

    def begin_after(self, arrival: int) -> None:
        """Numbers what arrives from here on behind `arrival`."""
        self._arrivals.not_before(arrival)

    def forget(self, session_id: str) -> None:
        """The session is no longer stored, as far as this process knows."""
        self._known.pop(session_id, None)
        self._sessions.pop(session_id, None)
        self._sizes.forget(session_id)

    def submit(self, turns: Sequence[Turn]) -> "asyncio.Future[list[Outcome]]":
        """Takes turns for the next commit; the future has an outcome a turn, or a StoreError. Raises StoreError.

        For a moment after the store could not be reached at all nobody else is made to wait for it.
        """
        from token_broker.memory.store.turns import Arrived

        if time.monotonic() < self._silent_until_s:
            raise StoreUnreachableError(self.failing or "")
        sizes = list(map(stored_bytes, turns))
        size_bytes = sum(sizes) + _TURN_OVERHEAD_BYTES * len(turns)
        if self._disk_is_short(size_bytes):
            self.counts.short_of_disk += len(turns)
            raise StoreFullError("the disk has less free space than is to be kept")
        if self._waiting_turns + len(turns) > _MAX_QUEUED_TURNS or self._waiting_bytes + size_bytes > _MAX_QUEUED_BYTES:
            raise StoreBusyError("too many turns wait for the store")
        done: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        arrived = [Arrived(turn, self._arrivals.next(), size) for turn, size in zip(turns, sizes, strict=True)]
        self._waiting.append(_Submission(arrived, size_bytes, done))
        self._waiting_turns += len(turns)
        self._waiting_bytes += size_bytes
        self._wake.set()
        self._turn_came.set()
        return done

    def submit_session(self, owner: Owner, agent_id: str) -> None:
        """Takes a session for the next commit; nobody waits for it, and the oldest are dropped where too many wait."""
        self._sessions[owner.session_id] = (owner, agent_id)
        self._wake.set()

    async def run(self) -> None:
        """Writes until it is cancelled."""
        while True:
            await self._wake.wait()
            if not self._waiting:
                await self._turn_or(_SESSIONS_GATHER_S)
            if self._waiting_turns < _MAX_ROWS:
                await asyncio.sleep(self._gather_s)
            await self.flush()
            if self._sizes.is_due:
                await self.note_sizes()

    async def _turn_or(self, seconds: float) -> None:
        """Sessions alone can wait for company: nobody waits for them, and a commit each costs more than their mints."""
        self._turn_came.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._turn_came.wait()

    async def flush(self) -> None:
        """Writes one batch of what waits."""
        batch, sessions = self._take()
        if not batch and not sessions:
            return
        turns = [turn for submission in batch for turn in submission.turns]
        try:
            outcomes = await self._commit(turns, sessions, [len(submission.turns) for submission in batch])
        except StoreRefusedError:
            await self._one_by_one(batch, sessions)
        except StoreError as error:
            self._put_back(sessions)
            _fail(batch, error)
        except BaseException:
            _fail(batch, StoreAwayError("the writer was stopped"))
            raise
        else:
            told = iter(outcomes)
            for submission in batch:
                _tell(submission, list(islice(told, len(submission.turns))))

    def _take(self) -> tuple[list[_Submission], list[tuple[Owner, str]]]:
        batch: list[_Submission] = []
        rows = 0
        while self._waiting and (not batch or rows + len(self._waiting[0].turns) <= _MAX_ROWS):
            submission = self._waiting.popleft()
            batch.append(submission)
            rows += len(submission.turns)
            self._waiting_bytes -= submission.size_bytes
        self._waiting_turns -= rows
        sessions = list(self._sessions.values())
        self._sessions.clear()
        if not self._waiting:
            self._wake.clear()
        return batch, sessions

    def _put_back(self, sessions: list[tuple[Owner, str]]) -> None:
        """For the next commit, in a moment at the latest; unless a newer record came meanwhile.

        They are not left until a turn comes by: until its row is there, a session is unknown to other replicas.
        """
        for owner, agent_id in sessions:
            self._sessions.setdefault(owner.session_id, (owner, agent_id))
        if sessions:
            asyncio.get_running_loop().call_later(_SESSIONS_AGAIN_S, self._wake.set)

    async def _commit(
        self, turns: "list[Arrived]", sessions: list[tuple[Owner, str]], groups: Sequence[int]
    ) -> list[Outcome]:
        """An outcome a turn; `groups` says how many of them were handed in together."""
        from token_broker.memory.store.session_room import insert_where_room

        unknown = [*sessions, *self._unknown(turns)]
        work = partial(
            insert_where_room,
            batch=turns,
            now_s=self._clock(),
            unknown=unknown,
            queue=self._queue,
            room=self._sizes.room(_bytes_by_session(turns)),
            groups=groups,
        )
        try:
            outcomes, sizes = await self._database.write(work)
        except StoreRefusedError:
            self.counts.failed_commits += 1
            raise
        except StoreError as error:
            self.counts.failed_commits += 1
            self.failing = str(error)
            if isinstance(error, StoreUnreachableError):
                self._silent_until_s = time.monotonic() + _SILENCE_S
            raise
        self.failing = None
        self._sizes.learn(sizes)
        self._count(turns, outcomes)
        for owner, _ in unknown:
            self._known[owner.session_id] = (owner.principal, owner.epoch)
        if not NOT_THEIRS.isdisjoint(outcomes):
            for item, outcome in zip(turns, outcomes, strict=True):
                if outcome in NOT_THEIRS:
                    self._known.pop(item.turn.owner.session_id, None)
        return outcomes

    async def note_sizes(self, *, everything: bool = False) -> None:
        """Brings the sizes of sessions in the store up to date, where they lag by much; never raises StoreError.

        Whoever is cancelled here leaves it to finish: noted twice, a size would be too large for good.
        """
        self._noting_task = asyncio.create_task(self._note_sizes(everything=everything), name="memory-sizes")
        await asyncio.shield(self._noting_task)

    async def _note_sizes(self, *, everything: bool) -> None:
        async with self._noting:
            if not (due := self._sizes.due(everything=everything)):
                return
            try:
                found = await self._database.write(partial(note_sizes, added=due), again=False)
            except StoreError:
                self._sizes.lose(due)
            else:
                self._sizes.noted(due, found)

    def _unknown(self, turns: "list[Arrived]") -> list[tuple[Owner, str]]:
        """The sessions of these turns that this process has not seen stored as they are."""
        found: dict[str, tuple[Owner, str]] = {}
        for item in turns:
            owner = item.turn.owner
            known = self._known.get(owner.session_id)
            if known is None or known[0] != owner.principal or known[1] < owner.epoch:
                found[owner.session_id] = (owner, item.turn.agent_id)
        return list(found.values())

    async def _one_by_one(self, batch: list[_Submission], sessions: list[tuple[Owner, str]]) -> None:
        """Every row in a transaction of its own; a submission with a row that is refused is refused."""
        for owner, agent_id in sessions:
            try:
                await self._commit([], [(owner, agent_id)], [])
            except StoreRefusedError:
                self.counts.refused += 1
            except StoreError:
                self._put_back([(owner, agent_id)])
        for submission in batch:
            outcomes: list[Outcome] = []
            try:
                for item in submission.turns:
                    outcomes += await self._commit([item], [], [1])
            except StoreError as error:
                self.counts.refused += isinstance(error, StoreRefusedError)
                _fail([submission], error)
            else:
                _tell(submission, outcomes)

    def _count(self, turns: "list[Arrived]", outcomes: list[Outcome]) -> None:
        self.counts.commits += 1
        stored = [item for item, outcome in zip(turns, outcomes, strict=True) if outcome is Outcome.STORED]
        foreign = sum(outcome in NOT_THEIRS for outcome in outcomes)
        full = outcomes.count(Outcome.FULL)
        self.counts.stored += len(stored)
        self.counts.foreign += foreign
        self.counts.full += full
        self.counts.duplicates += len(outcomes) - len(stored) - foreign - full
        if stored:
            added = _bytes_by_session(stored)
            self._sizes.add(added)
            self._on_stored(added.keys())


def _bytes_by_session(turns: "list[Arrived]") -> dict[str, int]:
    found: dict[str, int] = {}
    for item in turns:
        session_id = item.turn.owner.session_id
        found[session_id] = found.get(session_id, 0) + item.size_bytes
    return found


def _tell(submission: _Submission, outcomes: list[Outcome]) -> None:
    if not submission.done.done():
        submission.done.set_result(outcomes)


def _fail(batch: list[_Submission], error: StoreError) -> None:
    for submission in batch:
        give_up(submission.done, error)


def give_up(done: "asyncio.Future[list[Outcome]]", error: StoreError) -> None:
    """Ends the wait with `error`, unless it is over; whoever waited may have left, and then it is no news."""
    if not done.done():
        done.set_exception(error)
        done.exception()  # read, so that asyncio does not complain that nobody did
