"""`POST /realtime/token`: a plan that the browser can use, within the budget, whatever state Azure is in."""

import asyncio
import time

import structlog
from starlette.requests import Request
from starlette.responses import Response

from strategies.base import EphemeralGrant, Grant, SessionSpec
from strategies.chain import SpecSupplier
from token_broker.admission import admit
from token_broker.agents import Agent, session_spec
from token_broker.broker import Broker, broker_of
from token_broker.http import correlation_id, parse_json, read_body
from token_broker.memory.base import Owner
from token_broker.problems import Problem
from token_broker.schemas import Plan, TokenRequest
from token_broker.sessions import open_session
from token_broker.telemetry import fingerprint

__all__ = ["create_token", "find_agent"]

audit = structlog.get_logger("token_broker.audit")

_RETRY_AFTER_S = 5


async def create_token(request: Request) -> Response:
    """Answers 200 with a `Plan`; problems: 400, 401, 403, 404, 413, 422, 429, and 503 without the proxy."""
    broker = broker_of(request)
    settings = broker.settings
    deadline_s = time.monotonic() + settings.token_budget_s
    caller = await admit(request, broker)
    body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    wanted = parse_json(body, TokenRequest)
    agent = find_agent(broker, wanted.agent_id)
    owner = await open_session(
        broker.memory.sessions,
        broker.signer,
        principal=caller.principal,
        session_id=wanted.session_id,
        session_token=request.headers.get("x-session-token"),
        user_id=wanted.user_id,
    )
    supply = recalled_spec(broker, agent, owner, tuple(wanted.modalities))
    grant = (await broker.chain.mint(supply, deadline_s=deadline_s)).grant
    broker.tally.count(grant)
    if grant is None:
        raise _nothing_minted(broker)
    plan = broker.plans.make(
        grant, owner=owner, agent=agent, public_base=caller.public_base, correlation_id=correlation_id(request)
    )
    broker.memory.sessions.record(owner, agent.id)
    _write_audit(plan, owner, grant)
    return Response(
        plan.__pydantic_serializer__.to_json(plan), media_type="application/json", headers={"Cache-Control": "no-store"}
    )


def find_agent(broker: Broker, agent_id: str | None) -> Agent:
    """The agent, or the default one for None. Raises Problem 404 naming the known ones."""
    agent = broker.agents.get(broker.agents.default if agent_id is None else agent_id)
    if agent is None:
        known = ", ".join(broker.agents.ids)
        raise Problem(404, "unknown_agent", f"There is no such agent; the known ones are {known}.")
    return agent


def recalled_spec(
    broker: Broker, agent: Agent, owner: Owner, modalities: tuple[str, ...] = ("audio", "text")
) -> SpecSupplier:
    """Supplies the talk's spec with what the memory recalls, which is asked for at the first real mint, and once."""
    asked: asyncio.Future[str] | None = None

    async def supply() -> SessionSpec:
        nonlocal asked
        if asked is None:
            asked = asyncio.ensure_future(broker.recall.block(owner))
        return session_spec(agent, broker.settings, recalled=await asyncio.shield(asked), modalities=modalities)

    return supply


def _nothing_minted(broker: Broker) -> Problem:
    retry = {"Retry-After": str(_RETRY_AFTER_S)}
    if broker.settings.endpoint is None:
        return Problem(
            503, "not_configured", "No Azure endpoint is configured: set AZURE_VOICELIVE_ENDPOINT.", headers=retry
        )
    detail = "No token could be minted just now, and the proxy is not part of this broker's chain: try again."
    return Problem(503, "nothing_minted", detail, headers=retry)


def _write_audit(plan: Plan, owner: Owner, grant: Grant) -> None:
    """Who was given what, and until when; written before it is released."""
    minted = isinstance(grant, EphemeralGrant)
    audit.info(
        "credential_issued",
        correlation_id=plan.correlation_id,
        principal=owner.principal,
        session_id=owner.session_id,
        agent_id=plan.agent_id,
        strategy=plan.strategy,
        has_token=minted,
        fingerprint=fingerprint(plan.token) if plan.token else None,
        expires_at=plan.expires_at.isoformat(),
    )
