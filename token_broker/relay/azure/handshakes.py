"""The handshakes of one talk: what to try, in which order, and what the client hears where all of them fail.

`strategies.hedging` runs them: it asks the next resource beside one that is silent.
"""

import asyncio
import time
from collections.abc import Collection, Coroutine, Sequence
from typing import Any, Protocol

import structlog

from strategies.errors import MintError, MisconfiguredError, RateLimitedError, TimedOutError, TransientError
from strategies.hedging import Call
from strategies.pool import Pool, PoolPermit
from strategies.resources import Resource, Wanted
from token_broker.relay.azure.route import Route, UpstreamConnection
from token_broker.server.close_codes import UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending

__all__ = ["Handshakes"]

log = structlog.get_logger("token_broker.relay")

Candidate = tuple[Resource, Route]


class Attempt(Protocol):
    """Opens one route of one resource within its limit. Raises MintError."""

    def __call__(
        self, resource: Resource, route: Route, *, timeout_s: float
    ) -> Coroutine[Any, Any, UpstreamConnection]: ...


class Handshakes:
    """A contest of `candidates`, in their order, until `deadline_s` (monotonic)."""

    def __init__(
        self, pool: Pool, wanted: Wanted, candidates: Sequence[Candidate], attempt: Attempt, *, deadline_s: float
    ) -> None:
        self.ending: Ending | None = None  # for the client, where nothing was connected
        self.winner: PoolPermit | None = None
        self._pool = pool
        self._wanted = wanted
        self._left = list(candidates)
        self._attempt = attempt
        self._deadline_s = deadline_s
        self._made = 0
        self._closing: set[asyncio.Task[None]] = set()

    def next_call(self, busy: Collection[str]) -> Call[UpstreamConnection] | None:
        """The next handshake at a resource that is not `busy` with one; None where there is none."""
        refused: list[Candidate] = []
        call = self._next_admitted(busy, refused)
        if call is None and not self._made and refused:
            # Nobody gave a permit. The last ways that are left rest shorter than others.
            self._pool.ease(self._wanted, list(dict.fromkeys(route.name for _, route in refused)))
            self._left, refused = refused, []
            call = self._next_admitted(busy, refused)
        if refused and self.ending is None:
            self.ending = Ending(UPSTREAM_FAILED, "Azure failed a moment ago: ask for a new plan in a moment")
        return call

    def ended(self, call: Call[UpstreamConnection], error: MintError | None) -> None:
        """Notes the outcome of a handshake."""
        about = {
            "resource": call.permit.resource.name,
            "upstream": call.permit.route,
            "ms": round((time.monotonic() - call.began_s) * 1000),
        }
        if error is None:
            self.winner = call.permit
            log.info("upstream_attempt", **about, outcome="connected")
            return
        if self.ending is None or self.ending.code != UPSTREAM_TIMED_OUT:  # the one that hung is the client's reason
            self.ending = _ending(error)
        if isinstance(error, TransientError) and not isinstance(error, RateLimitedError):
            # The resource may be down as a whole: its other ways come after those of the others.
            self._left.sort(key=lambda each: each[0].name == call.permit.resource.name)
        level = log.error if isinstance(error, MisconfiguredError) else log.warning
        level("upstream_attempt", **about, outcome=error.outcome, status=error.status, code=error.code, why=str(error))

    def undone(self, call: Call[UpstreamConnection], late: UpstreamConnection | None) -> None:
        """Closes what a handshake that nobody waited for has opened all the same."""
        del call
        if late is not None:
            closing = asyncio.create_task(late.socket.aclose(graceful=False), name="late-upstream")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _next_admitted(self, busy: Collection[str], refused: list[Candidate]) -> Call[UpstreamConnection] | None:
        """The first handshake that gets a permit; those that get none leave the contest, into `refused`."""
        wanted = self._wanted
        for candidate in [each for each in self._left if each[0].name not in busy]:
            resource, route = candidate
            self._left.remove(candidate)
            permit = self._pool.admit(
                resource,
                route.name,
                agent_id=wanted.agent_id,
                model=wanted.model,
                session_id=wanted.session_id,
                running=wanted.running,
            )
            if permit is not None:
                self._made += 1
                return self._call(candidate, permit)
            refused.append(candidate)
            why = self._pool.why_not(
                resource, route.name, agent_id=wanted.agent_id, model=wanted.model, running=wanted.running
            ).why
            log.info("upstream_attempt", resource=resource.name, upstream=route.name, outcome="skipped", why=why)
        return None

    def _call(self, candidate: Candidate, permit: PoolPermit) -> Call[UpstreamConnection]:
        resource, route = candidate
        left_s = max(0.001, self._deadline_s - time.monotonic())
        if any(self._pool.breaker(each.name, later.name).would_admit for each, later in self._left):
            left_s /= 2
        return Call(
            f"connect-{resource.name}-{route.name}",
            permit,
            lambda: self._attempt(resource, route, timeout_s=left_s),
            limit_s=left_s + _LAST_WORD_S,
        )


# A handshake ends by itself after its limit, and says what it waited for in vain.
_LAST_WORD_S = 0.05


def _ending(error: MintError) -> Ending:
    match error:
        case TimedOutError():
            return Ending(UPSTREAM_TIMED_OUT, "Azure did not answer in time: ask for a new plan")
        case RateLimitedError():
            return Ending(UPSTREAM_FAILED, "Azure takes no more talks just now: ask for a new plan in a moment")
        case MisconfiguredError():
            return Ending(UPSTREAM_FAILED, "Azure refused the broker; its operator has to act")
        case _:
            return Ending(UPSTREAM_FAILED, "Azure refused the talk: ask for a new plan")
