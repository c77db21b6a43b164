"""Tries the strategies in order inside one hard deadline, and records what each did.

Every strategy left gets its share of what remains; one that overruns its share is cancelled and, should it resist even
that, left behind. With `websocket_proxy` among the links the chain always ends in a grant; it never raises.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from strategies.base import Attempt, Grant, SessionSpec, Strategy
from strategies.errors import MintError, TimedOutError
from strategies.health import BreakerState, CircuitBreaker, Permit
from strategies.retry import RetryPolicy, Tries, retry
from strategies.websocket_proxy import WebSocketProxy

__all__ = ["Chain", "ChainResult", "Link", "OnAttempt", "SpecSupplier"]

log = structlog.get_logger("token_broker.chain")

OnAttempt = Callable[[Attempt], None]
SpecSupplier = Callable[[], Awaitable[SessionSpec]]

# What is kept of the budget for making the plan; what of its share an attempt gets to say itself what it waited for;
# and what a cancelled one gets to clean up.
_RESERVE_S = 0.02
_LAST_WORD_S = 0.005
_CLEAN_UP_S = 0.05


@dataclass(frozen=True, slots=True)
class Link:
    """A strategy that mints, and its breaker."""

    strategy: Strategy
    breaker: CircuitBreaker


@dataclass(frozen=True, slots=True)
class ChainResult:
    """`grant` is None only where the proxy is not among the links. `attempts` are in the order they were made."""

    grant: Grant | None
    attempts: tuple[Attempt, ...]


class Chain:
    """The links in order, and how patient to be with each. `on_attempt` hears of every attempt that was made."""

    def __init__(
        self,
        links: Sequence[Link | WebSocketProxy],
        *,
        policy: RetryPolicy,
        on_attempt: OnAttempt = lambda _attempt: None,
    ) -> None:
        self.links = tuple(links)
        self._policy = policy
        self._on_attempt = on_attempt
        self._left_behind: set[asyncio.Task[Grant]] = set()

    async def mint(self, spec: SpecSupplier, *, deadline_s: float, sockets_only: bool = False) -> ChainResult:
        """A grant before `deadline_s` (monotonic). `spec` is awaited before each real mint, inside its share.

        With `sockets_only` nothing is minted: the proxy is granted, where it is among the links.
        """
        attempts: list[Attempt] = []
        for position, link in enumerate(self.links):
            if isinstance(link, WebSocketProxy):
                attempts.append(Attempt(link.name, "granted", 0.0, "asks nobody"))
                return ChainResult(link.grant(), tuple(attempts))
            if sockets_only:
                attempts.append(Attempt(link.strategy.name, "skipped", 0.0, "this agent talks over WebSockets only"))
                continue
            share_s = self._share_s(position, deadline_s)
            permit = self._admit(link.breaker) if share_s > 0 else None
            if permit is None:
                why = link.breaker.why_open or "no time was left"
                attempts.append(Attempt(link.strategy.name, "skipped", 0.0, why))
                continue
            grant, attempt = await self._try(link.strategy, link.breaker, permit, spec, share_s)
            attempts.append(attempt)
            self._on_attempt(attempt)
            if grant is not None:
                return ChainResult(grant, tuple(attempts))
        return ChainResult(None, tuple(attempts))

    def _admit(self, breaker: CircuitBreaker) -> Permit | None:
        """Leave to ask. While one link is being probed no other is: one caller finds out, the rest take the proxy."""
        if breaker.state is BreakerState.HALF_OPEN and any(
            isinstance(link, Link) and link.breaker.probing for link in self.links
        ):
            return None
        return breaker.admit()

    def _share_s(self, position: int, deadline_s: float) -> float:
        """What remains, divided by this strategy and those behind it that would be asked next."""
        behind = sum(isinstance(link, Link) and link.breaker.would_admit for link in self.links[position + 1 :])
        return (deadline_s - _RESERVE_S - time.monotonic()) / (1 + behind)

    async def _try(
        self, strategy: Strategy, breaker: CircuitBreaker, permit: Permit, spec: SpecSupplier, share_s: float
    ) -> tuple[Grant | None, Attempt]:
        """One strategy, retries included, for at most `share_s`. Raises nothing but the caller's own cancellation."""
        began_s = time.monotonic()
        tries = Tries()

        async def mint() -> Grant:
            wanted = await spec()
            return await retry(
                lambda timeout_s: strategy.mint(wanted, timeout_s=timeout_s),
                policy=self._policy,
                deadline_s=began_s + share_s - _LAST_WORD_S,
                tries=tries,
            )

        task = asyncio.create_task(mint(), name=f"mint-{strategy.name}")
        try:
            await asyncio.wait({task}, timeout=share_s)
            await self._give_up(task)
        except asyncio.CancelledError:
            breaker.abandoned(permit)
            self._leave_behind(task)
            raise
        duration_ms = (time.monotonic() - began_s) * 1000
        outcome = _outcome(task, share_s)
        if not isinstance(outcome, MintError):
            breaker.succeeded(permit, duration_ms)
            return outcome, Attempt(strategy.name, "minted", duration_ms, status=200, tries=tries.count)
        breaker.failed(permit, outcome, duration_ms)
        return None, Attempt(
            strategy=strategy.name,
            outcome=outcome.outcome,
            duration_ms=duration_ms,
            why=str(outcome),
            status=outcome.status,
            code=outcome.code,
            request_id=outcome.request_id,
            tries=tries.count,
        )

    async def _give_up(self, task: asyncio.Task[Grant]) -> None:
        """Cancels what overran; what resists is left behind, held only so that it is not lost unseen."""
        if task.done():
            return
        task.cancel()
        await asyncio.wait({task}, timeout=_CLEAN_UP_S)
        if not task.done():
            self._leave_behind(task)

    def _leave_behind(self, task: asyncio.Task[Grant]) -> None:
        def forget(task: asyncio.Task[Grant]) -> None:
            self._left_behind.discard(task)
            if not task.cancelled():
                task.exception()  # looked at, so that asyncio does not complain of it

        task.cancel()
        self._left_behind.add(task)
        task.add_done_callback(forget)


def _outcome(task: asyncio.Task[Grant], share_s: float) -> Grant | MintError:
    if not task.done() or task.cancelled():
        return TimedOutError(f"no answer within its share of {share_s:.1f} s")
    match task.exception():
        case None:
            return task.result()
        case MintError() as error:
            return error
        case unexpected:
            log.error("strategy_failed_unexpectedly", strategy=task.get_name(), error=type(unexpected).__name__)
            return MintError(f"an unexpected {type(unexpected).__name__}")
