"""The quotas of a principal on the memory: turns and bytes a minute, reads a minute, pages at once.

Each has a limiter of its own: reading receipts, or sending turns, must not cost anybody a plan.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from token_broker.security.rate_limits import RateLimit, RateLimiter, RefusalDelay
from token_broker.settings import Settings
from token_broker.web.requests import Problem

__all__ = ["MemoryQuotas", "PageSlots", "TurnQuota"]

T = TypeVar("T")

_PAGES_AT_ONCE = 32  # of 1 MiB: what a process may spend on answers that clients read slowly
_PAGES_AT_ONCE_PER_KEY = 4
_PAGES_WAITING = 64
_PAGE_WAIT_S = 5.0


class MemoryQuotas:
    """The quotas of a process; keys are `limit_key`s."""

    def __init__(self, settings: Settings) -> None:
        self.turns = TurnQuota(settings.turns_per_minute, settings.turn_bytes_per_minute)
        self.reads = RateLimiter(settings.rate_limit_per_minute)
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
