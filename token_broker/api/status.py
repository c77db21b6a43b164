"""What the broker says of itself: `/status`, `/config/{agent_id}`, `/healthz`, `/readyz`."""

import secrets

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from token_broker.api.status_schemas import Readiness, Status
from token_broker.api.token import find_agent
from token_broker.broker import Broker, broker_of
from token_broker.sessions.ownership import blocklist_unread
from token_broker.sessions.schemas import AgentConfig
from token_broker.web.openapi_document import Operation, Parameter, ResponseSpec
from token_broker.web.problems import Problem
from token_broker.web.requests import bearer_token

__all__ = ["STATUS_OPERATIONS", "get_config", "get_health", "get_readiness", "get_status", "may_see_figures"]

_NO_STORE = {"Cache-Control": "no-store"}


async def get_status(request: Request) -> Response:
    """Five fields for everybody, the rest for whoever `may_see_figures`, principals for the token's holder."""
    broker = broker_of(request)
    settings = broker.settings
    status = {
        "voicelive_configured": settings.endpoint is not None,
        "endpoint": settings.target.base if settings.target else None,
        "model": settings.model,
        "active_sessions": broker.talks.active,
        "agents": {agent.id: {"voice": agent.voices["preview"]} for agent in broker.agents},
    }
    if may_see_figures(request, broker):
        status |= broker.health(principals=_has_metrics_token(request, broker))
    return JSONResponse(status, headers=_NO_STORE)


def may_see_figures(request: Request, broker: Broker) -> bool:
    """Whether the caller may see metrics and the status in full: who sends BROKER_METRICS_TOKEN, and everybody while
    none is set and nobody has to sign in.
    """
    settings = broker.settings
    if settings.metrics_token is None and settings.auth in {None, "none"}:
        return True
    return _has_metrics_token(request, broker)


def _has_metrics_token(request: Request, broker: Broker) -> bool:
    wanted = broker.settings.metrics_token
    given = bearer_token(request) or ""
    return wanted is not None and secrets.compare_digest(given.encode(), wanted.get_secret_value().encode())


async def get_config(request: Request) -> Response:
    """An agent's voice and model, as the first version's clients ask for them."""
    broker = broker_of(request)
    agent = find_agent(broker, request.path_params["agent_id"])
    config = AgentConfig(
        agent_id=agent.id,
        voice_name=agent.voices["preview"],
        model=broker.settings.model,
        endpoint_configured=broker.settings.endpoint is not None,
    )
    return JSONResponse(config.model_dump(), headers=_NO_STORE)


async def get_health(request: Request) -> Response:
    """200 while the process answers at all."""
    del request
    return JSONResponse({"status": "ok"}, headers=_NO_STORE)


async def get_readiness(request: Request) -> Response:
    """200 while newcomers are welcome; a problem 503 while the broker drains, or lacks a blocklist that is required."""
    broker = broker_of(request)
    if broker.drain.draining:
        raise Problem(503, "draining", "This broker is going away: ask another one.", headers={"Retry-After": "1"})
    if broker.memory.blocklist.is_missed:
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
