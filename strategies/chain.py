"""Tries the strategies of the pool's resources within one hard deadline, and records what each did.

Each resource that is left gets an equal share of the time that is left; of one resource, each strategy does. A mint
that exceeds its share is cancelled; one that ignores the cancellation is left running, and nobody waits for it. A
resource that is silent is hedged with the next one, and after a time-out or a failed connection its other strategies
come behind those of the other resources: so it costs its share once. Where nothing is minted, `voice_live_webrtc`
grants what the broker's own signalling can carry; where it stands before all mints, it comes first. With
`websocket_proxy` among the links the chain always ends in a grant. `Chain.mint` raises nothing but the cancellation of
its caller.

`retry` repeats one strategy's transient failures within its share. The only module that uses tenacity.
"""

import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import tenacity

from strategies.base import Attempt, EphemeralGrant, Grant, ProxyGrant, SessionSpec, SpecSupplier, own_limit_s
from strategies.endpoint import Target
from strategies.errors import CredentialError, MintError, RateLimitedError, TimedOutError, TransientError
from strategies.health import CircuitBreaker
from strategies.hedging import Call, Hedger
from strategies.pool import Pool, PoolPermit
from strategies.resource_health import Fault, fault_of
from strategies.resources import Resource, Wanted
from strategies.voice_live_webrtc import VoiceLiveWebRtc

__all__ = [
    "Chain",
    "ChainLink",
    "ChainResult",
    "Link",
    "OnAttempt",
    "OnLeftOut",
    "RetryPolicy",
    "Strategy",
    "Tries",
    "WebSocketProxy",
    "retry",
]

T = TypeVar("T")

OnAttempt = Callable[[Attempt], None]


class OnLeftOut(Protocol):
    """Is told of fields of an agent's session that Azure has refused, and without which it has minted."""

    def __call__(self, fields: tuple[str, ...], *, resource: str, agent_id: str) -> None: ...


# Reserved from the budget for making the plan itself.
_RESERVE_S = 0.02
_ANYBODY = Wanted(session_id="", agent_id="")


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
    """A strategy that mints at one resource."""

    resource: Resource
    strategy: Strategy


ChainLink = Link | VoiceLiveWebRtc | WebSocketProxy


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
    """The links of each resource in order, and how often to retry. `on_attempt` is called with every attempt made,
    `on_left_out` with what a mint had to leave out.
    """

    def __init__(
        self,
        pool: Pool,
        links: Sequence[ChainLink],
        *,
        policy: RetryPolicy,
        hedger: Hedger | None = None,
        on_attempt: OnAttempt = lambda _attempt: None,
    ) -> None:
        self.links = tuple(links)
        self.pool = pool
        self.policy = policy
        self.on_attempt = on_attempt
        self.on_left_out: OnLeftOut | None = None
        self.hedger = hedger or Hedger(pool)
        self.clock = self.hedger.clock
        # The proxy always grants: whatever stands behind it is never asked.
        self._proxy = next((link for link in self.links if isinstance(link, WebSocketProxy)), None)
        asked = self.links[: self.links.index(self._proxy) if self._proxy else None]
        minting = [link for link in asked if isinstance(link, Link)]
        self._signalling = next((link for link in asked if isinstance(link, VoiceLiveWebRtc)), None)
        # Where it stands before every mint, nothing is minted for a talk that may go by it.
        self._signals_first = bool(asked) and asked[0] is self._signalling
        self._of = {each.name: [link for link in minting if link.resource is each] for each in pool.resources}

    def of(self, resource: Resource) -> Sequence[Link]:
        """The links that mint at the resource."""
        return self._of[resource.name]

    def routes_of(self, resource: Resource) -> tuple[str, ...]:
        """The names of the strategies that mint at the resource."""
        return tuple(link.strategy.name for link in self._of[resource.name])

    async def mint(
        self,
        spec: SpecSupplier,
        *,
        deadline_s: float,
        wanted: Wanted = _ANYBODY,
        sockets_only: str = "",
        signals: bool = False,
        needs_token: bool = False,
    ) -> ChainResult:
        """A grant before `deadline_s` of the hedger's clock. `spec` is awaited before each real mint, within its share.

        With `sockets_only`, which says why, nothing is minted: what needs no token is granted, where it is among the
        links. `signals` permits the broker's signalling for WebRTC. `needs_token` is for a caller whom a grant without
        one does not help.
        """
        order = self.pool.order(wanted)
        links = [link for resource in order for link in self._of[resource.name]]

        def are_last() -> bool:
            """Whether no other way is left: without the proxy, or where its routes rest as well."""
            return needs_token or self._proxy is None or self.pool.all_rest(wanted)

        # In this order: where something works, as nearly always, the second is not asked.
        ways = ((link.resource, link.strategy.name) for link in links)
        early = len(self.pool.resources) > 1 and self.pool.all_fail(wanted, ways) and are_last()
        minting = _Minting(self, links, spec, wanted, deadline_s, early=early)
        grant: Grant | None = None
        if signals and self._signals_first:
            grant = await self._signal(minting, wanted, deadline_s)
        if grant is not None or sockets_only:
            minting.skip_all(sockets_only or "Voice Live's own WebRTC comes before it")
        else:
            grant = await self.hedger.race(minting)
            if grant is None and not minting.has_asked and are_last():
                self.pool.ease(wanted, tuple({link.strategy.name for link in links}))
                minting.again(links)
                grant = await self.hedger.race(minting)
        if grant is None and signals and not self._signals_first:
            grant = await self._signal(minting, wanted, deadline_s)
        if grant is None and self._proxy is not None:
            minting.attempts.append(Attempt(self._proxy.name, "granted", 0.0, "asks nobody"))
            grant = self._proxy.grant()
        return ChainResult(grant, tuple(minting.attempts))

    async def _signal(self, minting: "_Minting", wanted: Wanted, deadline_s: float) -> Grant | None:
        """The grant of the broker's own signalling, where it is among the links."""
        if self._signalling is None:
            return None
        left_s = deadline_s - _RESERVE_S - self.clock()
        grant, attempt = await self._signalling.grant(self.pool, wanted, timeout_s=left_s)
        minting.attempts.append(attempt)
        return grant


class _Minting:
    """The mints of one request, as a race's contest."""

    def __init__(
        self,
        chain: Chain,
        links: Sequence[Link],
        spec: SpecSupplier,
        wanted: Wanted,
        deadline_s: float,
        *,
        early: bool,
    ) -> None:
        self.attempts: list[Attempt] = []
        self.has_asked = False
        self._chain = chain
        self._left = list(links)
        self._spec = spec
        self._wanted = wanted
        self._early = early  # asks what rests for faults, too
        self._deadline_s = deadline_s - _RESERVE_S
        self._tries: dict[str, Tries] = {}  # by the name of the call: each link is asked once

    def next_call(self, busy: Collection[str]) -> Call[Grant] | None:
        if self.has_asked and len(self._chain.pool.resources) > 1:  # others have found out more meanwhile
            self._left.sort(key=lambda link: self._chain.pool.is_sick(link.resource.name))
        for link in self._left.copy():
            if link.resource.name in busy:
                continue
            self._left.remove(link)
            share_s = (self._deadline_s - self._chain.clock()) / (1 + self._behind(link))
            permit = self._admit(link) if share_s > 0 else None
            if permit is None:
                refusal = self._chain.pool.why_not(
                    link.resource, link.strategy.name, agent_id=self._wanted.agent_id, model=self._wanted.model
                )
                self._skip(link, refusal.why or "no time was left")
                continue
            self.has_asked = True
            return self._call(link, permit, share_s)
        return None

    def _behind(self, link: Link) -> int:
        """How many others the time is kept for: the resources that are left, else the strategies of this one.

        A share for each strategy of each resource would be too short for a slow answer, and most are never asked.
        """
        pool, wanted = self._chain.pool, self._wanted
        agent_id, model = wanted.agent_id, wanted.model
        others, own = set(), 0
        for later in self._left:
            if pool.would_admit(later.resource, later.strategy.name, agent_id=agent_id, model=model, early=self._early):
                if later.resource is link.resource:
                    own += 1
                else:
                    others.add(later.resource.name)
        return len(others) or own

    def ended(self, call: Call[Grant], error: MintError | None) -> None:
        if error is not None and fault_of(error) is Fault.RESOURCE:
            self._left.sort(key=lambda link: link.resource is call.permit.resource)
        self._tell(call, error, "minted" if error is None else error.outcome)

    def undone(self, call: Call[Grant], late: Grant | None) -> None:
        if late is None:  # a late secret is forgotten
            self._tell(call, None, "undone")

    def skip_all(self, why: str) -> None:
        """Asks none of those that are left."""
        for link in self._left:
            self._skip(link, why)

    def again(self, links: Sequence[Link]) -> None:
        """Begins anew with `links`, none of which was asked: there is no other way left."""
        self._left = list(links)
        self._early = len(self._chain.pool.resources) > 1
        self.attempts.clear()

    def _admit(self, link: Link) -> PoolPermit | None:
        """A permit to ask. While one link of a resource is probed, no other half-open one is: one caller finds out.

        Otherwise, after an outage of all routes, several callers at once would each wait for a probe of their own.
        Where every resource seems to fail, each request asks.
        """
        wanted = self._wanted

        def breakers(of: Link) -> tuple[CircuitBreaker, ...]:
            return self._chain.pool.breakers(
                of.resource, of.strategy.name, agent_id=wanted.agent_id, model=wanted.model
            )

        for each in () if self._early else breakers(link):
            if not each.is_closed and any(
                other.probing for beside in self._chain.of(link.resource) for other in breakers(beside)
            ):
                return None
        return self._chain.pool.admit(
            link.resource,
            link.strategy.name,
            agent_id=wanted.agent_id,
            model=wanted.model,
            session_id=wanted.session_id,
            running=wanted.running,
            early=self._early,
        )

    def _call(self, link: Link, permit: PoolPermit, share_s: float) -> Call[Grant]:
        """One strategy, retries included, for at most `share_s`."""
        tries = Tries()

        async def mint(call: Call[Grant]) -> Grant:
            call.asked_s = math.inf
            spec = await self._spec(link.resource)
            call.asked_s = self._chain.clock()
            grant = await retry(
                lambda timeout_s: link.strategy.mint(spec, timeout_s=timeout_s),
                policy=self._chain.policy,
                deadline_s=call.began_s + own_limit_s(share_s),
                tries=tries,
                clock=self._chain.clock,
                may_repeat=partial(self._chain.pool.may_repeat, permit),
            )
            if isinstance(grant, EphemeralGrant) and grant.left_out:
                self._chain.pool.repeated(permit)  # it was asked twice
                if self._chain.on_left_out is not None:
                    about = {"resource": link.resource.name, "agent_id": self._wanted.agent_id}
                    self._chain.on_left_out(grant.left_out, **about)
            return grant

        call = Call(f"mint-{link.resource.name}-{link.strategy.name}", permit, mint, share_s)
        self._tries[call.name] = tries
        return call

    def _skip(self, link: Link, why: str) -> None:
        self.attempts.append(Attempt(link.strategy.name, "skipped", 0.0, why, resource=link.resource.name))

    def _tell(self, call: Call[Grant], error: MintError | None, outcome: str) -> None:
        attempt = Attempt(
            strategy=call.permit.route,
            outcome=outcome,
            duration_ms=(self._chain.clock() - call.began_s) * 1000,
            why="another resource was faster" if outcome == "undone" else str(error or ""),
            status=200 if outcome == "minted" else error.status if error else None,
            code=error.code if error else None,
            request_id=error.request_id if error else None,
            tries=self._tries[call.name].count,
            resource=call.permit.resource.name,
        )
        self.attempts.append(attempt)
        self._chain.on_attempt(attempt)


async def retry(
    call: Callable[[float], Awaitable[T]],
    *,
    policy: RetryPolicy,
    deadline_s: float,
    tries: Tries,
    clock: Callable[[], float] = time.monotonic,
    may_repeat: Callable[[], bool] = lambda: True,
) -> T:
    """Awaits `call(timeout_s)` until it succeeds, fails for good, or `deadline_s` of the clock leaves no time for more.

    Only transient failures are repeated, except timeouts and missing credentials: a timeout has used the time up, and
    the credential was asked for a moment ago. A `Retry-After` beyond the deadline ends it at once, and so does
    `may_repeat`, which is asked before each repetition. Raises the error of the last attempt.
    """

    async def attempt() -> T:
        tries.count += 1
        timeout_s = min(policy.attempt_timeout_s, deadline_s - clock())
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
            state.attempt_number >= policy.attempts or clock() + state.upcoming_sleep >= deadline_s or not may_repeat()
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
