"""Asks the next resource beside one that is silent, and takes the first answer.

A `Contest` brings the calls of one request, one after the other: the chain's mints, or the proxy's handshakes. While
the first one is silent for longer than its route usually takes, the next one is asked beside it. Only for calls that
can be undone: never for what makes a call that somebody would have to hang up.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import structlog

from strategies.errors import MintError, TimedOutError, TransientError
from strategies.health import Permit
from strategies.pool import Pool, PoolPermit

__all__ = ["Call", "Contest", "HedgeBudget", "Hedger"]

log = structlog.get_logger("token_broker.chain")

T = TypeVar("T")

_SLOWER = TransientError("it was slower than another resource")

# How long a cancelled call may take to clean up.
_CLEAN_UP_S = 0.05
# A request that may not be hedged looks again so often: its resource may be known to be sick by then.
_LOOK_AGAIN_S = 0.2
_WINDOW_S = 60.0
_SLOT_S = 10.0
_ALWAYS = 5
_ONE_IN = 10


@dataclass(slots=True)
class Call(Generic[T]):
    """One admitted call. `run` makes it, given this; it may take `limit_s`, and raises nothing but MintError.

    `asked_s` is when Azure was asked: later than `began_s` where `run` first waits for something of ours. It sets it to
    infinity meanwhile.
    """

    name: str
    permit: PoolPermit
    run: "Callable[[Call[T]], Coroutine[Any, Any, T]]"  # holds no call: a cycle would wait for the collector
    limit_s: float
    began_s: float = 0.0  # set when it begins, as is:
    asked_s: float = 0.0


class Contest(Protocol[T]):
    """The calls of one request."""

    def next_call(self, busy: Collection[str]) -> Call[T] | None:
        """The next call, to none of the resources that are `busy` with a call of this request; None without one."""
        ...

    def ended(self, call: Call[T], error: MintError | None) -> None:
        """The call failed, or won where `error` is None."""
        ...

    def undone(self, call: Call[T], late: T | None) -> None:
        """Another call was faster. Called again with what the call still came to, if it did: close it, forget it."""
        ...


class HedgeBudget:
    """At most a tenth of the requests of a minute are hedged, but always five."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: deque[tuple[float, int]] = deque()  # of 10 s each: when they began, and how many
        self._hedged_s: deque[float] = deque()

    def count_request(self) -> None:
        """A request began that may be hedged."""
        slot_s = self._clock() // _SLOT_S * _SLOT_S
        if self._requests and self._requests[-1][0] == slot_s:
            self._requests[-1] = (slot_s, self._requests[-1][1] + 1)
            return
        self._requests.append((slot_s, 1))
        while self._requests[0][0] <= slot_s - _WINDOW_S:
            self._requests.popleft()

    @property
    def has_left(self) -> bool:
        """Whether one more request may be hedged."""
        now_s = self._clock()
        while self._hedged_s and self._hedged_s[0] <= now_s - _WINDOW_S:
            self._hedged_s.popleft()
        requests = sum(count for slot_s, count in self._requests if slot_s > now_s - _WINDOW_S)
        return len(self._hedged_s) < max(_ALWAYS, requests // _ONE_IN)

    def count_hedged(self) -> None:
        """A request was hedged."""
        self._hedged_s.append(self._clock())


class Hedger:
    """Runs the contests of one process, which share a budget.

    `after_ms` is the silence after which the next resource is asked: None goes by what the route usually takes, 0 is
    off. `clock` is the pool's, and that of the deadlines; the event loop's has to run as fast.
    """

    def __init__(
        self, pool: Pool, *, after_ms: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.pool = pool
        self.clock = clock
        self.budget = HedgeBudget(clock)
        # How many calls were asked beside a silent one, how many of those won, how many calls were undone.
        self.counts: Counter[tuple[str, str]] = Counter(
            {(each.name, outcome): 0 for each in pool.resources for outcome in ("asked", "won", "undone")}
        )
        self._after_ms = after_ms
        self._hedges = after_ms != 0 and len(pool.resources) > 1
        # asyncio keeps only weak references to tasks: a task that nobody holds can vanish before it ends.
        self.left_behind: set[asyncio.Task[Any]] = set()

    async def race(self, contest: Contest[T], *, is_handshake: bool = False, always: bool = False) -> T | None:
        """The first result of the contest's calls; None where all failed. Raises nothing but cancellation.

        The success of a handshake counts for nothing yet: see `Pool.connecting`. `always` hedges beside the budget.
        """
        race = _Race(self, contest, is_handshake=is_handshake, always=always)
        return await (race.run() if self._hedges else race.run_in_turn())

    def delay_s(self, permit: PoolPermit) -> float | None:
        """How long the call may be silent; None where nothing is hedged."""
        if not self._hedges:
            return None
        if self._after_ms is not None:
            return self._after_ms / 1000
        return self.pool.answer_times(permit.resource.name, permit.route).hedge_after_ms / 1000


class _Race(Generic[T]):
    """One contest under way."""

    def __init__(self, hedger: Hedger, contest: Contest[T], *, is_handshake: bool, always: bool) -> None:
        self._hedger = hedger
        self._pool = hedger.pool
        self._clock = hedger.clock
        self._contest = contest
        self._is_handshake = is_handshake
        self._running: dict[asyncio.Task[T], Call[T]] = {}
        self._first: Call[T] | None = None
        self._pace: Permit | None = None
        self._delay_s: float | None = None
        self._hedge_at_s: float | None = None
        self._is_counted = always  # in the budget, or it needs not be
        self._beside: list[Call[T]] = []  # asked beside a silent one
        self._probed: set[str] = set()  # resources that were known to be sick when they were asked

    async def run(self) -> T | None:
        self._first = first = self._ask_next()
        if first is not None and (delay_s := self._hedger.delay_s(first.permit)) is not None:
            if not self._is_counted:
                self._hedger.budget.count_request()
            self._pace = self._pool.pace(first.permit.resource.name).admit()
            self._delay_s = delay_s
            self._hedge_at_s = first.began_s + delay_s
        try:
            while self._running:
                ended = await self._wait()
                lost = self._take_lost(ended)
                if len(ended) > lost:
                    return self._won(next(task for task in ended if task in self._running))
                for _ in range(lost):
                    self._ask_next()
                self._hedge_if_due()
        except BaseException:  # most often cancellation: the client has left
            for task, call in self._running.items():
                self._pool.abandoned(call.permit)
                self._leave_behind(task, call)
            raise
        finally:
            if self._pace is not None and self._first is not None:
                self._pool.pace(self._first.permit.resource.name).abandoned(self._pace)
        return None

    async def run_in_turn(self) -> T | None:
        """The contest where nothing is hedged: one call after the other, at the cost of the calls alone."""
        while (call := self._contest.next_call(())) is not None:
            call.began_s = call.asked_s = self._clock()
            task = asyncio.create_task(call.run(call), name=call.name)
            try:
                await asyncio.wait((task,), timeout=call.limit_s)
                if not task.done():
                    task.cancel()
                    await asyncio.wait((task,), timeout=_CLEAN_UP_S)
            except BaseException:
                self._pool.abandoned(call.permit)
                self._leave_behind(task, call)
                raise
            if (error := _error_of(task, call)) is None:
                self._count_winner(call)
                return task.result()
            self._count_loss(task, call, error)
        return None

    def _ask_next(self, but: Iterable[str] = ()) -> Call[T] | None:
        busy = [*(call.permit.resource.name for call in self._running.values()), *but]
        if (call := self._contest.next_call(busy)) is not None:
            call.began_s = call.asked_s = self._clock()
            if self._pool.is_sick(call.permit.resource.name):
                self._probed.add(call.permit.resource.name)
            # A task of its own, and no `asyncio.timeout`: that would wait for a call which ignores its cancellation.
            self._running[asyncio.create_task(call.run(call), name=call.name)] = call
        return call

    async def _wait(self) -> list[asyncio.Task[T]]:
        """Waits until a call has ended, used its time up, or been silent for the delay. Returns those that are over."""
        until_s = min(call.began_s + call.limit_s for call in self._running.values())
        if self._hedge_at_s is not None:
            until_s = min(until_s, self._hedge_at_s)
        timeout_s = max(0.0, until_s - self._clock())
        await asyncio.wait(self._running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        now_s = self._clock()
        overdue = [
            task for task, call in self._running.items() if not task.done() and now_s >= call.began_s + call.limit_s
        ]
        if overdue:
            for task in overdue:
                task.cancel()
            await asyncio.wait(overdue, timeout=_CLEAN_UP_S)
        return [task for task in self._running if task.done() or task in overdue]

    def _take_lost(self, ended: Collection[asyncio.Task[T]]) -> int:
        """Counts those that failed, and forgets them. Returns how many."""
        lost = 0
        for task in ended:
            if (error := _error_of(task, self._running[task])) is None:
                continue
            lost += 1
            self._count_loss(task, self._running.pop(task), error)
        return lost

    def _count_loss(self, task: asyncio.Task[T], call: Call[T], error: MintError) -> None:
        if not task.done():
            self._leave_behind(task, call)
        self._pool.refused(call.permit, error)
        self._contest.ended(call, error)

    def _count_winner(self, call: Call[T]) -> None:
        if self._is_handshake:
            self._pool.connected(call.permit)
        else:
            self._pool.answered(call.permit, asked_s=call.asked_s)
        self._contest.ended(call, None)

    def _hedge_if_due(self) -> None:
        now_s = self._clock()
        if self._hedge_at_s is None or self._delay_s is None or now_s < self._hedge_at_s or not self._running:
            return
        # A call that still waits for something of ours is not silent: nobody was asked yet.
        asked_s = min(now_s, max(call.asked_s for call in self._running.values()))
        if now_s < asked_s + self._delay_s:
            self._hedge_at_s = asked_s + self._delay_s
            return
        self._hedge_at_s = now_s + self._delay_s
        if self._is_counted or self._hedger.budget.has_left:
            if (beside := self._ask_next()) is None:
                self._hedge_at_s = None
                return
            self._beside.append(beside)
            self._count(beside, "asked")
            if not self._is_counted:
                self._is_counted = True
                self._hedger.budget.count_hedged()
            return
        # Others may have found out meanwhile that it waits in vain: to go on to a resource that is well is no hedge.
        sick = {each.name for each in self._pool.resources if self._pool.is_sick(each.name)}
        asked = {call.permit.resource.name for call in self._running.values()}
        if not asked <= sick - self._probed or not self._ask_next(sick):
            self._hedge_at_s = now_s + _LOOK_AGAIN_S

    def _won(self, winner: asyncio.Task[T]) -> T:
        call = self._running.pop(winner)
        self._count_winner(call)
        if call in self._beside:
            self._count(call, "won")
        if self._first is not None and self._pace is not None and self._delay_s is not None:
            pace = self._pool.pace(self._first.permit.resource.name)
            if call is self._first and self._clock() - call.asked_s <= self._delay_s:
                pace.proved(self._pace)
            elif self._first in self._running.values() or self._pace.probe:  # asked first, and still silent
                pace.failed(self._pace, _SLOWER, None)
        for task, loser in self._running.items():
            if loser is not self._first:
                self._note_silent(loser)
            self._count(loser, "undone")
            self._pool.undone(loser.permit, asked_s=loser.asked_s)
            self._contest.undone(loser, None)
            self._leave_behind(task, loser)
        self._running.clear()
        return winner.result()

    def _count(self, call: Call[T], outcome: str) -> None:
        self._hedger.counts[call.permit.resource.name, outcome] += 1

    def _note_silent(self, loser: Call[T]) -> None:
        """One that was asked beside the first is slow as well, where it was silent for as long as the first may be."""
        delay_s = self._hedger.delay_s(loser.permit)
        if delay_s is None or self._clock() - loser.asked_s < delay_s:
            return
        pace = self._pool.pace(loser.permit.resource.name)
        if (permit := pace.admit()) is not None:
            pace.failed(permit, _SLOWER, None)

    def _leave_behind(self, task: asyncio.Task[T], call: Call[T]) -> None:
        """Cancels a call that nobody waits for. What it comes to all the same is undone."""
        contest, left_behind = self._contest, self._hedger.left_behind

        def forget(task: asyncio.Task[T]) -> None:
            left_behind.discard(task)
            if not task.cancelled() and task.exception() is None:
                contest.undone(call, task.result())

        task.cancel()
        left_behind.add(task)
        task.add_done_callback(forget)


def _error_of(task: asyncio.Task[Any], call: Call[Any]) -> MintError | None:
    """Why the call is over; None where it has a result."""
    if not task.done() or task.cancelled():
        return TimedOutError(f"no answer within its share of {call.limit_s:.1f} s")
    match task.exception():
        case None:
            return None
        case MintError() as error:
            return error
        case unexpected:
            log.error("strategy_failed_unexpectedly", strategy=call.name, error=type(unexpected).__name__)
            return MintError(f"an unexpected {type(unexpected).__name__}")
