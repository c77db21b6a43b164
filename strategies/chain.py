"""Tries the strategies in order within one hard deadline, and records what each did.

Each strategy that is left gets an equal share of the time that is left. One that exceeds its share is cancelled. One
that ignores the cancellation is left running, and nobody waits for it. With `websocket_proxy` among the links the chain
always ends in a grant. `Chain.mint` raises nothing but the cancellation of its caller.

`retry` repeats one strategy's transient failures within its share. The only module that uses tenacity.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog
import tenacity

from strategies.base import Attempt, Grant, ProxyGrant, SessionSpec
from strategies.endpoint import Target
from strategies.errors import CredentialError, MintError, RateLimitedError, TimedOutError, TransientError
from strategies.health import BreakerState, CircuitBreaker, Permit

__all__ = [
    "Chain",
    "ChainResult",
    "Link",
    "OnAttempt",
    "RetryPolicy",
    "SpecSupplier",
    "Strategy",
    "Tries",
    "WebSocketProxy",
    "retry",
]

log = structlog.get_logger("token_broker.chain")

T = TypeVar("T")

OnAttempt = Callable[[Attempt], None]
SpecSupplier = Callable[[], Awaitable[SessionSpec]]

# Reserved from the budget for making the plan itself.
_RESERVE_S = 0.02
# An attempt ends this much before its share does: then it can still say what it waited for in vain.
_LAST_WORD_S = 0.005
# How long a cancelled attempt may take to clean up.
_CLEAN_UP_S = 0.05


class Strategy(Protocol):
    """One way to get a grant: turns a `SessionSpec` into a `Grant` or raises one of `strategies.errors`.

    Retries, breakers and the deadline are the chain's.
    """

    @property
    def name(self) -> str: ...

    @staticmethod
    def applies(target: Target) -> bool:
        """Whether such an endpoint has this way at all. Asked once, when the chain is built."""
        ...

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> Grant:
        """One attempt of at most `timeout_s`. Raises `MintError`, and nothing else but cancellation."""
        ...


class WebSocketProxy:
    """Grants the proxy at once and always. It mints nothing, so it needs no spec, no time and no breaker."""

    name = "websocket_proxy"

    @staticmethod
    def applies(target: Target) -> bool:
        """True for every endpoint: the talk needs only somewhere to go."""
        return bool(target.base)

    def grant(self) -> ProxyGrant:
        """The proxy's grant."""
        return ProxyGrant(self.name)


@dataclass(frozen=True, slots=True)
class Link:
    """A strategy that mints, and its breaker."""

    strategy: Strategy
    breaker: CircuitBreaker
    resource: str = ""


@dataclass(frozen=True, slots=True)
class ChainResult:
    """The grant, and the attempts in the order they were made. `grant` is None only where the proxy is no link."""

    grant: Grant | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all, each of at most `attempt_timeout_s`.

    Between them is Azure's `Retry-After`, or a wait with full jitter whose bound doubles from `backoff_s` to
    `backoff_max_s`. Tests set `backoff_s=0`, so that they do not wait.
    """

    attempts: int = 2
    attempt_timeout_s: float = 2.5
    backoff_s: float = 0.1
    backoff_max_s: float = 1.0


@dataclass(slots=True)
class Tries:
    """Counts the attempts. The caller holds it, because a cancelled `retry` returns nothing."""

    count: int = 0


class Chain:
    """The links in order and how often to retry. `on_attempt` is called with every attempt that was made."""

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
        # asyncio keeps only weak references to tasks: a task that nobody holds can vanish before it ends.
        self._left_behind: set[asyncio.Task[Grant]] = set()

    async def mint(self, spec: SpecSupplier, *, deadline_s: float, sockets_only: bool = False) -> ChainResult:
        """A grant before `deadline_s` (monotonic). `spec` is awaited before each real mint, within its share.

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
            behind = sum(isinstance(later, Link) and later.breaker.would_admit for later in self.links[position + 1 :])
            share_s = (deadline_s - _RESERVE_S - time.monotonic()) / (1 + behind)
            permit = self._admit(link.breaker) if share_s > 0 else None
            if permit is None:
                why = link.breaker.why_open or "no time was left"
                attempts.append(Attempt(link.strategy.name, "skipped", 0.0, why))
                continue
            grant, attempt = await self._try(link, permit, spec, share_s)
            attempts.append(attempt)
            self._on_attempt(attempt)
            if grant is not None:
                return ChainResult(grant, tuple(attempts))
        return ChainResult(None, tuple(attempts))

    def _admit(self, breaker: CircuitBreaker) -> Permit | None:
        """A permit to ask. While one link is probed, no other half-open link is: one caller finds out for all.

        Otherwise, after an outage of all routes, several callers at once would each wait for a probe of their own.
        """
        if breaker.state is BreakerState.HALF_OPEN and any(
            isinstance(link, Link) and link.breaker.probing for link in self.links
        ):
            return None
        return breaker.admit()

    async def _try(
        self, link: Link, permit: Permit, spec: SpecSupplier, share_s: float
    ) -> tuple[Grant | None, Attempt]:
        """One strategy, retries included, for at most `share_s`."""
        strategy = link.strategy
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

        # A task of its own, and no `asyncio.timeout`: that would wait for a strategy which ignores its cancellation.
        task = asyncio.create_task(mint(), name=f"mint-{strategy.name}")
        try:
            with link.breaker.settle(permit):
                grant = await self._result(task, share_s)
        except MintError as error:
            return None, Attempt(
                strategy=strategy.name,
                outcome=error.outcome,
                duration_ms=(time.monotonic() - began_s) * 1000,
                why=str(error),
                status=error.status,
                code=error.code,
                request_id=error.request_id,
                tries=tries.count,
            )
        duration_ms = (time.monotonic() - began_s) * 1000
        return grant, Attempt(strategy.name, "minted", duration_ms, status=200, tries=tries.count)

    async def _result(self, task: asyncio.Task[Grant], share_s: float) -> Grant:
        """What `task` comes to within `share_s`; it is cancelled after that. Raises `MintError`, whatever it raised."""
        try:
            await asyncio.wait({task}, timeout=share_s)
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=_CLEAN_UP_S)
        except asyncio.CancelledError:
            self._leave_behind(task)
            raise
        if not task.done():
            self._leave_behind(task)
        if not task.done() or task.cancelled():
            raise TimedOutError(f"no answer within its share of {share_s:.1f} s")
        match task.exception():
            case None:
                return task.result()
            case MintError() as error:
                raise error
            case unexpected:
                log.error("strategy_failed_unexpectedly", strategy=task.get_name(), error=type(unexpected).__name__)
                raise MintError(f"an unexpected {type(unexpected).__name__}")

    def _leave_behind(self, task: asyncio.Task[Grant]) -> None:
        def forget(task: asyncio.Task[Grant]) -> None:
            self._left_behind.discard(task)
            if not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not log it as never retrieved

        task.cancel()
        self._left_behind.add(task)
        task.add_done_callback(forget)


async def retry(call: Callable[[float], Awaitable[T]], *, policy: RetryPolicy, deadline_s: float, tries: Tries) -> T:
    """Awaits `call(timeout_s)` until it succeeds, fails for good, or `deadline_s` (monotonic) leaves no time for more.

    Only transient failures are repeated, except timeouts and missing credentials: a timeout has used the time up, and
    the credential was asked for a moment ago. A `Retry-After` beyond the deadline ends it at once. Raises the error of
    the last attempt.
    """

    async def attempt() -> T:
        tries.count += 1
        timeout_s = min(policy.attempt_timeout_s, deadline_s - time.monotonic())
        if timeout_s <= 0:
            raise TimedOutError("no time was left for it")
        return await call(timeout_s)

    # The first attempt runs without tenacity: nearly every call needs no second one, and setting tenacity up costs as
    # much CPU as the mint.
    try:
        return await attempt()
    except TransientError as error:
        if policy.attempts == 1 or not _is_worth_repeating(error):
            raise
        first: TransientError | None = error

    async def again() -> T:
        nonlocal first
        if (error := first) is not None:
            first = None
            raise error
        return await attempt()

    return await tenacity.AsyncRetrying(
        stop=lambda state: (
            state.attempt_number >= policy.attempts or time.monotonic() + state.upcoming_sleep >= deadline_s
        ),
        wait=lambda state: _wait_s(state, policy),
        retry=tenacity.retry_if_exception(_is_worth_repeating),
        reraise=True,
    )(again)


def _is_worth_repeating(error: BaseException) -> bool:
    return isinstance(error, TransientError) and not isinstance(error, TimedOutError | CredentialError)


def _wait_s(state: tenacity.RetryCallState, policy: RetryPolicy) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
        return error.retry_after_s
    longest_s = min(policy.backoff_max_s, policy.backoff_s * 2 ** (state.attempt_number - 1))
    return random.uniform(0, longest_s)  # noqa: S311  # jitter, not a secret
