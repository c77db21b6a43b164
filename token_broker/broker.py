"""What the routes work with: everything that `lifespan` built once, in one frozen object."""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx
from starlette.requests import HTTPConnection

from strategies.base import EphemeralGrant, Grant
from strategies.chain import Chain, Link
from strategies.credentials import Credentials
from token_broker.memory.service import Memory
from token_broker.memory.types import Recall
from token_broker.observability.events import Observer
from token_broker.observability.logging import advice_on
from token_broker.observability.metrics import Metrics
from token_broker.relay.admission import Admission
from token_broker.relay.voice_relay import VoiceRelay
from token_broker.security.authentication import Authenticator
from token_broker.security.quotas import MemoryQuotas
from token_broker.security.rate_limits import RateLimiter, SessionLimits
from token_broker.security.tokens import TokenSigner
from token_broker.server.drain import Drain
from token_broker.sessions.agents import AgentRegistry
from token_broker.sessions.calls import Calls
from token_broker.sessions.plans import PlanMaker
from token_broker.settings import Settings

__all__ = ["Broker", "PlanCounters", "broker_of"]

_SLO_AIM = 0.9999


@dataclass(slots=True)
class PlanCounters:
    """What the process has counted of its plans; `usable` of `requests` is the service level.

    A request that was rightly refused (4xx) is none: what counts is who was owed a plan, and whether they got one.
    """

    requests: int = 0
    usable: int = 0
    degraded: int = 0
    clock_skew_s: float | None = None

    def count(self, status: int, grant: Grant | None) -> None:
        """Counts one token request that was answered with `status`; `grant` is None where none was made."""
        if isinstance(grant, EphemeralGrant):
            self.clock_skew_s = grant.clock_skew_s
        if 400 <= status < 500:  # noqa: PLR2004
            return
        self.requests += 1
        if status == HTTPStatus.OK:
            self.usable += 1
            self.degraded += not isinstance(grant, EphemeralGrant)

    def proxy_snapshot(self, name: str) -> dict[str, Any]:
        """The proxy's strategy in the shape of a breaker's snapshot: it has no breaker, and never fails."""
        return {
            "name": name,
            "breaker": "closed",
            "capability": "available",
            "last_outcome": "granted" if self.degraded else None,
            "last_status": None,
            "last_ago_s": None,
            "retry_in_s": None,
            "why": None,
            "attempts": self.degraded,
            "successes": self.degraded,
            "latency_ms": {"p50": None, "p95": None, "p99": None},
        }

    def slo(self) -> dict[str, Any]:
        """Usable plans over requests, since the process began."""
        return {
            "aim": _SLO_AIM,
            "requests": self.requests,
            "usable_plans": self.usable,
            "degraded_plans": self.degraded,
            "ratio": round(self.usable / self.requests, 6) if self.requests else None,
        }


@dataclass(frozen=True, slots=True)
class Broker:
    """The process's parts; without an Azure to talk to there are no `credentials` and no `calls`."""

    settings: Settings
    agents: AgentRegistry
    signer: TokenSigner
    authenticator: Authenticator
    rate: RateLimiter
    hang_ups: RateLimiter  # apart, so that whoever used up the rate may still leave
    chain: Chain
    plans: PlanMaker
    memory: Memory
    quotas: MemoryQuotas
    recall: Recall
    http: httpx.AsyncClient
    credentials: Credentials | None
    drain: Drain
    talks: SessionLimits
    calls: Calls | None
    admission: Admission
    relay: VoiceRelay
    metrics: Metrics
    observe: Observer
    plan_counters: PlanCounters = field(default_factory=PlanCounters)

    def health(self, *, principals: bool = False) -> dict[str, Any]:
        """What `/status` adds for those who may see figures; only with `principals` what names some."""
        skew_s = self.plan_counters.clock_skew_s
        relay = self.relay.snapshot()
        if not principals:
            del relay["usage_by_principal"]
        return {
            "strategies": [
                _with_advice(link.breaker.snapshot())
                if isinstance(link, Link)
                else self.plan_counters.proxy_snapshot(link.name)
                for link in self.chain.links
            ],
            "outbox": self.memory.status().outbox(),
            "relay": relay,
            "slo": self.plan_counters.slo(),
            "clock_skew_s": None if skew_s is None else round(skew_s, 1),
        }

    def state(self) -> dict[str, Any]:
        """What `/metrics` reads: `health`, and what else it has figures of."""
        return {
            **self.health(),
            "draining": self.drain.draining,
            "open_talks": self.talks.active,
            "max_talks": self.settings.max_sessions,
        }


def _with_advice(snapshot: dict[str, Any]) -> dict[str, Any]:
    """A breaker's snapshot and, as `do`, what an operator can do about it."""
    return snapshot | {"do": advice_on(snapshot["last_outcome"])}


def broker_of(connection: HTTPConnection) -> Broker:
    """The broker that serves this connection."""
    broker: Broker = connection.app.state.broker
    return broker
