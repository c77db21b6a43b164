"""Group commit: turns that many callers submit at once are written in one transaction; each caller gets its outcomes.

The writing task belongs to no request: a caller that leaves cancels nothing. A batch that one row spoils is repeated
row by row, so that only that row is refused.

The writer also knows how much each session has stored (`SessionSizes`).
"""

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import (
    StoreAwayError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    StoreUnreachableError,
)
from token_broker.memory.types import (
    NODE_BITS,
    NOT_OWNED,
    ArrivedTurn,
    Interruption,
    Outcome,
    SinkName,
    SizeLimit,
    Turn,
    arrived_us,
    stored_bytes,
    to_us,
)
from token_broker.security.limits import BoundedDict
from token_broker.security.tokens import Owner

__all__ = ["ArrivalClock", "GroupWriter", "SessionSizes", "WriterCounts", "give_up", "waiting_bytes"]

_SESSIONS_GATHER_S = 0.05
_MAX_ROWS = 400  # a transaction: while it is written, the loop prepares the next
_MAX_QUEUED_TURNS = 5_000
_MAX_QUEUED_BYTES = 16 * 1024 * 1024
_MAX_QUEUED_SESSIONS = 10_000
_SESSIONS_KNOWN = 20_000
_UNREACHABLE_S = 0.5
_SESSIONS_AGAIN_S = 1.0
_TURN_OVERHEAD_BYTES = 500  # ids, numbers, Python's objects
_LAG_BYTES = 65_536
_LAGS_A_SESSION = 16  # a small limit is kept more exactly
_SIZES_KNOWN = 20_000


def waiting_bytes(turn: Turn) -> int:
    """The memory that a waiting turn takes, roughly and never too little for plain text."""
    return stored_bytes(turn) + _TURN_OVERHEAD_BYTES


class ArrivalClock:
    """Numbers turns as they arrive: microseconds since 1970, then ten random bits of this process.

    Grows within a process even when the clock goes back; between replicas it is as good as their clocks. It also names
    the attempt to write a row: an attempt that is repeated finds its own arrival in the table.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._node = secrets.randbits(NODE_BITS)
        self._last_us = 0

    def next(self) -> int:
        self._last_us = max(self._last_us + 1, to_us(self._clock()))
        return (self._last_us << NODE_BITS) | self._node

    def not_before(self, arrival: int) -> None:
        """Makes every later number greater than `arrival`."""
        self._last_us = max(self._last_us, arrived_us(arrival))


@dataclass(slots=True)
class WriterCounts:
    """Since the process began."""

    stored: int = 0
    duplicates: int = 0
    foreign: int = 0  # in another principal's session, or in one that was erased
    refused: int = 0
    full: int = 0  # the session had no room
    short_of_disk: int = 0  # the disk had no room; the proxy's turns are tried again
    commits: int = 0
    failed_commits: int = 0


@dataclass(slots=True, eq=False)
class _Submission:
    turns: list[ArrivedTurn]
    interruptions: list[Interruption]
    size_bytes: int

    @property
    def rows(self) -> int:
        return len(self.turns) + len(self.interruptions)

    done: "asyncio.Future[list[Outcome]]" = field(repr=False)


class GroupWriter:
    """Writes turns and sessions; turns go on to `sinks`. Start `run` once."""

    def __init__(
        self,
        database: Database,
        *,
        sinks: Sequence[SinkName] = (),
        gather_s: float,
        clock: Callable[[], float],
        on_stored: Callable[[Collection[str]], None],
        session_bytes: int = 0,
        disk_is_short: Callable[[int], bool] = lambda _wanted_bytes: False,
    ) -> None:
        self._database = database
        self._sinks = tuple(sinks)
        self._gather_s = gather_s
        self._clock = clock
        self._on_stored = on_stored
        self._disk_is_short = disk_is_short
        self._sizes = SessionSizes(session_bytes)
        self._writing_sizes = asyncio.Lock()
        self._sizes_task: asyncio.Task[None] | None = None
        self._arrivals = ArrivalClock(clock)
        self._waiting: deque[_Submission] = deque()
        self._waiting_bytes = 0
        self._sessions = BoundedDict[str, tuple[Owner, str]](_MAX_QUEUED_SESSIONS)
        self._known = BoundedDict[str, tuple[str, int]](_SESSIONS_KNOWN)  # session → principal, epoch as stored
        self._wake = asyncio.Event()
        self._turn_came = asyncio.Event()
        self._unreachable_until_s = 0.0
        self.waiting_turns = 0
        self.failing: str | None = None  # why the last commit failed, if it did
        self.counts = WriterCounts()

    def begin_after(self, arrival: int) -> None:
        """Makes every later arrival greater than `arrival`."""
        self._arrivals.not_before(arrival)

    def evict(self, session_id: str) -> None:
        """Drops what this process knows of a session: it was erased."""
        self._known.pop(session_id, None)
        self._sessions.pop(session_id, None)
        self._sizes.evict(session_id)

    def submit(
        self, turns: Sequence[Turn], interruptions: Sequence[Interruption] = ()
    ) -> "asyncio.Future[list[Outcome]]":
        """Takes turns for the next commit; the future has an outcome a turn, or a StoreError. Raises StoreError.

        `interruptions` are written in the same commit, after the turns.

        For a moment after the store was unreachable, submissions are refused at once: waiting would not help them.
        """
        if time.monotonic() < self._unreachable_until_s:
            raise StoreUnreachableError(self.failing or "")
        sizes = list(map(stored_bytes, turns))
        rows = len(turns) + len(interruptions)
        size_bytes = sum(sizes) + _TURN_OVERHEAD_BYTES * rows
        if self._disk_is_short(size_bytes):
            self.counts.short_of_disk += len(turns)
            raise StoreFullError("the disk has less free space than is to be kept")
        if self.waiting_turns + rows > _MAX_QUEUED_TURNS or self._waiting_bytes + size_bytes > _MAX_QUEUED_BYTES:
            raise StoreBusyError("too many turns wait for the store")
        done: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        arrived = [ArrivedTurn(turn, self._arrivals.next(), size) for turn, size in zip(turns, sizes, strict=True)]
        self._waiting.append(_Submission(arrived, list(interruptions), size_bytes, done))
        self.waiting_turns += rows
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
                # Sessions alone can wait: nobody waits for them, and a commit each would cost more than their mints.
                self._turn_came.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SESSIONS_GATHER_S):
                        await self._turn_came.wait()
            if self.waiting_turns < _MAX_ROWS:
                await asyncio.sleep(self._gather_s)
            await self.flush()
            if self._sizes.is_due:
                await self.write_sizes()

    async def flush(self) -> None:
        """Writes one batch of what waits."""
        batch: list[_Submission] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].rows <= _MAX_ROWS):
            submission = self._waiting.popleft()
            batch.append(submission)
            rows += submission.rows
            self._waiting_bytes -= submission.size_bytes
        self.waiting_turns -= rows
        sessions = list(self._sessions.values())
        self._sessions.clear()
        if not self._waiting:
            self._wake.clear()
        if not batch and not sessions:
            return
        turns = [turn for submission in batch for turn in submission.turns]
        interruptions = [each for submission in batch for each in submission.interruptions]
        try:
            groups = [len(submission.turns) for submission in batch]
            outcomes = await self._commit(turns, sessions, groups, interruptions)
        except StoreRefusedError:
            await self._one_by_one(batch, sessions)
        except StoreError as error:
            self._put_back(sessions)
            _fail(batch, error)
        except BaseException:
            self._put_back(sessions)
            _fail(batch, StoreAwayError("the writer was stopped"))
            raise
        else:
            told = iter(outcomes)
            for submission in batch:
                _succeed(submission, list(islice(told, len(submission.turns))))

    def _put_back(self, sessions: list[tuple[Owner, str]]) -> None:
        """Keeps sessions for the next commit, in a second at the latest; unless a newer record came meanwhile.

        They do not wait for the next turn: until its row is there, a session is unknown to other replicas.
        """
        for owner, agent_id in sessions:
            self._sessions.setdefault(owner.session_id, (owner, agent_id))
        if sessions:
            asyncio.get_running_loop().call_later(_SESSIONS_AGAIN_S, self._wake.set)

    async def _commit(
        self,
        turns: list[ArrivedTurn],
        sessions: list[tuple[Owner, str]],
        groups: Sequence[int],
        interruptions: Sequence[Interruption] = (),
    ) -> list[Outcome]:
        """An outcome a turn; `groups` says how many of them were submitted together."""
        from token_broker.memory.store.turn_writes import insert_within_limit

        unseen: dict[str, tuple[Owner, str]] = {}
        for item in turns:
            owner = item.turn.owner
            known = self._known.get(owner.session_id)
            if known is None or known[0] != owner.principal or known[1] < owner.epoch:
                unseen[owner.session_id] = (owner, item.turn.agent_id)
        unknown = [*sessions, *unseen.values()]
        work = partial(
            insert_within_limit,
            batch=turns,
            now_s=self._clock(),
            unknown=unknown,
            sinks=self._sinks,
            limit=self._sizes.limit(_bytes_by_session(turns)),
            groups=groups,
            interruptions=interruptions,
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
                self._unreachable_until_s = time.monotonic() + _UNREACHABLE_S
            raise
        self.failing = None
        self._sizes.learn(sizes)
        self._count(turns, outcomes)
        said = {item.turn.owner.session_id for item in turns}
        for owner, _ in unknown:
            if owner.session_id in said:  # else its first turn adds the sinks that it goes to
                self._known[owner.session_id] = (owner.principal, owner.epoch)
        if not NOT_OWNED.isdisjoint(outcomes):
            for item, outcome in zip(turns, outcomes, strict=True):
                if outcome in NOT_OWNED:
                    self._known.pop(item.turn.owner.session_id, None)
        return outcomes

    async def write_sizes(self, *, everything: bool = False) -> None:
        """Writes the sizes of sessions to the store, where they lag by much; never raises StoreError.

        A caller that is cancelled leaves it to finish: added twice, a size would be too large for good.
        """

        async def write() -> None:
            async with self._writing_sizes:
                if not (due := self._sizes.due(everything=everything)):
                    return
                from token_broker.memory.store.sessions import add_to_sizes

                try:
                    found = await self._database.write(partial(add_to_sizes, added=due), idempotent=False)
                except StoreError:
                    self._sizes.lost(due)
                else:
                    self._sizes.written(due, found)

        self._sizes_task = asyncio.create_task(write(), name="memory-sizes")
        await asyncio.shield(self._sizes_task)

    async def _one_by_one(self, batch: list[_Submission], sessions: list[tuple[Owner, str]]) -> None:
        """Writes every row in a transaction of its own; a submission with a refused row is refused."""
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
                if submission.interruptions:
                    await self._commit([], [], [], submission.interruptions)
            except StoreError as error:
                self.counts.refused += isinstance(error, StoreRefusedError)
                _fail([submission], error)
            else:
                _succeed(submission, outcomes)

    def _count(self, turns: list[ArrivedTurn], outcomes: list[Outcome]) -> None:
        self.counts.commits += 1
        stored = [item for item, outcome in zip(turns, outcomes, strict=True) if outcome is Outcome.STORED]
        foreign = sum(outcome in NOT_OWNED for outcome in outcomes)
        full = outcomes.count(Outcome.FULL)
        self.counts.stored += len(stored)
        self.counts.foreign += foreign
        self.counts.full += full
        self.counts.duplicates += len(outcomes) - len(stored) - foreign - full
        if stored:
            added = _bytes_by_session(stored)
            self._sizes.add(added)
            self._on_stored(added.keys())


def _bytes_by_session(turns: list[ArrivedTurn]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in turns:
        session_id = item.turn.owner.session_id
        found[session_id] = found.get(session_id, 0) + item.size_bytes
    return found


def _succeed(submission: _Submission, outcomes: list[Outcome]) -> None:
    if not submission.done.done():
        submission.done.set_result(outcomes)


def _fail(batch: list[_Submission], error: StoreError) -> None:
    for submission in batch:
        give_up(submission.done, error)


def give_up(done: "asyncio.Future[list[Outcome]]", error: StoreError) -> None:
    """Ends the wait with `error`, unless it is over; the caller may have left."""
    if not done.done():
        done.set_exception(error)
        done.exception()  # retrieved, so that asyncio does not log an exception that nobody awaited


@dataclass(slots=True)
class _SessionSize:
    written: int  # the column, when it was last read or written
    pending: int = 0  # stored since, and not yet added to the column


class SessionSizes:
    """How much each session has stored, so that none grows without bound: a column, and ahead of it each process's sum.

    A turn that wrote the column too would write another page of the database, and hold its session's row against other
    replicas. So a process adds up what it stores of a session, and writes the column after every `_LAG_BYTES` of it. A
    process's own sum is exact. What another replica stores it learns that much later: for each other replica, a session
    may exceed its limit by that much. With `limit_bytes` of 0 sizes are written, and no session is full.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lag_bytes = min(_LAG_BYTES, limit_bytes // _LAGS_A_SESSION) if limit_bytes else _LAG_BYTES
        self._sizes: OrderedDict[str, _SessionSize] = OrderedDict()
        self._due: dict[str, int] = {}

    def limit(self, wanted: Mapping[str, int]) -> SizeLimit | None:
        """The check for a transaction that stores so many bytes of sessions; None where all surely have room."""
        if not self._limit_bytes:
            return None
        unsure = set()
        for key, size_bytes in wanted.items():
            size = self._sizes.get(key)
            if size is None or size.written + size.pending + size_bytes > self._limit_bytes:
                unsure.add(key)
        if not unsure:
            return None
        pending = {key: size.pending for key in unsure if (size := self._sizes.get(key))}
        return SizeLimit(self._limit_bytes, frozenset(unsure), pending)

    def learn(self, found: Mapping[str, int]) -> None:
        """Takes over columns of sessions that were just read or written."""
        for key, written in found.items():
            size = self._sizes.setdefault(key, _SessionSize(written))
            size.written = written
            self._sizes.move_to_end(key)
        self._trim()

    def add(self, stored: Mapping[str, int]) -> None:
        """Counts bytes that were stored in these sessions."""
        for key, size_bytes in stored.items():
            size = self._sizes.setdefault(key, _SessionSize(0))
            size.pending += size_bytes
            if size.pending >= self._lag_bytes:
                self._due.setdefault(key, 0)
        self._trim()

    @property
    def is_due(self) -> bool:
        """Whether a column lags behind by much."""
        return bool(self._due)

    def due(self, *, everything: bool = False) -> dict[str, int]:
        """What to add to the columns that lag behind by much, or to all; `written` or `lost` has to follow."""
        if everything:
            self._due |= {key: self._due.get(key, 0) for key, size in self._sizes.items() if size.pending}
        sizes = self._sizes
        return {key: left + (sizes[key].pending if key in sizes else 0) for key, left in self._due.items()}

    def written(self, added: Mapping[str, int], found: Mapping[str, int]) -> None:
        """`added` was added to the columns, which are `found` now; a session that is gone has none."""
        for key in added:
            self._due.pop(key, None)
            if size := self._sizes.get(key):
                size.pending = 0
        self.learn({key: written for key, written in found.items() if key in self._sizes})

    def lost(self, added: Iterable[str]) -> None:
        """Nobody knows whether it was written: the columns are read again, and may lack what was to be added."""
        for key in added:
            self.evict(key)

    def evict(self, session_id: str) -> None:
        """Drops what is known of a session."""
        self._sizes.pop(session_id, None)
        self._due.pop(session_id, None)

    def _trim(self) -> None:
        """Drops the sessions that were unused for longest; their pending bytes are due next."""
        while len(self._sizes) > _SIZES_KNOWN:
            key, size = self._sizes.popitem(last=False)
            if size.pending:
                self._due[key] = self._due.get(key, 0) + size.pending
