"""The ASGI application: its routes, and the middleware that every request passes."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from token_broker import __version__
from token_broker.api.call_events import CALL_EVENT_OPERATIONS, attach_call, stream_events
from token_broker.api.calls import CALL_OPERATIONS, create_call, hang_up
from token_broker.api.compat import compat_routes
from token_broker.api.compat_operations import COMPAT_OPERATIONS, COMPAT_SOCKETS
from token_broker.api.live.endpoints import live_routes
from token_broker.api.live.operations import LIVE_OPERATIONS, LIVE_SOCKETS
from token_broker.api.metrics import METRICS_OPERATIONS, StateCollector, get_metrics
from token_broker.api.openapi import openapi_routes
from token_broker.api.proxy import VOICELIVE_PATH, VOICELIVE_SOCKET, Voicelive
from token_broker.api.reports.page_reports import REPORT_OPERATIONS, report_talk
from token_broker.api.static import AZURE_ORIGINS, CLIENT_OPERATIONS, client_routes
from token_broker.api.status import STATUS_OPERATIONS, get_config, get_health, get_readiness, get_status
from token_broker.api.token import TOKEN_OPERATIONS, create_token
from token_broker.api.turns import MEMORY_OPERATIONS, create_turn, enrich, erase_turns, list_turns
from token_broker.api.usage import USAGE_OPERATIONS, get_usage
from token_broker.bootstrap import BrokerState, build_broker
from token_broker.observability.events import Metrics
from token_broker.relay.voice_relay import websocket_not_found
from token_broker.server.drain import Drain
from token_broker.settings import Settings
from token_broker.web.middleware import ExactRoutes, OriginGuard, PlainPaths, RequestContextMiddleware, not_found
from token_broker.web.requests import Problem, problem_response

__all__ = ["create_app"]

_VOICE_PREFIXES = ("/api/v1/voice", "")
_MEMORY_PREFIXES = ("/api/v1/memory", "/memory")
# What the routes take and answer, as /openapi.json shows it.
_OPERATIONS = (
    *TOKEN_OPERATIONS,
    *CALL_OPERATIONS,
    *CALL_EVENT_OPERATIONS,
    *COMPAT_OPERATIONS,
    *LIVE_OPERATIONS,
    *MEMORY_OPERATIONS,
    *REPORT_OPERATIONS,
    *USAGE_OPERATIONS,
    *STATUS_OPERATIONS,
    *METRICS_OPERATIONS,
    *CLIENT_OPERATIONS,
)


def create_app(settings: Settings, drain: Drain | None = None, also: Sequence[BaseRoute] = ()) -> Starlette:
    """The broker as an ASGI application; its parts are built when its lifespan begins.

    `drain` is shared with the server that drains it; without one the application never drains. `also` are routes
    besides the broker's own, matched after them.
    """
    shared_drain = drain or Drain()
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[BrokerState]:
        del app
        async with build_broker(settings, shared_drain, metrics) as state:
            metrics.registry.register(StateCollector(state["status"], version=__version__))
            yield state

    routes = _routes()
    app = Starlette(
        routes=[
            *routes,
            *openapi_routes(_OPERATIONS, [VOICELIVE_SOCKET, *COMPAT_SOCKETS, *LIVE_SOCKETS]),
            *client_routes(_azure_origins(settings)),
            *also,
        ],
        middleware=[
            # Outermost, so that requests which the others refuse have an id and are counted too.
            Middleware(RequestContextMiddleware, observe=metrics),
            Middleware(OriginGuard, settings=settings),
            Middleware(PlainPaths, socket_not_found=websocket_not_found),
            Middleware(ExactRoutes, routes=routes),
        ],
        exception_handlers={Problem: _answer_problem, HTTPException: _answer_http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.router.default = _not_found
    return app


def _azure_origins(settings: Settings) -> list[str]:
    """The origins that plans lead a browser to: Azure's own hosts, and the configured endpoint's if it is another."""
    own = []
    targets = [each.target for each in settings.resources]
    for base in [base for target in targets for base in (target.base, target.openai_base)]:
        schemes = ("https", "wss") if base.startswith("https:") else ("http", "ws")
        own += [f"{scheme}://{urlsplit(base).netloc}" for scheme in schemes]
    return [*AZURE_ORIGINS, *dict.fromkeys(own)]


@functools.cache
def _routes() -> Sequence[BaseRoute]:
    """The routes, the busiest first: they are matched in order. Each application has the same: they keep no state."""
    return (
        *_under(_VOICE_PREFIXES, "/realtime/token", create_token, ["POST"]),
        *_under(_VOICE_PREFIXES, "/realtime/calls", create_call, ["POST"]),
        *_under(_VOICE_PREFIXES, "/realtime/calls/attach", attach_call, ["POST"]),
        *_under(_VOICE_PREFIXES, "/realtime/calls/{call_id}", hang_up, ["DELETE"]),
        *_under(_VOICE_PREFIXES, "/realtime/calls/{call_id}/events", stream_events, ["GET"]),
        *_under(_VOICE_PREFIXES, "/status", get_status, ["GET"]),
        *_under(_VOICE_PREFIXES, "/config/{agent_id}", get_config, ["GET"]),
        WebSocketRoute(VOICELIVE_PATH, Voicelive()),
        Route(VOICELIVE_PATH, Voicelive()),
        *compat_routes(),
        *live_routes(),
        *_under(_VOICE_PREFIXES, "/conversation/turn", create_turn, ["POST"]),
        *_under(_VOICE_PREFIXES, "/realtime/report", report_talk, ["POST"]),
        *_under(_MEMORY_PREFIXES, "/enrich", enrich, ["POST"]),
        *_under(_MEMORY_PREFIXES, "/sessions/{session_id}/turns", list_turns, ["GET"]),
        *_under(_MEMORY_PREFIXES, "/sessions/{session_id}/turns", erase_turns, ["DELETE"]),
        Route("/api/v1/usage", get_usage, methods=["GET"]),
        Route("/healthz", get_health, methods=["GET"]),
        Route("/readyz", get_readiness, methods=["GET"]),
        Route("/metrics", get_metrics, methods=["GET"]),
    )


def _under(
    prefixes: Sequence[str], path: str, endpoint: Callable[[Request[Any]], Awaitable[Response]], methods: list[str]
) -> list[Route]:
    """The same route under several prefixes (docs/api.md §2.2)."""
    return [Route(prefix + path, endpoint, methods=methods) for prefix in prefixes]


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await websocket_not_found(scope, receive, send)
        return
    raise HTTPException(404)


async def _answer_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)  # noqa: S101  # Starlette hands over what it was registered for
    return problem_response(problem, request.scope)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals as problem documents."""
    assert isinstance(error, HTTPException)  # noqa: S101  # as above
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem_response(not_found(request.scope["path"]), request.scope)
    if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        detail = "The request can't be answered as it is."
        return problem_response(Problem(error.status_code, "http_error", detail, headers=error.headers), request.scope)
    # Several routes may share the path, and the one that refused names only its own methods.
    allowed = {
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    detail = "This path does not take this method; the Allow header names those it takes."
    problem = Problem(405, "method_not_allowed", detail, headers={"Allow": ", ".join(sorted(allowed))})
    return problem_response(problem, request.scope)
