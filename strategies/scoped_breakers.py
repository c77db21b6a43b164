"""Breakers that exist only while something is wrong with one agent, or with one model, at a resource.

A 5xx that one agent alone has had may be due to what it asks for, and a limit of tokens is a model's. Neither is a
reason to keep others away. The breakers of (resource, agent) over all routes are for the outlook alone: no request is
refused for them.
"""

from collections.abc import Callable
from typing import TypeVar

from strategies.errors import MintError
from strategies.health import BreakerPolicy, BreakerState, CircuitBreaker, Permit

__all__ = ["ScopedBreakers"]

Key = TypeVar("Key", tuple[str, str], tuple[str, str, str])

_KEPT = 1024


class ScopedBreakers:
    """Those of one pool. `all` has them by (resource, route, agent) and by (resource, "", model)."""

    def __init__(self, policy: BreakerPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self.all: dict[tuple[str, str, str], CircuitBreaker] = {}
        self.pairs: dict[tuple[str, str], CircuitBreaker] = {}  # by (resource, agent)

    def of(self, resource: str, route: str, *, agent_id: str, model: str) -> tuple[CircuitBreaker, ...]:
        """Those that decide on a call."""
        keys = ((resource, route, agent_id), (resource, "", model))
        return tuple(breaker for key in keys if (breaker := self.all.get(key)) is not None)

    def agents_failed(self, resource: str, route: str, agent_id: str, error: MintError) -> None:
        """A call failed for which the agent alone is to be blamed."""
        self._fail(self.all, (resource, route, agent_id), error)
        self._fail(self.pairs, (resource, agent_id), error)

    def models_failed(self, resource: str, model: str, error: MintError) -> None:
        """A call met a limit of the model's, or the model is not there."""
        self._fail(self.all, (resource, "", model), error)

    def proved(self, granted: tuple[tuple[CircuitBreaker, Permit], ...]) -> None:
        """A call that these had admitted worked: those that are closed now are no longer needed."""
        for breaker, permit in granted:
            breaker.proved(permit)
            if breaker.state is BreakerState.CLOSED:
                self.all = {key: each for key, each in self.all.items() if each is not breaker}

    def resting(self, resource: str, route: str) -> CircuitBreaker | None:
        """The agent's breaker at this route that rests for longest."""
        found = [
            breaker
            for (its_resource, its_route, _), breaker in self.all.items()
            if (its_resource, its_route) == (resource, route) and breaker.state is not BreakerState.CLOSED
        ]
        return max(found, key=lambda each: each.retry_in_s, default=None)

    def _fail(self, breakers: dict[Key, CircuitBreaker], key: Key, error: MintError) -> None:
        if (breaker := breakers.get(key)) is None:
            if len(breakers) >= _KEPT:
                del breakers[next(iter(breakers))]
            breaker = breakers[key] = CircuitBreaker(key[-1], self._policy, clock=self._clock)
        breaker.failed(breaker.admit() or breaker.permit_for_news(), error, None)
