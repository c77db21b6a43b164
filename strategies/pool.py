"""The pool of Azure resources: which of them a request asks, in which order, and what their answers say of them.

Mints, SDP offers, the proxy and the compatible endpoints all go through one pool, so that what one of them learns
counts for the others. A call is admitted, made within `settle`, and thereby counted. Single-threaded.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from strategies.health import BreakerPolicy, BreakerStatus, CircuitBreaker, Permit
from strategies.resources import Resource, Wanted, by_preference, is_allowed

__all__ = ["Outlook", "Pool", "PoolPermit", "Refusal", "ResourceStatus"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether a talk that starts now can be expected to come about.

    `retry_after_s` is the shortest time after which one of the permitted resources is asked again, or has quota again.
    """

    state: Literal["good", "poor"]
    retry_after_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why `admit` gave no permit, in one sentence, and after how many seconds it may give one; 0 is unknown."""

    why: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class PoolPermit:
    """Permission for one call to `route` of `resource`. `Pool.settle` hands it back."""

    resource: Resource
    route: str
    agent_id: str
    model: str
    began_s: float
    route_permit: Permit


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """A resource as `/status` and `token-broker resources` show it.

    `health` is `good`, `failing`, `slow` or `recovering`. `load` has the share of each known quota that is used.
    """

    name: str
    zone: str
    priority: int
    weight: int
    enabled: bool
    health: str
    why: str | None
    retry_in_s: float | None
    load: dict[str, float]
    routes: tuple[BreakerStatus, ...]


class Pool:
    """The resources, their health and their quotas. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        resources: Sequence[Resource],
        *,
        policy: BreakerPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resources = tuple(resources)
        self._policy = policy or BreakerPolicy()
        self._clock = clock
        self._breakers: dict[tuple[str, str], CircuitBreaker] = {}
        self._disabled: set[str] = set()

    def allowed(self, wanted: Wanted) -> tuple[Resource, ...]:
        """Those that residency lets `wanted` use, healthy or not."""
        return tuple(each for each in self.resources if is_allowed(each, wanted))

    def order(self, wanted: Wanted) -> tuple[Resource, ...]:
        """Those to ask, in order: allowed, enabled, healthy; by priority and the session's own preference.

        Where all that are allowed and enabled seem to fail, it has all of them.
        """
        return by_preference(
            (each for each in self.allowed(wanted) if each.name not in self._disabled), wanted.session_id
        )

    def breaker(self, resource_name: str, route_name: str) -> CircuitBreaker:
        """The breaker of one route of one resource, made when it is first asked for."""
        key = (resource_name, route_name)
        if (found := self._breakers.get(key)) is None:
            found = self._breakers[key] = CircuitBreaker(route_name, self._policy, clock=self._clock)
        return found

    def admit(
        self,
        resource: Resource,
        route_name: str,
        *,
        agent_id: str,
        model: str = "",
        session_id: str = "",
        running: bool = False,
    ) -> PoolPermit | None:
        """A permit for one call now, or None; then `why_not` says why.

        It takes a token of the route's quota, which does not come back however the call ends. `model` is the deployment
        to be used, where it is not the resource's. A running talk that is refused for its quota, and is named by
        `session_id`, gets the next token before new talks do.
        """
        del session_id, running
        permit = self.breaker(resource.name, route_name).admit()
        if permit is None:
            return None
        return PoolPermit(resource, route_name, agent_id, model or resource.model, self._clock(), permit)

    def why_not(
        self, resource: Resource, route_name: str, *, agent_id: str, model: str = "", running: bool = False
    ) -> Refusal:
        """Why `admit` gives no permit now."""
        del agent_id, model, running
        return Refusal(self.breaker(resource.name, route_name).why_open, 0.0)

    @contextlib.contextmanager
    def settle(self, permit: PoolPermit) -> Iterator[None]:
        """Runs one admitted call in its block and counts the result, as `CircuitBreaker.settle` does, on all levels."""
        with self.breaker(permit.resource.name, permit.route).settle(permit.route_permit):
            yield

    @contextlib.contextmanager
    def connecting(self, permit: PoolPermit) -> Iterator[None]:
        """Runs an admitted handshake in its block. Its failure counts; its success proves nothing yet.

        Whoever holds the connection says later what it came to, with `succeeded` or `failed`.
        """
        with self.settle(permit):
            yield

    def succeeded(self, permit: PoolPermit) -> None:
        """What was connected within `connecting` works: an answer was completed, or 30 s passed without a fault."""

    def failed(self, permit: PoolPermit, error: Exception) -> None:
        """What was connected within `connecting` failed later."""

    def outlook(self, wanted: Wanted, routes: Sequence[str]) -> Outlook:
        """What to expect of a talk by one of `routes`: poor where all permitted resources are known to be down."""
        del wanted, routes
        return Outlook("good")

    def set_enabled(self, name: str, enabled: bool) -> None:
        """Takes a resource out for new connections, or in again. Running ones go on."""
        if enabled:
            self._disabled.discard(name)
        else:
            self._disabled.add(name)

    def divide_quotas(self, replicas: int, *, is_fresh: bool = False) -> None:
        """Leaves this process its share of the quotas, of `replicas` that are live.

        `is_fresh` is for a process that has just started beside others, or after another one: the first minute's
        quota comes at its rate, since the tokens may have been used by others a moment ago.
        """

    def stalled(self, for_s: float) -> None:
        """Our own loop stood still for `for_s` until now: failures of calls that ran meanwhile are nobody's."""

    def snapshot(self) -> tuple[ResourceStatus, ...]:
        """The status of each resource now."""
        return tuple(
            ResourceStatus(
                name=each.name,
                zone=each.zone,
                priority=each.priority,
                weight=each.weight,
                enabled=each.name not in self._disabled,
                health="good",
                why=None,
                retry_in_s=None,
                load={},
                routes=tuple(breaker.snapshot() for (name, _), breaker in self._breakers.items() if name == each.name),
            )
            for each in self.resources
        )
