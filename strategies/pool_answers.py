"""What the pool answers: a permit or a refusal, what to expect of a talk, and the status of a resource."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from strategies.health import BreakerStatus, CircuitBreaker, Condition, Permit
from strategies.resources import Resource

__all__ = ["Outlook", "PoolPermit", "Refusal", "ResourceStatus"]


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
    """Why `admit` gave no permit, in one sentence, and after how many seconds it may give one; 0 is unknown.

    `is_quota`: nothing fails, there is only too little quota, by our own count or by Azure's 429.
    """

    why: str
    retry_after_s: float
    is_quota: bool = False


class PoolPermit(NamedTuple):
    """Permission for one call to `route` of `resource`. `Pool.settle` hands it back."""

    resource: Resource
    route: str
    agent_id: str
    model: str
    began_s: float
    breaker: CircuitBreaker
    permit: Permit
    # Of the resource's health; None where the resource rests and is asked all the same.
    health: Permit | None
    scoped: tuple[tuple[CircuitBreaker, Permit], ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """A resource as `/status` and `token-broker resources` show it. `load` is the used share of each known quota."""

    name: str
    zone: str
    priority: int
    weight: int
    enabled: bool
    health: Condition
    why: str | None
    retry_in_s: float | None
    load: dict[str, float]
    routes: tuple[BreakerStatus, ...]
