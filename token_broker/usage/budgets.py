"""Budgets of a principal: minutes and tokens a UTC day, reserved before they are used.

A talk reserves time in pieces of at most a minute, renewed while it goes on, and the largest answer so far. What it
did not use returns when it ends; what a killed process held returns by itself. A principal is stored as a keyed hash.
"""

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreError
from token_broker.security.limits import BoundedDict
from token_broker.usage.days import DAY_US, StoreClock
from token_broker.usage.talk_usage import LEAST_ANSWER_TOKENS, TalkUsage
from token_broker.web.requests import Problem

if TYPE_CHECKING:
    from token_broker.usage.budget_rows import Reserved

__all__ = ["PLAYOUT_S", "BudgetCounts", "Budgets", "EndTalk", "HoldState", "Leash", "LeashStep"]

log = structlog.get_logger("token_broker.usage")

PIECE_S = 60.0
WARN_S = 30.0  # before the end of what is reserved
PLAYOUT_S = 15.0  # of what is being said then; within what is reserved
SILENT_STORE_S = 60.0  # a talk goes on for so long behind what it holds
_RENEW_S = 15.0
_LAST_LOOKS_S = 5.0  # another talk may give back what this one needs
_SETTLE_S = 5.0  # between attempts
_MOST_SETTLING = 20_000
_RETRY_AFTER_S = 2

Pause = Callable[[asyncio.Event, float], Awaitable[None]]
"""Waits for an event, so many seconds at most."""


EndTalk = Callable[[float, bool], None]
"""Gets how many seconds are left at the most, and whether the talk ends as soon as nothing is played; if not, what is
played then ends it, and a talk in which nothing is played may use all of them.
"""


class Leash(Protocol):
    """Holds a talk to its principal's budget, as a task of the talk: cancel it when the talk is over."""

    async def hold(self, usage: TalkUsage, key: str, *, warn: Callable[[], None], end: EndTalk) -> None:
        """Returns when the budget is used up.

        `key` is the caller's `limit_key`. `warn` is called 30 s before the reservation ends, `end` 15 s before: the
        talk ends after what is being played then.
        """
        ...


@dataclass(slots=True)
class BudgetCounts:
    """Callers who were refused since nothing was left, or since that was unknown; talks that a budget has ended."""

    refused: int = 0
    unknown: int = 0
    ended: int = 0


@dataclass(frozen=True, slots=True)
class LeashStep:
    """What a talk does now, and in how many seconds it asks again at the latest.

    `left_s`, `when_quiet`: as `EndTalk` gets them.
    """

    warns: bool
    ends: bool
    wait_s: float
    left_s: float = 0.0
    when_quiet: bool = False


@dataclass(slots=True)
class HoldState:
    """How long one talk may go on. Times are of a monotonic clock; `until_s` is the end of what it holds."""

    until_s: float
    warned: bool = False

    def step(self, reserved: "Reserved | None", asked_s: float, now_s: float, *, answer_tokens: int) -> LeashStep:
        """What follows from a reservation that was asked for at `asked_s`; None: the store was silent.

        While it is silent the talk goes on for a minute behind what it holds.
        """
        is_scarce = False
        if reserved is None:
            end_s, is_last = self.until_s + SILENT_STORE_S, True
        else:
            self.until_s = asked_s + reserved.held_ms / 1000
            end_s = self.until_s if reserved.tokens_fit else min(self.until_s, asked_s + PLAYOUT_S)
            is_scarce = reserved.tokens_left is not None and reserved.tokens_left < answer_tokens
            is_last = is_scarce or reserved.held_ms < PIECE_S * 1000
        warns = is_last and not self.warned and (is_scarce or now_s >= end_s - WARN_S)
        self.warned = is_last and (self.warned or warns)
        if not is_last:
            return LeashStep(warns=False, ends=False, wait_s=_RENEW_S)
        until_next_s = min((at_s - now_s for at_s in (end_s - WARN_S, end_s - PLAYOUT_S) if at_s > now_s), default=0.0)
        ends = now_s >= end_s - PLAYOUT_S
        wait_s = min(_LAST_LOOKS_S, max(0.05, until_next_s))
        is_out_of_tokens = reserved is not None and not reserved.tokens_fit
        return LeashStep(warns, ends, wait_s, max(0.0, end_s - now_s), is_out_of_tokens)


async def _pause(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


class Budgets:
    """The budgets, in the store. `minutes`, `tokens`: a principal's, a UTC day; 0 is without limit.

    `start` settles in the background what talks leave, until `aclose`.
    """

    def __init__(
        self,
        database: Database,
        *,
        minutes: int,
        tokens: int,
        secret: bytes,
        clock: StoreClock,
        patience_s: float = 5.0,
        pause: Pause = _pause,
    ) -> None:
        self.counts = BudgetCounts()
        self._database = database
        self._limit_ms = minutes * 60_000 or None
        self._limit_tokens = tokens or None
        self._secret = secret
        self._clock = clock
        self._patience_s = patience_s
        self._pause = pause
        # What is to be settled: by principal, day and holder.
        self._settling = BoundedDict[tuple[str, int, str], TalkUsage](_MOST_SETTLING)
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def unsettled(self) -> int:
        """Talks that are over, and whose use is not settled yet."""
        return len(self._settling)

    async def ensure_left(self, key: str) -> None:
        """Raises Problem 429 where nothing is left for the caller with that `limit_key`, 503 where that is unknown."""
        from token_broker.usage.budget_rows import find_taken

        try:
            async with asyncio.timeout(self._patience_s):
                work = partial(find_taken, budget_key=self._hashed(key), day=self._clock.day())
                taken = await self._database.read(work)
        except (StoreError, TimeoutError):
            self.counts.unknown += 1
            detail = "How much of the budget is left can't be told just now: try again."
            raise Problem(503, "store_away", detail, headers={"Retry-After": str(_RETRY_AFTER_S)}) from None
        self._clock.note(taken.now_us)
        has_time = self._limit_ms is None or taken.ms < self._limit_ms
        if not has_time or (self._limit_tokens and taken.tokens + self._answer() > self._limit_tokens):
            self.counts.refused += 1
            wait_s = -(-(DAY_US - taken.now_us % DAY_US) // 1_000_000)
            detail = "The budget of today is used up; there is a new one from 00:00 UTC."
            raise Problem(429, "budget_used", detail, headers={"Retry-After": str(wait_s)})

    async def hold(self, usage: TalkUsage, key: str, *, warn: Callable[[], None], end: EndTalk) -> None:
        """Returns when the budget is used up; `end` was called then."""
        budget_key, monotonic_s = self._hashed(key), self._clock.monotonic_s
        answered = asyncio.Event()
        if self._limit_tokens:
            usage.on_answer = answered.set
        state, day = HoldState(monotonic_s()), self._clock.day()
        while True:
            if day != self._clock.day():
                self._settle(budget_key, day, usage)
                day = self._clock.day()
            usage.on_closed = partial(self._settle, budget_key, day, usage)
            answered.clear()
            asked_s, reserved = monotonic_s(), None
            with contextlib.suppress(StoreError, TimeoutError):
                reserved = await self._reserve(usage, budget_key, day)
            step = state.step(reserved, asked_s, monotonic_s(), answer_tokens=self._answer(usage))
            if step.warns:
                warn()
            if step.ends:
                self.counts.ended += 1
                end(step.left_s, step.when_quiet)
                return
            await self._pause(answered, step.wait_s)

    def start(self) -> None:
        """Settles in the background."""
        self._running = asyncio.create_task(self._keep_settling(), name="budgets")

    async def settle(self) -> None:
        """Notes what talks that are over have used, and that they hold nothing any more. Raises StoreError."""
        from token_broker.usage.budget_rows import settle

        for (budget_key, day, holder), usage in list(self._settling.items()):
            spent = usage.spent(day)
            await self._database.write(
                partial(settle, budget_key=budget_key, day=day, holder=holder, spent_ms=spent[0], spent_tokens=spent[1])
            )
            self._settling.pop((budget_key, day, holder), None)

    async def aclose(self) -> None:
        """Settles what is left, for a few seconds; what can't be settled expires."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        try:
            async with asyncio.timeout(self._patience_s):
                await self.settle()
        except (StoreError, TimeoutError):
            log.error("budgets_unsettled", talks=len(self._settling))

    async def _keep_settling(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.settle()
            except StoreError as error:
                log.warning("budgets_unsettled", talks=len(self._settling), reason=str(error))
                self._wake.set()
                await asyncio.sleep(_SETTLE_S)

    async def _reserve(self, usage: TalkUsage, budget_key: str, day: int) -> "Reserved":
        from token_broker.usage.budget_rows import reserve

        usage.look()
        spent_ms, spent_tokens = usage.spent(day)
        work = partial(
            reserve,
            budget_key=budget_key,
            day=day,
            holder=usage.part,
            spent_ms=spent_ms,
            spent_tokens=spent_tokens,
            wanted_ms=round(PIECE_S * 1000),
            wanted_tokens=self._answer(usage),
            limit_ms=self._limit_ms,
            limit_tokens=self._limit_tokens,
        )
        async with asyncio.timeout(self._patience_s):
            reserved = await self._database.write(work)
        self._clock.note(reserved.now_us)
        return reserved

    def _settle(self, budget_key: str, day: int, usage: TalkUsage) -> None:
        self._settling[budget_key, day, usage.part] = usage
        self._wake.set()

    def _answer(self, usage: TalkUsage | None = None) -> int:
        """The tokens that the next answer is taken to need: no more than there are in a day."""
        if self._limit_tokens is None:
            return 0
        return min(self._limit_tokens, LEAST_ANSWER_TOKENS if usage is None else usage.largest_answer)

    def _hashed(self, key: str) -> str:
        return hmac.digest(self._secret, key.encode(), "sha256").hex()
