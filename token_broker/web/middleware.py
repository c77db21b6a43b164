"""What every request passes before its route.

In their order: `RequestContextMiddleware` (ids, a last error handler, an event for each response), `OriginGuard`,
`PlainPaths`, and `ExactRoutes`, which finds most routes.

Which web pages may send requests is decided by `OriginRules`, the same for HTTP and WebSockets:

- *Host.* A broker that knows its public URL answers to that name and to loopback names only. One that listens on
  loopback and knows no public URL answers to loopback names only. This refuses a page whose own name was pointed at the
  broker (DNS rebinding), because its browser sends that name.
- *Origin.* A request without Origin does not come from a page, and is admitted; `null` is refused, and so is `file://`,
  which any local file has. Else the origin has to be the broker's own or one of BROKER_ALLOWED_ORIGINS. The broker's
  own origin is that of the public URL, or, where there is none, the one that was requested.

Cookies never travel across origins: CORS responses do not allow credentials.
"""

import functools
import re
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strategies.endpoint import is_loopback
from token_broker.observability.events import Observer, RequestAnswered, TraceContext
from token_broker.observability.logging import LOGGED_IDS
from token_broker.settings import APP_ORIGIN, Settings
from token_broker.web.requests import (
    Problem,
    asked_host,
    client_of,
    normal_host,
    problem_response,
    refuse_socket,
    uuid7,
)

__all__ = ["ExactRoutes", "OriginGuard", "OriginRules", "PlainPaths", "RequestContextMiddleware", "not_found"]

log = structlog.get_logger("token_broker.web.requests")

# Anything else could forge lines of a log, or headers of the response.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context §3.2
_HEADERS = frozenset({b"x-request-id", b"traceparent", b"tracestate"})
_MAX_TRACESTATE_BYTES = 512  # what W3C Trace Context §3.3.1.5 asks to propagate at least
_CLIENT_LEFT = 499  # nginx's code for a client that closed before the response

EXPOSED_HEADERS = "Location, Retry-After, X-Request-ID"
ALLOWED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
ALLOWED_HEADERS = (
    "Authorization, Content-Type, Last-Event-ID, X-Session-Token, X-Request-ID, traceparent, tracestate, "
    # The official clients send these in a browser.
    "api-key, OpenAI-Beta, OpenAI-Organization, OpenAI-Project, User-Agent, X-OpenAI-Agents-SDK"
)
_CLIENT_HEADER_PREFIX = "x-stainless-"
PREFLIGHT_MAX_AGE_S = 600  # short, so that a changed configuration takes effect soon
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_VARY = (b"vary", b"Origin")  # a cache must not serve one origin's response to another
_PROBES = frozenset({"/healthz", "/readyz"})  # a platform requests them by the container's address
_METRICS = "/metrics"
_DEFAULT_PORTS = frozenset({"80", "443"})

# A slash, backslash, dot or NUL that is written as something else, once or several times over.
_DISGUISED = re.compile(rb"%(?:25)*(?:2f|5c|2e|00)", re.IGNORECASE)
_NO_PATH = re.compile(r"[\x00-\x1f\x7f\\]|(?:^|/)\.\.?(?:/|$)")


class RequestContextMiddleware:
    """Sets `scope["state"]["correlation_id"]` and `X-Request-ID`, and answers an uncaught exception with a problem 500.

    A valid `X-Request-ID` of the caller is kept. A `traceparent` becomes `scope["state"]["trace"]`.
    """

    def __init__(self, app: ASGIApp, observe: Observer) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        began_s = time.monotonic()
        request_id, correlation_id = _identify(scope)
        if scope["type"] == "websocket":  # it has no single answer to report: the relay reports its talks
            await self.app(scope, receive, send)
            return
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            log.error(
                "request_failed",
                correlation_id=correlation_id,
                path=scope["path"],
                error=type(error).__name__,
                exc_info=error,
            )
            if status:  # the response has begun: uvicorn closes the connection, so that nobody takes it for complete
                raise
            problem = Problem(
                500, "internal_error", "Something failed here; quote the correlation_id when you report it."
            )
            await problem_response(problem, scope)(scope, receive, send_with_id)
        finally:
            # The route's template, not the path: the values of a metric's label have to be few.
            route = scope.get("route")
            template = "unmatched" if route is None else route.path or "/"
            self.observe(RequestAnswered(scope["method"], template, status or _CLIENT_LEFT, time.monotonic() - began_s))


def _identify(scope: Scope) -> tuple[bytes, str]:
    """The request's id, as header and as text. Stores it and the caller's trace in the scope and for log lines."""
    found = {name: value for name, value in scope["headers"] if name in _HEADERS}
    request_id = found.get(b"x-request-id", b"")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid7().encode()
    correlation_id = request_id.decode()
    state = scope.setdefault("state", {})
    state["correlation_id"] = correlation_id
    ids = {"correlation_id": correlation_id}
    if (parent := found.get(b"traceparent")) is not None and (match := _TRACEPARENT.fullmatch(parent)) is not None:
        tracestate = found.get(b"tracestate", b"")[:_MAX_TRACESTATE_BYTES].decode("latin-1")
        state["trace"] = TraceContext(parent.decode(), tracestate)
        ids["trace_id"] = match[1].decode()
    LOGGED_IDS.set(ids)
    return request_id, correlation_id


class OriginRules:
    """The rules of the settings. Pure."""

    def __init__(self, settings: Settings) -> None:
        self._trusted_proxies = settings.trusted_proxies
        self._any = "*" in settings.allowed_origins
        self._public = (
            _origin_of_url(settings.public_url) if settings.public_url else None
        )  # None also where it is invalid
        named = [*map(_origin_of_url, settings.allowed_origins), self._public]
        self._named = frozenset(origin for origin in named if origin is not None)
        reached_by_others = not is_loopback(settings.host) or bool(settings.trusted_proxies)
        self._any_host = settings.public_url is None and reached_by_others
        # A scraper requests each replica by its address. It has the token, which no page has.
        self._any_host_paths = _PROBES | {_METRICS} if settings.metrics_token else _PROBES
        served, condition = "loopback names such as localhost", "behind a proxy"
        if self._public is not None:
            served = f"{self._public} and to loopback names"
            condition = "where a proxy sends another Host than it was asked for"
        self._unserved_host = (
            f"This broker answers to {served} only. To serve it under another name, set BROKER_PUBLIC_URL, or "
            f"BROKER_TRUSTED_PROXIES {condition}."
        )

    def refusal(self, scope: Scope) -> Problem | None:
        """The reason to refuse this HTTP request or WebSocket handshake, or None."""
        if (problem := self.host_refusal(scope)) is not None:
            return problem
        # A handshake is a GET, but browsers send it across origins without asking CORS.
        changes_state = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        if changes_state and not self.admits(scope):
            return Problem(
                403,
                "origin_not_allowed",
                "Pages of this origin may not ask here. Its operator can list it in BROKER_ALLOWED_ORIGINS; a broker "
                "behind a proxy has to know its own address from BROKER_PUBLIC_URL or BROKER_TRUSTED_PROXIES.",
            )
        return None

    def admits(self, scope: Scope) -> bool:
        """Whether the scope's `Origin` is allowed. A scope without one is; one with two is not."""
        origins = _values(scope, b"origin")
        if not origins:
            return True
        origin = _normal_origin(origins[0]) if len(origins) == 1 else None
        if origin is None:
            return False
        if self._any or origin in self._named:
            return True
        host = asked_host(scope, self._trusted_proxies)
        # With a public URL, the requested origin counts on loopback only: for the operator at the machine.
        if host is None or not (self._any_host or _names_loopback(host)):
            return False
        return origin == f"{client_of(scope, self._trusted_proxies).scheme}://{host}"

    def host_refusal(self, scope: Scope) -> Problem | None:
        """The reason to refuse the requested host, or None."""
        if self._any_host or scope["path"] in self._any_host_paths:
            return None
        host = asked_host(scope, self._trusted_proxies)
        if host is not None and (_names_loopback(host) or _is_public(host, self._public)):
            return None
        return Problem(421, "host_not_served", self._unserved_host)


class OriginGuard:
    """Applies the rules to HTTP, answers preflight requests, and adds CORS headers to responses for allowed origins.

    A WebSocket for another host gets the same 421. Its route asks `OriginRules.refusal` for the rest itself, because
    some routes refuse with a close code.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._rules = OriginRules(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and (problem := self._rules.host_refusal(scope)) is not None:
            await refuse_socket(problem, scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = next(iter(_values(scope, b"origin")), None)
        allowed = origin if self._rules.admits(scope) else None

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                if allowed is None and not any(name == b"vary" for name, _ in message["headers"]):
                    message["headers"] = [*message["headers"], _VARY]  # the usual case: saves parsing the headers
                else:
                    headers = MutableHeaders(scope=message)
                    headers.add_vary_header("Origin")
                    if allowed is not None:
                        headers["Access-Control-Allow-Origin"] = allowed
                        headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
            await send(message)

        app = self._app
        if (problem := self._rules.refusal(scope)) is not None:
            app = problem_response(problem, scope)
        elif scope["method"] == "OPTIONS" and origin is not None and _values(scope, b"access-control-request-method"):
            if allowed is not None:
                app = _preflight(Headers(scope=scope))
            else:
                detail = "Pages of this origin may not ask here."
                app = problem_response(Problem(403, "origin_not_allowed", detail), scope)
        await app(scope, receive, send_with_cors)


def _preflight(asked: Headers) -> Response:
    """Allows our methods and headers, and the `x-stainless-…` headers that the official clients send."""
    names = [name.strip().lower() for name in asked.get("access-control-request-headers", "").split(",")]
    clients = [n for n in names if n.startswith(_CLIENT_HEADER_PREFIX) and n.replace("-", "").isalnum()]
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": ALLOWED_METHODS,
            "Access-Control-Allow-Headers": ", ".join([ALLOWED_HEADERS, *clients]),
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
        },
    )


def _origin_of_url(url: str) -> str | None:
    parts = urlsplit(url.strip())
    return _normal_origin(f"{parts.scheme}://{parts.netloc.removesuffix(':')}")


def _normal_origin(text: str) -> str | None:
    """An origin in lower case without its default port; None for `null`, `*`, `file://` and anything else."""
    text = text.lower()
    if APP_ORIGIN.fullmatch(text):
        return text
    scheme, _, authority = text.partition("://")
    host = normal_host(authority, scheme) if scheme in {"http", "https"} else None
    return None if host is None else f"{scheme}://{host}"


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


@functools.lru_cache(maxsize=256)
def _names_loopback(host: str) -> bool:
    return is_loopback(_name_and_port(host)[0])


@functools.lru_cache(maxsize=256)
def _is_public(host: str, public: str | None) -> bool:
    """Whether `host` is the public URL's. Some proxies leave out its port, or send a default one."""
    if public is None:
        return False
    name, port = _name_and_port(public.partition("://")[2])
    asked_name, asked_port = _name_and_port(host)
    return asked_name == name and (asked_port in {"", port} or asked_port in _DEFAULT_PORTS)


def _name_and_port(host: str) -> tuple[str, str]:
    """A normalized host's name and port; the port may be empty."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and not port.endswith("]") else (host, "")


class PlainPaths:
    """Answers 404 to paths that say one thing to us and another to what stands before us.

    A server decodes `%2f` before the application sees it, so `/realtime%2ftoken` would reach a route that a proxy's
    rules for `/realtime/` never saw. Encoded separators and dots, backslashes, control characters and the segments
    `.` and `..` are in no path of ours. WebSockets go to `socket_not_found`.
    """

    def __init__(self, app: ASGIApp, socket_not_found: ASGIApp) -> None:
        self._app = app
        self._socket_not_found = socket_not_found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_plain(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket_not_found(scope, receive, send)
        else:
            await problem_response(not_found(scope["path"]), scope)(scope, receive, send)


def not_found(path: str) -> Problem:
    """The answer for a path that leads nowhere. Of OpenAI's and Azure's paths it names those that are served."""
    detail = "There is nothing at this path; /openapi.json lists what there is."
    if "realtime" in path:
        detail = (
            "There is nothing at this path. POST /v1/realtime/client_secrets mints a client secret; with it a "
            "WebSocket opens at /v1/realtime or /voice-live/realtime, and an SDP offer goes to POST "
            "/v1/realtime/calls. /openapi.json lists all paths."
        )
    return Problem(404, "not_found", detail)


def _is_plain(scope: Scope) -> bool:
    raw: bytes = scope.get("raw_path") or b""
    return not (b"%" in raw and _DISGUISED.search(raw)) and _NO_PATH.search(scope["path"]) is None


class ExactRoutes:
    """Serves those of `routes` that have no path parameters, by a dictionary, and hands all else to `app`.

    Starlette tries one pattern after another, and wraps `send` and catches exceptions for handlers and middleware that
    these routes lack. That costs about 60 µs a request: of the application's CPU time (both in one run, 2026-11-29)
    60 % of a probe's, 22 % of a stored turn's and 4 % of a token request's.

    Endpoints may raise `Problem`, which is answered as everywhere else. A path's other methods are left to `app`.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes: dict[tuple[str, str], Route] = {}
        for route in routes:
            if isinstance(route, Route) and not route.param_convertors:
                for method in route.methods or ():
                    self._routes.setdefault((method, route.path), route)  # the first one counts, as in Starlette

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        scope["path_params"] = {}
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request)
        except Problem as problem:
            response = problem_response(problem, scope)
        await response(scope, receive, send)
