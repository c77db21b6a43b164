"""The broker's own state: `/status`, `/config/{agent_id}`, `/healthz`, `/readyz`."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from strategies.chain import Chain, Link
from strategies.health import BreakerState, BreakerStatus, Capability, Latencies
from strategies.pool import Pool
from strategies.session_model.agent_settings import Voice
from strategies.session_model.live_session import live_voice
from strategies.session_model.session_fields import voice_name
from strategies.voice_live_webrtc import VoiceLiveWebRtc, WebRtcAvailability
from token_broker.api.status_schemas import (
    AgentVoice,
    LiveTimes,
    PlanLevel,
    Readiness,
    ResourceState,
    ServiceLevel,
    Status,
    StrategyStatus,
    TalkLevel,
)
from token_broker.api.token import Minting
from token_broker.calls.leases import CallLeases
from token_broker.memory.service import Memory
from token_broker.observability.events import PlanCounters
from token_broker.observability.logging import advice_on
from token_broker.relay.counters import RelayStatus
from token_broker.security.limits import SessionLimits
from token_broker.server.drain import Drain
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.sessions.ownership import blocklist_unread
from token_broker.sessions.schemas import AgentConfig
from token_broker.sessions.talk_level import TalkLevelCounters
from token_broker.settings import Settings
from token_broker.usage.budgets import Budgets
from token_broker.usage.ledger import UsageLedger
from token_broker.web.openapi_document import Operation, Parameter, ResponseSpec
from token_broker.web.requests import Problem, bearer_token

__all__ = [
    "STATUS_OPERATIONS",
    "StatusSources",
    "StatusState",
    "get_config",
    "get_health",
    "get_readiness",
    "get_status",
]

_NO_STORE = {"Cache-Control": "no-store"}
_SLO_AIM = 0.9999


@dataclass(frozen=True, slots=True)
class StatusSources:
    """What the status is read from."""

    settings: Settings
    agents: AgentRegistry
    agent_reports: Mapping[str, list[str]]
    pool: Pool
    chain: Chain
    plan_counters: PlanCounters
    talk_counters: TalkLevelCounters
    talks: SessionLimits
    drain: Drain
    memory: Memory
    relay: Callable[[], RelayStatus]
    availability: WebRtcAvailability
    ledger: UsageLedger
    budgets: Budgets | None
    leases: CallLeases

    def read(self, *, full: bool) -> Status:
        """The status; only its first five fields unless it is `full`."""
        settings = self.settings
        first = next(iter(self.pool.resources), None)
        status = Status(
            voicelive_configured=first is not None,
            endpoint=first.target.base if first else None,
            model=first.model if first else settings.model,
            active_sessions=self.talks.active,
            agents={
                agent.id: AgentVoice(name=agent.name, voice=voice_name(self._voice_of(agent)))
                for agent in self.agents.values()
            },
        )
        if full:
            status.strategies = self.strategies()
            status.relay = self.relay()
            status.outbox = self.memory.status()
            status.slo = self._service_level()
            status.agent_reports = {agent_id: lines for agent_id, lines in self.agent_reports.items() if lines}
            status.resources = [
                ResourceState(**{name: getattr(each, name) for name in ResourceState.model_fields})
                for each in self.pool.snapshot()
            ]
            status.clock_skew_s = self.clock_skew_s
            status.voice_live_webrtc = list(self.availability.snapshot())
        return status

    def _voice_of(self, agent: Agent) -> Voice:
        """The voice that the agent has as it talks."""
        if agent.speaks_live(self.pool.resources):
            return live_voice(agent.voices)
        return agent.voices["preview" if agent.foundry_agent is None else "ga"]

    def _service_level(self) -> ServiceLevel:
        plans, talks = self.plan_counters, self.talk_counters
        ratio = _ratio(plans.usable, plans.requests)
        return ServiceLevel(
            aim=_SLO_AIM,
            requests=plans.requests,
            usable_plans=plans.usable,
            degraded_plans=plans.degraded,
            ratio=ratio,
            plans=PlanLevel(requests=plans.requests, usable=plans.usable, ratio=ratio),
            talks=TalkLevel(
                asked=talks.asked,
                live=talks.live,
                left=talks.left,
                ratio=_ratio(talks.live, talks.asked),
                time_to_live_ms=LiveTimes(p50=talks.time_to_live_ms(50), p95=talks.time_to_live_ms(95)),
            ),
        )

    def strategies(self) -> list[StrategyStatus]:
        """The status of each strategy, in the chain's order."""
        found = []
        for link in self.chain.links:
            if isinstance(link, Link):
                breaker = self.chain.pool.route_status(link.resource.name, link.strategy.name)
                fields = {name: getattr(breaker, name) for name in BreakerStatus.__slots__}
                found.append(StrategyStatus(**fields, do=advice_on(breaker.last_outcome), resource=link.resource.name))
            elif isinstance(link, VoiceLiveWebRtc):
                found.append(_unminted_status(link.name, self.plan_counters.signalled))
            else:
                found.append(_unminted_status(link.name, self.plan_counters.degraded))
        return found

    @property
    def clock_skew_s(self) -> float | None:
        """Our clock less Azure's, at the last mint."""
        skew_s = self.plan_counters.clock_skew_s
        return None if skew_s is None else round(skew_s, 1)

    def may_see_figures(self, request: Request[Any]) -> bool:
        """Whether the caller may see metrics and the full status: with BROKER_METRICS_TOKEN, or where no caller has to
        sign in and there is no such token.
        """
        settings = self.settings
        if settings.metrics_token is None and settings.auth in {None, "none"}:
            return True
        return self.has_metrics_token(request)

    def has_metrics_token(self, request: Request[Any]) -> bool:
        """Whether the request brings BROKER_METRICS_TOKEN."""
        wanted = self.settings.metrics_token
        given = bearer_token(request) or ""
        return wanted is not None and secrets.compare_digest(given.encode(), wanted.get_secret_value().encode())


def _ratio(good: int, of: int) -> float | None:
    return round(good / of, 6) if of else None


def _unminted_status(name: str, granted: int) -> StrategyStatus:
    """A strategy that mints nothing, in the shape of a breaker's status: it has no breaker, and never fails."""
    return StrategyStatus(
        name=name,
        breaker=BreakerState.CLOSED,
        capability=Capability.AVAILABLE,
        last_outcome="granted" if granted else None,
        last_status=None,
        last_ago_s=None,
        retry_in_s=None,
        why=None,
        attempts=granted,
        successes=granted,
        latency_ms=Latencies(),
        do=None,
        resource=None,
    )


class StatusState(TypedDict):
    """What these routes use of the lifespan's state."""

    status: StatusSources
    minting: Minting


async def get_status(request: Request[StatusState]) -> Response:
    """Five fields for everybody, the rest for callers who may see figures, principals for the token's holder."""
    sources = request.state["status"]
    status = sources.read(full=sources.may_see_figures(request))
    left_out = None if sources.has_metrics_token(request) else {"relay": {"usage_by_principal"}}
    # Unset fields are left out: a client that may not see them is not told that they exist and are null.
    body = status.model_dump_json(exclude_unset=True, exclude=left_out)
    return Response(body, media_type="application/json", headers=_NO_STORE)


async def get_config(request: Request[StatusState]) -> Response:
    """An agent's voice and model, as the first version's clients ask for them."""
    minting = request.state["minting"]
    agent = minting.find_agent(request.path_params["agent_id"])
    config = AgentConfig(
        agent_id=agent.id,
        voice_name=voice_name(agent.voices["preview"]),
        model=minting.model_of(agent, None, ""),
        endpoint_configured=bool(minting.pool.resources),
    )
    return JSONResponse(config.model_dump(), headers=_NO_STORE)


async def get_health(request: Request) -> Response:
    """200 while the process answers at all."""
    del request
    return JSONResponse({"status": "ok"}, headers=_NO_STORE)


async def get_readiness(request: Request[StatusState]) -> Response:
    """200 while new clients are accepted; a problem 503 while the broker drains, or lacks a required blocklist."""
    sources = request.state["status"]
    if sources.drain.draining:
        raise Problem(503, "draining", "This broker is going away: ask another one.", headers={"Retry-After": "1"})
    if sources.memory.blocklist.is_missed:
        raise blocklist_unread()
    return JSONResponse({"status": "ready"}, headers=_NO_STORE)


STATUS_OPERATIONS = (
    Operation(
        name="get_status",
        method="get",
        path="/api/v1/voice/status",
        aliases=("/status",),
        tag="Watching",
        summary="What the broker says of itself",
        description=(
            "In full for whoever sends BROKER_METRICS_TOKEN. While that is unset and BROKER_AUTH is `none`, everybody "
            "gets all but what names principals. Else the first five members."
        ),
        answers=(ResponseSpec(200, "The status.", Status),),
        security=(None, "metricsToken"),
    ),
    Operation(
        name="get_config",
        method="get",
        path="/api/v1/voice/config/{agent_id}",
        aliases=("/config/{agent_id}",),
        tag="Talking",
        summary="An agent's voice and model",
        description="For clients of the first version; a plan says more.",
        parameters=(Parameter("agent_id", "path", "One of those that `/status` lists.", example="elena"),),
        answers=(ResponseSpec(200, "The agent.", AgentConfig),),
        problems={404: ("unknown_agent",)},
    ),
    Operation(
        name="get_health",
        method="get",
        path="/healthz",
        tag="Watching",
        summary="Liveness",
        description="Answers while the process answers at all.",
        answers=(ResponseSpec(200, "It lives.", Readiness, example={"status": "ok"}),),
    ),
    Operation(
        name="get_readiness",
        method="get",
        path="/readyz",
        tag="Watching",
        summary="Readiness",
        description=(
            "503 while the broker drains, or has not read the blocklist that BROKER_REQUIRE_BLOCKLIST wants: newcomers "
            "are to go elsewhere."
        ),
        answers=(ResponseSpec(200, "Newcomers are welcome.", Readiness, example={"status": "ready"}),),
        problems={503: ("draining", "blocklist_unread")},
    ),
)
