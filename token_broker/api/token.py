"""`POST /realtime/token`: a plan that the browser can use, within the budget, whatever state Azure is in."""

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from strategies.base import EphemeralGrant, SessionSpec
from strategies.chain import ChainResult, SpecSupplier
from token_broker.api.callers import admit
from token_broker.broker import Broker, broker_of
from token_broker.memory.types import Owner
from token_broker.observability.events import TokenRequestEnded, TokenResult
from token_broker.observability.logging import AuditEntry, bind_ids, write_audit
from token_broker.sessions.agents import Agent, session_spec
from token_broker.sessions.ownership import ensure_not_blocked, open_session
from token_broker.sessions.schemas import Plan, TokenRequest
from token_broker.web.ids import correlation_id
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec
from token_broker.web.problems import Problem
from token_broker.web.requests import parse_json, read_body

__all__ = ["TOKEN_OPERATIONS", "create_token", "ensure_configured", "find_agent", "recalled_spec"]

_RETRY_AFTER_S = 5


async def create_token(request: Request) -> Response:
    """Answers 200 with a `Plan`; problems: 400, 401, 403, 404, 408, 413, 422, 429, and 503 without the proxy."""
    broker = broker_of(request)
    course = _Course(time.monotonic())
    try:
        plan = await _make_plan(request, broker, course)
    except Problem as problem:
        _tell(request, broker, course, problem.status, problem.code)
        raise
    except Exception:
        _tell(request, broker, course, 500, "internal_error")
        raise
    _tell(request, broker, course, 200)
    return Response(
        plan.__pydantic_serializer__.to_json(plan), media_type="application/json", headers={"Cache-Control": "no-store"}
    )


@dataclass(slots=True)
class _Course:
    """How far a request has come, for those who watch."""

    began_s: float
    chain_began_s: float = 0.0
    owner: Owner | None = None
    agent: Agent | None = None
    minted: ChainResult | None = None


async def _make_plan(request: Request, broker: Broker, course: _Course) -> Plan:
    settings = broker.settings
    deadline_s = course.began_s + settings.token_budget_s
    caller = await admit(request, broker)
    body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    wanted = parse_json(body, TokenRequest)
    agent = course.agent = find_agent(broker, wanted.agent_id)
    session = await open_session(
        broker.memory.sessions,
        broker.signer,
        broker.memory.blocklist,
        principal=caller.principal,
        session_id=wanted.session_id,
        session_token=request.headers.get("x-session-token"),
        user_id=wanted.user_id,
    )
    owner = course.owner = session.owner
    bind_ids(session_id=owner.session_id)
    ensure_not_blocked(broker.memory.blocklist, owner.principal, owner.session_id)
    # Who has neither a name nor a past can't be remembered: the memory need not be asked.
    nobody = wanted.session_id is None and not caller.principal.authenticated
    supply = recalled_spec(broker, agent, owner, tuple(wanted.modalities), remembered=not nobody)
    course.chain_began_s = time.monotonic()
    course.minted = await broker.chain.mint(supply, deadline_s=deadline_s, sockets_only=agent.sockets_only)
    grant = course.minted.grant
    if grant is None:
        ensure_configured(broker)
        raise _nothing_minted()
    await session.keep(broker.memory.sessions, agent.id)
    plan = broker.plans.make(
        grant,
        owner=owner,
        agent=agent,
        public_base=caller.public_base,
        correlation_id=correlation_id(request.scope),
        unseen=broker.memory.blocklist.was_read,
    )
    write_audit(_audit_entry(plan, owner), broker.observe)
    return plan


def _tell(request: Request, broker: Broker, course: _Course, status: int, code: str | None = None) -> None:
    """What became of the request, for the service level, the metrics and the traces."""
    grant = course.minted.grant if course.minted else None
    broker.plan_counters.count(status, grant)
    broker.observe(
        TokenRequestEnded(
            result=_result(status, minted=isinstance(grant, EphemeralGrant)),
            status=status,
            duration_s=time.monotonic() - course.began_s,
            correlation_id=correlation_id(request.scope),
            model=broker.settings.model,
            agent_id=course.agent.id if course.agent else None,
            session_id=course.owner.session_id if course.owner else None,
            strategy=grant.strategy if grant else None,
            code=code,
            chain_began_s=course.chain_began_s - course.began_s if course.minted else 0.0,
            attempts=course.minted.attempts if course.minted else (),
            trace=request.scope["state"].get("trace"),
        )
    )


def _result(status: int, *, minted: bool) -> TokenResult:
    if status == HTTPStatus.OK:
        return "minted" if minted else "degraded"
    return "refused" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"


def find_agent(broker: Broker, agent_id: str | None) -> Agent:
    """The agent, or the default one for None. Raises Problem 404 naming the known ones."""
    agent = broker.agents.get(broker.agents.default if agent_id is None else agent_id)
    if agent is None:
        known = ", ".join(broker.agents.ids)
        raise Problem(404, "unknown_agent", f"There is no such agent; the known ones are {known}.")
    return agent


def recalled_spec(
    broker: Broker,
    agent: Agent,
    owner: Owner,
    modalities: tuple[str, ...] = ("audio", "text"),
    *,
    remembered: bool = True,
) -> SpecSupplier:
    """Supplies the talk's spec with what the memory recalls, which is asked for at the first real mint, and once.

    With `remembered` False there is nothing to recall, and it is not asked.
    """
    asked: asyncio.Future[str] | None = None

    async def supply() -> SessionSpec:
        nonlocal asked
        if not remembered:
            return session_spec(agent, broker.settings, modalities=modalities)
        if asked is None:
            asked = asyncio.ensure_future(broker.recall.block(owner))
        return session_spec(agent, broker.settings, recalled=await asyncio.shield(asked), modalities=modalities)

    return supply


def ensure_configured(broker: Broker) -> None:
    """Raises Problem 503 where there is no Azure to talk to."""
    if broker.settings.endpoint is None:
        raise Problem(
            503,
            "not_configured",
            "No Azure endpoint is configured: set AZURE_VOICELIVE_ENDPOINT.",
            headers={"Retry-After": str(_RETRY_AFTER_S)},
        )


def _nothing_minted() -> Problem:
    retry = {"Retry-After": str(_RETRY_AFTER_S)}
    detail = "No token could be minted just now, and the proxy is not part of this broker's chain: try again."
    return Problem(503, "nothing_minted", detail, headers=retry)


def _audit_entry(plan: Plan, owner: Owner) -> AuditEntry:
    minted = plan.token is not None
    return AuditEntry(
        correlation_id=plan.correlation_id,
        principal=owner.principal,
        session_id=owner.session_id,
        agent_id=plan.agent_id,
        strategy=plan.strategy,
        minted=minted,
        secret=SecretStr(plan.token or plan.session_token),
        expires_at=plan.expires_at,
    )


_PLAN_EXAMPLE = {
    "session_id": "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11",
    "agent_id": "elena",
    "model": "gpt-realtime",
    "strategy": "ga",
    "degraded": False,
    "token": "ek_…",
    "expires_at": "2026-11-22T23:00:00Z",
    "endpoint": "https://x.openai.azure.com",
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
        },
        {
            "transport": "websocket_proxy",
            "url": "wss://broker.example.com/api/v1/voice/voicelive/019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11",
            "protocols": ["realtime", "ticket.eyJ…"],
            "expires_at": "2026-11-22T23:02:00Z",
            "expires_in_s": 180,
            "dialect": "preview",
            "voice": "en-US-Ava:DragonHDLatestNeural",
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
            413: ("body_too_large",),
            422: ("invalid_request",),
            429: ("rate_limited",),
            503: (
                "nothing_minted",
                "not_configured",
                "identity_provider_unreachable",
                "store_away",
                "blocklist_unread",
            ),
        },
        security=(None, "entra", "easyauth"),
    ),
)
