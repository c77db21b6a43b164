"""Limits on what one caller may use, and what all of them may: each is bounded, single-threaded, and takes the clock.

- `BoundedDict`: entries of a cache or record that a caller could fill without limit.
- `RateLimit` and `RateLimiter`: requests a minute. The `limits` package is not used: its in-memory storage needs a
  timer thread, and its API names back ends by strings.
- `SessionLimits`: open talks.
- `MemoryQuotas`: turns and bytes a minute, reads a minute, pages at once. Each has a limiter of its own: reading
  receipts, or sending turns, must not cost anybody a plan.
- `RecallCache`: searches of the memory by a caller that asks again and again.
"""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, NoReturn, Protocol, Self, TypeVar

from token_broker.web.requests import Problem

__all__ = [
    "BoundedDict",
    "MemoryQuotas",
    "PageSlots",
    "RateLimit",
    "RateLimiter",
    "RecallCache",
    "RefusalDelay",
    "SessionLease",
    "SessionLimits",
    "TurnQuota",
    "too_many_requests",
    "too_many_sessions",
]

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

MAX_KEYS = 100_000  # a caller with many addresses must not fill the memory
SESSIONS_RETRY_AFTER_S = 10
PROMPT_REFUSALS_PER_MINUTE = 120
REFUSAL_PAUSE_S = 1.0
_PAGES_AT_ONCE = 32  # of 1 MiB: what a process may spend on answers that clients read slowly
_PAGES_AT_ONCE_PER_KEY = 4
_PAGES_WAITING = 64
_PAGE_WAIT_S = 5.0
_CACHED_S = 2.0
_CACHED_SESSIONS = 1_000  # of a few kilobytes each


# Not cachetools.FIFOCache, which evicts in the same order: each of its reads and writes runs Python code, and these
# dicts stand on the path of every turn and token request. Not a plain dict: finding the first key again and again skips
# the deleted entries before it each time.
class BoundedDict(OrderedDict[K, V]):
    """At most `max_entries` entries. Writing a key makes it the last one; beyond the maximum the first one is removed.

    Reading does not change the order.
    """

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self.max_entries = max_entries

    # OrderedDict's `setdefault`, `update` and `|=` call this method in a subclass; those of `dict` would not.
    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.max_entries:
            self.popitem(last=False)


class RateLimit:
    """At most `burst` at once, and then `per_minute` a minute, per key (GCRA). 0 a minute is no limit.

    `burst` is `per_minute` by default.

    Each key costs one float: the time at which its whole burst is available again. A key is dropped after that time;
    beyond `max_keys` the least recently used one goes first.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        burst: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self.per_minute = per_minute
        self._burst = per_minute if burst is None else burst
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._burst_s = self._interval_s * self._burst
        self._clock = clock
        self._free_at_s = BoundedDict[str, float](max_keys)  # in the order of last use

    def take(self, key: str, cost: int = 1) -> float | None:
        """None where `key` is within its rate, and counts `cost`; else the seconds to wait, and counts nothing.

        A cost above the burst never passes: ask `fits` first.
        """
        if (wait_s := self.wait_s(key, cost)) is None:
            self.count(key, cost)
        return wait_s

    def wait_s(self, key: str, cost: int = 1) -> float | None:
        """What `take` would return, without counting."""
        if not self._interval_s:
            return None
        wait_s = cost * self._interval_s - self._burst_s
        if (free_at_s := self._free_at_s.get(key)) is not None:
            wait_s += max(0.0, free_at_s - self._clock())
        return wait_s if wait_s > 1e-6 else None  # a rounding error must not refuse the last of the burst  # noqa: PLR2004

    def count(self, key: str, cost: int = 1) -> None:
        """Counts `cost` in any case. The wait that results is at most the time that refills the burst."""
        if not self._interval_s:
            return
        now_s = self._clock()
        while self._free_at_s and self._free_at_s[next(iter(self._free_at_s))] <= now_s:
            self._free_at_s.popitem(last=False)
        free_at_s = max(self._free_at_s.get(key, now_s), now_s) + cost * self._interval_s
        self._free_at_s[key] = min(free_at_s, now_s + self._burst_s)

    def fits(self, cost: int) -> bool:
        """Whether `cost` is at most the burst."""
        return not self.per_minute or cost <= self._burst

    def __len__(self) -> int:
        return len(self._free_at_s)


class RefusalDelay:
    """Delays refusals to a key that keeps asking.

    A client that asks again right after each refusal would keep the event loop busy with refusals, and all other
    callers would wait. So each key gets a burst of immediate refusals; each further one follows after a pause.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, pause_s: float = REFUSAL_PAUSE_S) -> None:
        self._prompt = RateLimit(PROMPT_REFUSALS_PER_MINUTE, clock=clock)
        self._pause_s = pause_s

    async def refuse(self, key: str, problem: Problem) -> NoReturn:
        """Raises `problem`, after a pause where `key` was refused too often."""
        if self._prompt.take(key) is not None:
            await asyncio.sleep(self._pause_s)
        raise problem


class RateLimiter:
    """Rate limiter per key. Refusals beyond a burst are delayed: see `RefusalDelay`."""

    def __init__(
        self, per_minute: int, *, clock: Callable[[], float] = time.monotonic, pause_s: float = REFUSAL_PAUSE_S
    ) -> None:
        self._rate = RateLimit(per_minute, clock=clock)
        self._refusal_delay = RefusalDelay(clock=clock, pause_s=pause_s)

    async def admit(self, key: str) -> None:
        """Counts one request of `key`. Raises Problem 429 where it exceeds the rate."""
        if (wait_s := self._rate.take(key)) is not None:
            await self._refusal_delay.refuse(key, too_many_requests(wait_s))


class SessionLease:
    """One open talk's place. Leaving the context releases it, unless `keep` was called."""

    def __init__(self, limits: "SessionLimits", key: str) -> None:
        self._limits = limits
        self._held = True
        self._kept = False
        self.key = key

    def release(self) -> None:
        """Gives the place back. A second call does nothing."""
        if self._held:
            self._held = False
            self._limits._give_back(self.key)  # noqa: SLF001  # the two classes belong together

    def keep(self, name: str, *, for_s: float) -> None:
        """Holds the place beyond the context: until `SessionLimits.end(name)`, or for `for_s` seconds.

        Used for a relayed call. Its media does not pass the broker, which learns of its end only when it hangs up.
        """
        self._kept = True
        self._limits._keep(self, name, for_s)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._kept:
            self.release()


class SessionLimits:
    """The open talks of this process: at most `per_key` for each `limit_key`, and `total`. 0 is no limit."""

    def __init__(self, *, per_key: int, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_key = per_key or math.inf
        self._total = total or math.inf
        self._clock = clock
        self._active = 0
        self._open: dict[str, int] = {}
        self._kept: dict[str, tuple[float, SessionLease]] = {}  # by name: when it ends, and the lease
        self._next_end_s = math.inf  # saves most calls from looking through the kept places

    def acquire(self, key: str) -> SessionLease | None:
        """A place for one talk, or None where `key` or the process has no free one."""
        self._end_overdue()
        if self._active >= self._total or self._open.get(key, 0) >= self._per_key:
            return None
        self._active += 1
        self._open[key] = self._open.get(key, 0) + 1
        return SessionLease(self, key)

    def hold(self, key: str, name: str, *, for_s: float) -> None:
        """Keeps a place beyond the limits: for a talk that goes on already, and was another process's until now."""
        self._active += 1
        self._open[key] = self._open.get(key, 0) + 1
        SessionLease(self, key).keep(name, for_s=for_s)

    def end(self, name: str) -> bool:
        """Releases a kept place. False where there is none of that name."""
        if (kept := self._kept.pop(name, None)) is None:
            return False
        kept[1].release()
        return True

    def keeps(self, name: str) -> bool:
        """Whether a place of that name is kept."""
        self._end_overdue()
        return name in self._kept

    @property
    def active(self) -> int:
        """The number of open talks in this process."""
        self._end_overdue()
        return self._active

    def _give_back(self, key: str) -> None:
        self._active -= 1
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def _keep(self, lease: SessionLease, name: str, for_s: float) -> None:
        self.end(name)
        end_s = self._clock() + for_s
        self._kept[name] = (end_s, lease)
        self._next_end_s = min(self._next_end_s, end_s)

    def _end_overdue(self) -> None:
        now_s = self._clock()
        if now_s < self._next_end_s:
            return
        for name in [name for name, (end_s, _) in self._kept.items() if end_s <= now_s]:
            self.end(name)
        self._next_end_s = min((end_s for end_s, _ in self._kept.values()), default=math.inf)


def too_many_requests(retry_after_s: float) -> Problem:
    """429 for a rate: `Retry-After` in whole seconds, at least 1."""
    return Problem(
        429,
        "rate_limited",
        "Too many requests from you; wait for the time in Retry-After.",
        headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))},
    )


def too_many_sessions() -> Problem:
    """429 for open talks. `Retry-After` is a guess, because talks end at any time."""
    return Problem(
        429,
        "too_many_sessions",
        "Too many talks are open; end one, or try again later.",
        headers={"Retry-After": str(SESSIONS_RETRY_AFTER_S)},
    )


class MemoryQuotas:
    """The quotas of a process; keys are `limit_key`s. 0 a minute is no limit."""

    def __init__(self, *, turns_per_minute: int, turn_bytes_per_minute: int, reads_per_minute: int) -> None:
        self.turns = TurnQuota(turns_per_minute, turn_bytes_per_minute)
        self.reads = RateLimiter(reads_per_minute)
        self.reports = RateLimiter(turns_per_minute)
        self.pages = PageSlots()


class TurnQuota:
    """Turns and bytes a minute and key; a whole minute's quota may be used at once. 0 is no limit."""

    def __init__(
        self, turns_per_minute: int, bytes_per_minute: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._turns = RateLimit(turns_per_minute, clock=clock)
        self._bytes = RateLimit(bytes_per_minute, clock=clock)
        self._refusal_delay = RefusalDelay(clock=clock)

    async def take(self, key: str, read: Callable[[], Awaitable[T]], cost_of: Callable[[T], tuple[int, int]]) -> T:
        """Reads a request with `read`, and counts the turns and bytes that `cost_of` says: all of them, or none.

        Raises Problem 429 where they have to wait; before it reads, where not even the smallest turn would pass. Raises
        Problem 413 where they exceed a minute's quota. A request that `read` refuses with a Problem counts as one turn:
        reading it cost as much.
        """
        if (wait_s := self._wait_s(key, 1, 1)) is not None:
            await self._refusal_delay.refuse(key, _too_many_turns(wait_s))
        try:
            found = await read()
        except Problem:
            self._turns.count(key)
            raise
        turns, size_bytes = cost_of(found)
        # Again, with the cost: others with this key may have been counted while it was read.
        if (wait_s := self._wait_s(key, turns, size_bytes)) is not None:
            if not self._turns.fits(turns) or not self._bytes.fits(size_bytes):
                limits = ((self._turns.per_minute, "turns"), (self._bytes.per_minute, "bytes"))
                most = " and ".join(f"{limit} {unit}" for limit, unit in limits if limit)
                detail = f"One request may not exceed a minute's quota, {most}: send it in smaller parts."
                raise Problem(413, "over_quota", detail)
            await self._refusal_delay.refuse(key, _too_many_turns(wait_s))
        self._turns.count(key, turns)
        self._bytes.count(key, size_bytes)
        return found

    def _wait_s(self, key: str, turns: int, size_bytes: int) -> float | None:
        for_turns, for_bytes = self._turns.wait_s(key, turns), self._bytes.wait_s(key, size_bytes)
        if for_turns is None or for_bytes is None:
            return for_bytes if for_turns is None else for_turns
        return max(for_turns, for_bytes)


def _too_many_turns(wait_s: float) -> Problem:
    return Problem(
        429,
        "turn_quota",
        "Too many turns from you, or too many bytes of them; nothing was stored. Wait for the time in Retry-After.",
        headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
    )


class PageSlots:
    """Slots for pages that are read or being sent: so many at once in all, and fewer a key.

    A slot is held until the answer has been taken, so a client that reads slowly uses up its own.
    """

    def __init__(
        self, total: int = _PAGES_AT_ONCE, per_key: int = _PAGES_AT_ONCE_PER_KEY, *, wait_s: float = _PAGE_WAIT_S
    ) -> None:
        self._total = total
        self._per_key = per_key
        self._wait_s = wait_s
        self._taken: dict[str, int] = {}
        self._all_taken = 0
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []  # first come, first served

    @contextlib.asynccontextmanager
    async def slot(self, key: str) -> AsyncIterator[None]:
        """A slot, while the context lasts. Raises Problem 503 where none gets free in time."""
        if self._is_free(key):
            self._take(key)
        else:
            await self._wait(key)
        try:
            yield
        finally:
            self._release(key)

    async def _wait(self, key: str) -> None:
        """Returns with a slot taken: a slot that is released goes to the first in line who may have it."""
        if len(self._waiting) >= _PAGES_WAITING:
            raise _too_many_pages()
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (key, given)
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait_s):
                await asyncio.shield(given)
        except BaseException as error:
            if given.done():
                self._release(key)  # it was given at the moment of leaving
            else:
                self._waiting.remove(waiter)
            if isinstance(error, TimeoutError):
                raise _too_many_pages() from None
            raise

    def _take(self, key: str) -> None:
        self._all_taken += 1
        self._taken[key] = self._taken.get(key, 0) + 1

    def _release(self, key: str) -> None:
        self._all_taken -= 1
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]
        for waiter in list(self._waiting):
            if self._is_free(waiter[0]):
                self._waiting.remove(waiter)
                self._take(waiter[0])
                waiter[1].set_result(None)

    def _is_free(self, key: str) -> bool:
        return self._all_taken < self._total and self._taken.get(key, 0) < self._per_key


def _too_many_pages() -> Problem:
    detail = "Too many pages of turns are being read; read the last ones to their end, and ask again."
    return Problem(503, "store_busy", detail, headers={"Retry-After": "1"})


class _Owner(Protocol):
    """What the cache needs of an `Owner`."""

    @property
    def session_id(self) -> str: ...
    @property
    def principal(self) -> str: ...
    @property
    def user_id(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class _CacheEntry(Generic[V]):
    principal: str
    user_id: str | None
    value: V
    until_s: float


class RecallCache(Generic[V]):
    """What was recalled of a session, for two seconds: a caller that asks again and again costs one search.

    It is out of date once a turn of the session is stored here, or anything is erased here. It learns of what another
    replica stores or erases when the time is over. Call `ask`, then `keep` the value: it is dropped where the session
    became out of date in between.
    """

    def __init__(self, *, keep_s: float = _CACHED_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._entries = BoundedDict[str, _CacheEntry[V]](_CACHED_SESSIONS)
        self._asking: dict[str, object] = {}

    def get(self, owner: _Owner) -> V | None:
        """The value for this owner, unless it is out of date."""
        entry = self._entries.get(owner.session_id)
        if entry is None or entry.until_s <= self._clock():
            return None
        return entry.value if (entry.principal, entry.user_id) == (owner.principal, owner.user_id) else None

    def ask(self, owner: _Owner) -> object:
        """A ticket of this question, for `keep` and `done`."""
        ticket = self._asking[owner.session_id] = object()
        return ticket

    def keep(self, owner: _Owner, ticket: object, value: V) -> None:
        """Keeps `value`, unless somebody asked later or the session became out of date."""
        if self._asking.get(owner.session_id) is not ticket:
            return
        until_s = self._clock() + self._keep_s
        self._entries[owner.session_id] = _CacheEntry(owner.principal, owner.user_id, value, until_s)

    def done(self, owner: _Owner, ticket: object) -> None:
        """The question is over, with or without a value."""
        if self._asking.get(owner.session_id) is ticket:
            del self._asking[owner.session_id]

    def invalidate(self, session_ids: Iterable[str]) -> None:
        """Turns of these sessions were stored."""
        for session_id in session_ids:
            self._entries.pop(session_id, None)
            self._asking.pop(session_id, None)

    def clear(self) -> None:
        """Something was erased: it may be part of what was found for any session of its user."""
        self._entries.clear()
        self._asking.clear()
