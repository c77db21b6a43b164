"""Which web pages may ask: CORS, the WebSocket's Origin, and host names that no page may borrow.

The same rules for HTTP and WebSockets:

- *Host.* A broker that knows its public URL answers to that name and to loopback names alone; so does one that listens
  on loopback and knows none, for loopback names. A page whose own name was pointed at the broker (DNS rebinding) is
  refused, since its browser sends that name.
- *Origin.* A request without one comes from no page, and is admitted; `null` is refused; else it is the broker's own
  origin or one of BROKER_ALLOWED_ORIGINS. The own origin is the public URL's; where the broker knows none, the one that
  was asked for.

Cookies never travel across origins: credentials are not allowed in CORS.
"""

import functools
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strategies.endpoint import is_loopback
from token_broker.settings import Settings
from token_broker.web.forwarded import asked_host, client_of, normal_host
from token_broker.web.problems import Problem, problem_response, refuse_socket

__all__ = ["OriginGuard", "OriginRules"]

EXPOSED_HEADERS = "Location, Retry-After, X-Request-ID"
ALLOWED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
ALLOWED_HEADERS = (
    "Authorization, Content-Type, X-Session-Token, X-Request-ID, traceparent, tracestate, "
    # What the official clients add in a browser; the compatible endpoints take their keys.
    "api-key, OpenAI-Beta, OpenAI-Organization, OpenAI-Project, User-Agent, X-OpenAI-Agents-SDK"
)
_CLIENT_HEADER_PREFIX = "x-stainless-"
PREFLIGHT_MAX_AGE_S = 600
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_VARY = (b"vary", b"Origin")
_PROBES = frozenset({"/healthz", "/readyz"})  # a platform asks them by the container's address
_METRICS = "/metrics"
_DEFAULT_PORTS = frozenset({"80", "443"})


class OriginRules:
    """The rules as the settings have them; pure."""

    def __init__(self, settings: Settings) -> None:
        self._trusted_proxies = settings.trusted_proxies
        self._any = "*" in settings.allowed_origins
        self._public = _origin_of_url(settings.public_url) if settings.public_url else None  # None also where it is odd
        named = [*map(_origin_of_url, settings.allowed_origins), self._public]
        self._named = frozenset(origin for origin in named if origin is not None)
        reached_by_others = not is_loopback(settings.host) or bool(settings.trusted_proxies)
        self._any_host = settings.public_url is None and reached_by_others
        # A scraper asks each replica by its address; the token, which no page has, is what it proves itself with.
        self._any_host_paths = _PROBES | {_METRICS} if settings.metrics_token else _PROBES

    def refusal(self, scope: Scope) -> Problem | None:
        """Why this HTTP request or WebSocket handshake is not for its sender to make; None where it is."""
        if (problem := self.host_refusal(scope)) is not None:
            return problem
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
        """Whether the scope's `Origin` may ask; no `Origin` may, two may not."""
        origins = _values(scope, b"origin")
        if not origins:
            return True
        origin = _normal_origin(origins[0]) if len(origins) == 1 else None
        if origin is None:
            return False
        return self._any or origin in self._named or self._is_own(scope, origin)

    def host_refusal(self, scope: Scope) -> Problem | None:
        """Why the broker does not answer to the host that was asked for; None where it does."""
        if self._any_host or scope["path"] in self._any_host_paths:
            return None
        host = asked_host(scope, self._trusted_proxies)
        if host is not None and (_names_loopback(host) or _is_of(host, self._public)):
            return None
        return Problem(421, "host_not_served", _no_host(self._public))

    def _is_own(self, scope: Scope, origin: str) -> bool:
        """Whether `origin` is the one that was asked for: with a public URL that counts on loopback alone, for whoever
        sits at the machine.
        """
        host = asked_host(scope, self._trusted_proxies)
        if host is None or not (self._any_host or _names_loopback(host)):
            return False
        return origin == f"{client_of(scope, self._trusted_proxies).scheme}://{host}"


class OriginGuard:
    """Refuses what the rules refuse over HTTP, answers preflights, and adds the CORS headers to admitted answers.

    A WebSocket for a host that is not served gets the same 421. For the rest its route asks `OriginRules.refusal`
    itself, since some refuse with a close code.
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
                _add_cors(message, allowed)
            await send(message)

        await self._answer(scope, origin, allowed)(scope, receive, send_with_cors)

    def _answer(self, scope: Scope, origin: str | None, allowed: str | None) -> ASGIApp:
        """What answers: the application, unless it is refused or a preflight."""
        if (problem := self._rules.refusal(scope)) is not None:
            return problem_response(problem, scope)
        if scope["method"] != "OPTIONS" or origin is None or not _values(scope, b"access-control-request-method"):
            return self._app
        if allowed is None:
            return problem_response(Problem(403, "origin_not_allowed", "Pages of this origin may not ask here."), scope)
        return _preflight(Headers(scope=scope))


def _add_cors(start: Message, origin: str | None) -> None:
    if origin is None and not any(name == b"vary" for name, _ in start["headers"]):
        start["headers"] = [*start["headers"], _VARY]
        return
    headers = MutableHeaders(scope=start)
    headers.add_vary_header("Origin")
    if origin is not None:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS


def _preflight(asked: Headers) -> Response:
    """Leave for our methods and headers, and for the `x-stainless-…` ones that the official clients send."""
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
    """An origin in lower case without its default port; None for `null`, `*` and what is none."""
    scheme, _, authority = text.lower().partition("://")
    host = normal_host(authority, scheme) if scheme in {"http", "https"} else None
    return None if host is None else f"{scheme}://{host}"


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


def _no_host(public: str | None) -> str:
    if public is None:
        return (
            "This broker listens on loopback and answers to loopback names such as localhost alone. To serve it under "
            "another name, set BROKER_PUBLIC_URL, or BROKER_TRUSTED_PROXIES behind a proxy."
        )
    return (
        f"This broker answers to {public} and to loopback names alone. To serve it under another name, set "
        "BROKER_PUBLIC_URL to that, or BROKER_TRUSTED_PROXIES where a proxy sends another Host than it was asked for."
    )


@functools.lru_cache(maxsize=256)
def _names_loopback(host: str) -> bool:
    return is_loopback(_name_and_port(host)[0])


@functools.lru_cache(maxsize=256)
def _is_of(host: str, public: str | None) -> bool:
    """Whether `host` is the public URL's. Its port may be left out, or be a default one, as some proxies have it."""
    if public is None:
        return False
    name, port = _name_and_port(public.partition("://")[2])
    asked_name, asked_port = _name_and_port(host)
    return asked_name == name and (asked_port in {"", port} or asked_port in _DEFAULT_PORTS)


def _name_and_port(host: str) -> tuple[str, str]:
    """A normal host's two parts; no port is an empty one."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and not port.endswith("]") else (host, "")
