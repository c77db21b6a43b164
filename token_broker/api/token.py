"""`POST /realtime/token`: a plan that the browser can use, within the budget, whatever state Azure is in.

`Minting` and `RequestTrace` are what token requests and SDP offers have in common: the agent, the chain, the plan.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, TypedDict

from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from strategies.base import Attempt, EphemeralGrant, Grant, ProxyGrant, SignallingGrant
from strategies.chain import Chain, ChainResult
from strategies.pool import Pool
from strategies.session_model.live_session import LIVE_ROUTE
from token_broker.memory.types import Recall
from token_broker.observability.events import Observer, TokenRequestEnded, TokenResult
from token_broker.observability.logging import AuditEntry, bind_ids, write_audit
from token_broker.security.tokens import Owner
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.sessions.ownership import Callers
from token_broker.sessions.plans import SECRET_TRANSPORTS, PlanMaker, TalkSpecs
from token_broker.sessions.schemas import Plan, TokenRequest
from token_broker.settings import Settings
from token_broker.usage.budgets import Budgets
from token_broker.usage.ledger import GivenSecret, UsageLedger
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec
from token_broker.web.requests import Problem, correlation_id, parse_json, public_base, read_body

__all__ = [
    "ASKING_SHARE",
    "LIVE_GRANTED",
    "RETRY_AFTER_S",
    "TOKEN_OPERATIONS",
    "Minting",
    "RequestTrace",
    "TokenState",
    "create_token",
]

RETRY_AFTER_S = 5
LIVE_GRANTED = ChainResult(SignallingGrant(LIVE_ROUTE), (Attempt(LIVE_ROUTE, "granted", 0.0, "asks nobody"),))
ASKING_SHARE = 0.975  # of the budget; what is left is for the answer, also on a busy machine


@dataclass(frozen=True, slots=True)
class Minting:
    """The parts that mint for an agent and make a plan of the grant.

    `live_agents` speak GPT-Live, which has no mint.
    """

    settings: Settings
    agents: AgentRegistry
    pool: Pool
    chain: Chain
    recall: Recall
    plans: PlanMaker
    observe: Observer
    ledger: UsageLedger
    budgets: Budgets | None = None
    live_agents: frozenset[str] = frozenset()

    def find_agent(self, agent_id: str | None) -> Agent:
        """The agent, or the default one for None. Raises Problem 404 naming the known ones."""
        agent = self.agents.get(self.agents.default if agent_id is None else agent_id)
        if agent is None:
            known = ", ".join(self.agents)
            raise Problem(404, "unknown_agent", f"There is no such agent; the known ones are {known}.")
        return agent

    def model_of(self, agent: Agent, grant: Grant | None, session_id: str) -> str:
        """The deployment of the resource that minted, or of the one that the session's talks would ask first."""
        if agent.model:
            return agent.model
        if isinstance(grant, EphemeralGrant):
            return self.pool.by_name[grant.resource].model
        first = next(iter(self.pool.order(agent.wanted(session_id))), None)
        return first.model if first else self.settings.model

    def ensure_configured(self) -> None:
        """Raises Problem 503 where there is no Azure to talk to."""
        if not self.pool.resources:
            raise Problem(
                503,
                "not_configured",
                "No Azure endpoint is configured: set AZURE_VOICELIVE_ENDPOINT, or BROKER_RESOURCES_FILE.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )


@dataclass(slots=True)
class RequestTrace:
    """How far a request that asks the chain has come. Times are those of the monotonic clock."""

    scope: Scope
    model: str
    began_s: float = field(default_factory=time.monotonic)
    owner: Owner | None = None
    agent: Agent | None = None
    chain_began_s: float | None = None
    minted: ChainResult | None = None
    is_poor: bool = False  # the plan's outlook

    @property
    def grant(self) -> Grant | None:
        """What the chain has granted so far."""
        return self.minted.grant if self.minted else None

    @contextmanager
    def answered(self, status: int, tell: Callable[[int, str | None], None]) -> Iterator[None]:
        """Calls `tell` with the answer's status and problem code: `status` where the block ends well."""
        try:
            yield
        except Exception as error:  # not a cancellation: nobody got an answer then
            if isinstance(error, Problem):
                tell(error.status, error.code)
            else:
                tell(500, "internal_error")
            raise
        tell(status, None)

    def facts(self, status: int, code: str | None) -> dict[str, Any]:
        """The fields of `ChainRequestEnded`, for a request that is answered now."""
        return {
            "status": status,
            "code": code,
            "duration_s": time.monotonic() - self.began_s,
            "correlation_id": correlation_id(self.scope),
            "model": self.model,
            "agent_id": self.agent.id if self.agent else None,
            "session_id": self.owner.session_id if self.owner else None,
            "strategy": self.grant.strategy if self.grant else None,
            "chain_began_s": self.chain_began_s - self.began_s if self.minted and self.chain_began_s else 0.0,
            "attempts": self.minted.attempts if self.minted else (),
            "trace": self.scope["state"].get("trace"),
        }


class TokenState(TypedDict):
    """What this route uses of the lifespan's state."""

    callers: Callers
    minting: Minting


async def create_token(request: Request[TokenState]) -> Response:
    """Answers 200 with a `Plan`; problems: 400, 401, 403, 404, 408, 413, 422, 429, and 503 without the proxy."""
    request.state["callers"].ensure_staying()  # before the trace: the service level counts what could be served
    minting = request.state["minting"]
    trace = RequestTrace(request.scope, minting.settings.model)

    def tell(status: int, code: str | None) -> None:
        minted = trace.grant if isinstance(trace.grant, EphemeralGrant) else None
        result: TokenResult
        if status == HTTPStatus.OK:
            signalled = isinstance(trace.grant, SignallingGrant) and not trace.is_poor
            result = "minted" if minted else "signalled" if signalled else "poor" if trace.is_poor else "degraded"
        else:
            result = "refused" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"
        skew_s = minted.clock_skew_s if minted else None
        resource = minted.resource if minted else ""
        ended = TokenRequestEnded(**trace.facts(status, code), result=result, clock_skew_s=skew_s, resource=resource)
        minting.observe(ended)

    with trace.answered(HTTPStatus.OK, tell):
        plan = await _make_plan(request, trace)
    body = plan.__pydantic_serializer__.to_json(plan)
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


async def _make_plan(request: Request[TokenState], trace: RequestTrace) -> Plan:
    callers, minting = request.state["callers"], request.state["minting"]
    settings = minting.settings
    principal = await callers.sign_in(request)
    body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    wanted = parse_json(body, TokenRequest)
    agent = trace.agent = minting.find_agent(wanted.agent_id)
    if minting.budgets is not None:
        await minting.budgets.ensure_left(principal.limit_key)
    session = await callers.open_session(request, principal, session_id=wanted.session_id, user_id=wanted.user_id)
    session = session.narrowed(wanted)
    owner = trace.owner = session.owner
    bind_ids(session_id=owner.session_id)
    # An anonymous caller's new session has no past: there is nothing to recall, and the store is not asked.
    is_new = wanted.session_id is None and not principal.authenticated
    specs = TalkSpecs(settings, owner, None if is_new else minting.recall)
    trace.chain_began_s = time.monotonic()
    if agent.id in minting.live_agents:
        trace.minted = LIVE_GRANTED
    else:
        trace.minted = await minting.chain.mint(
            specs.of(agent, tuple(wanted.modalities), seen=False),  # the page opens it by itself
            wanted=agent.wanted(owner.session_id),
            deadline_s=trace.began_s + settings.token_budget_s * ASKING_SHARE,
            sockets_only=_why_unminted(agent, owner),
            signals=owner.narrowed.permits("webrtc_websocket")
            and minting.plans.unseen.permits_signalling(agent, owner, knows_blocked=callers.blocklist.was_read),
        )
    grant = trace.minted.grant
    if agent.foundry_agent is not None and isinstance(grant, ProxyGrant):
        grant = replace(grant, strategy="foundry_agent")
        trace.minted = replace(trace.minted, grant=grant)
    trace.model = minting.model_of(agent, grant, owner.session_id)
    if grant is None:
        minting.ensure_configured()
        detail = "No token could be minted just now, and the proxy is not part of this broker's chain: try again."
        raise Problem(503, "nothing_minted", detail, headers={"Retry-After": str(RETRY_AFTER_S)})
    # Before the plan is made: where another caller got the chosen id meanwhile, no credential for it may leave.
    await session.keep(callers.sessions, agent.id)
    plan = minting.plans.make(
        grant,
        owner=owner,
        agent=agent,
        public_base=public_base(request.scope, settings.public_url, settings.trusted_proxies),
        correlation_id=correlation_id(request.scope),
        knows_blocked=callers.blocklist.was_read,
    )
    trace.is_poor = plan.outlook == "poor"
    entry = AuditEntry(
        correlation_id=plan.correlation_id,
        principal=owner.principal,
        session_id=owner.session_id,
        agent_id=plan.agent_id,
        strategy=plan.strategy,
        minted=plan.token is not None,
        secret=SecretStr(plan.token or plan.session_token),
        expires_at=plan.expires_at,
        resource=grant.resource if isinstance(grant, EphemeralGrant) else None,
    )
    write_audit(entry, minting.observe)  # before the answer: a plan that can't be audited is not released
    if plan.token is not None and isinstance(grant, EphemeralGrant):
        unseen = next(each for each in plan.connections if each.transport in SECRET_TRANSPORTS)
        given = GivenSecret(owner, agent.id, unseen.transport, grant.resource, unseen.dialect)
        minting.ledger.give(given)
    return plan


def _why_unminted(agent: Agent, owner: Owner) -> str:
    """Why nothing is minted for this talk; empty where something is."""
    if agent.unminted:
        return f"nothing is minted for this agent, since {agent.unminted}"
    if not owner.narrowed.permits("webrtc", "webrtc_relay", "websocket") and owner.narrowed.permits("webrtc_websocket"):
        return "the request wants none of its transports"
    return ""


_PLAN_EXAMPLE = {
    "session_id": "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11",
    "agent_id": "elena",
    "model": "gpt-realtime",
    "strategy": "ga",
    "degraded": False,
    "token": "ek_…",
    "expires_at": "2026-11-22T23:00:00Z",
    "endpoint": "https://x.openai.azure.com",
    "resource": "eastus2",
    "outlook": "good",
    "retry_after_s": None,
    "session_token": "eyJ…",
    "connections": [
        {
            "transport": "webrtc",
            "url": "https://x.openai.azure.com/openai/v1/realtime/calls?webrtcfilter=on",
            "token": "ek_…",
            "expires_at": "2026-11-22T23:00:00Z",
            "expires_in_s": 59,
            "dialect": "ga",
            "voice": "marin",
            "resource": "eastus2",
        },
        {
            "transport": "websocket_proxy",
            "url": "wss://broker.example.com/api/v1/voice/voicelive/019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11",
            "protocols": ["realtime", "ticket.eyJ…"],
            "expires_at": "2026-11-22T23:02:00Z",
            "expires_in_s": 180,
            "dialect": "preview",
            "voice": "en-US-Ava:DragonHDLatestNeural",
            "resource": None,
        },
    ],
    "correlation_id": "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b12",
}

TOKEN_OPERATIONS = (
    Operation(
        name="create_token",
        method="post",
        path="/api/v1/voice/realtime/token",
        aliases=("/realtime/token",),
        tag="Talking",
        summary="Get a plan for a talk",
        description=(
            "Answers with a plan that can be used, whatever state Azure is in, within BROKER_TOKEN_BUDGET_S. Walk its "
            "`connections` in their order; the last is the broker's own proxy. Go by `expires_in_s`: clocks are wrong. "
            "To resume a session, name it and send its last `session_token` in `X-Session-Token`."
        ),
        body=Body((TokenRequest,), example={"agent_id": "elena", "modalities": ["audio", "text"]}, required=False),
        parameters=(
            Parameter("X-Session-Token", "header", "The session's last `session_token`: proves that it is yours."),
        ),
        answers=(ResponseSpec(200, "A plan.", Plan, example=_PLAN_EXAMPLE),),
        problems={
            400: ("invalid_json", "client_left"),
            401: ("not_signed_in", "bad_principal", "invalid_token"),
            403: ("foreign_session", "session_erased", "foreign_user", "insufficient_scope", "blocked"),
            404: ("unknown_agent",),
            408: ("body_timeout",),
            409: ("no_transport",),
            413: ("body_too_large",),
            422: ("invalid_request",),
            429: ("rate_limited", "budget_used"),
            503: (
                "nothing_minted",
                "not_configured",
                "identity_provider_unreachable",
                "store_away",
                "blocklist_unread",
                "draining",
            ),
        },
        security=(None, "entra", "easyauth"),
    ),
)
