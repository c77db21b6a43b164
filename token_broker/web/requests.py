"""What a route reads of a request, within limits, and the problem that answers what it can't serve.

- Its id, and the ids that the broker gives to what it makes: `correlation_id`, `uuid7`.
- A refusal: an RFC 9457 problem document. Raise `Problem` anywhere below a route; the app answers it as
  `application/problem+json`. A detail says what the caller can do. It never contains Azure's text, a secret or an
  internal URL.
- Its body and its bearer token: `read_body`, `parse_json`, `bearer_token`.
- Who sent it, and to which host, behind trusted proxies. Only this module reads `X-Forwarded-*`, for HTTP and WebSocket
  scopes alike; uvicorn's own proxy handling is off. Nothing in these headers counts unless BROKER_TRUSTED_PROXIES says
  so.

This module imports none of ours: nearly every route and every protocol imports it.
"""

import asyncio
import functools
import ipaddress
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

__all__ = [
    "MAX_JSON_VALUES",
    "SESSION_TOKEN_HEADER",
    "UNKNOWN_ADDRESS",
    "Problem",
    "ResolvedClient",
    "address_key",
    "asked_host",
    "bearer_of",
    "bearer_token",
    "client_address",
    "client_of",
    "correlation_id",
    "ensure_few_values",
    "normal_host",
    "parse_json",
    "problem_response",
    "public_base",
    "read_body",
    "refuse_socket",
    "session_tokens",
    "uuid7",
    "websocket_url",
    "whole_number",
    "without_half_surrogates",
    "without_scheme",
]

SESSION_TOKEN_HEADER = "X-Session-Token"  # noqa: S105  # a header's name

M = TypeVar("M", bound=BaseModel)

MAX_JSON_VALUES = 5_000
"""The most strings, and the most commas and colons, of a body: four times those of a hundred transcripts.

Each key and value may cost an error of pydantic. The 80,000 that fit into a megabyte block the event loop for 250 ms.
"""

# Half a surrogate pair, as an escape or as the three bytes that some writers make of it. A text that was cut within an
# emoji ends with one. JSON allows the escape (RFC 8259 §8.2), and neither UTF-8 nor a database has such a character.
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_ESCAPED = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_HALF_ENCODED = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")

_MAX_NAME_CHARS = 64
_MAX_FIELDS_NAMED = 8
_MAX_LENGTH_DIGITS = 20  # enough for 64 bits; Python's int() raises above 4,300 digits

# Their clients show `error.message` of an answer, and know nothing of problem documents.
_OFFICIAL_CLIENTS_PATHS = re.compile(r"/v1/|/openai/|/voice-live/|/api/v1/voice/voicelive/[^/]+/")

UNKNOWN_ADDRESS = "unknown"
MAX_PROXIES_WALKED = 32  # bounds the cost of a header with thousands of addresses

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Scheme = Literal["http", "https"]
_SCHEMES: dict[str, _Scheme] = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_AUTHORITY = re.compile(
    r"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>\d{1,5}))?"
)


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of unix milliseconds, then 74 random ones."""
    # By hand: the standard library has uuid7 from Python 3.14 on.
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def correlation_id(scope: Scope) -> str:
    """The request's id, as in `X-Request-ID`. Empty where RequestContextMiddleware did not see the request."""
    return str(scope.get("state", {}).get("correlation_id", ""))


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """A refusal or a failure to report to the caller.

    `code` is stable, for programs. `extra` are extension members of the document (RFC 9457 §3.2).
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def document(self, correlation_id: str) -> dict[str, Any]:
        """The document's members. `type` is a URN with the code, `title` the status' reason phrase."""
        return {
            "type": f"urn:voice-token-broker:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "correlation_id": correlation_id,
            **self.extra,
        }

    def api_error(self) -> dict[str, Any]:
        """The problem in the form of OpenAI's `error` object."""
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        return {"message": self.detail, "type": kind, "code": self.code, "param": None}


def problem_response(problem: Problem, scope: Scope) -> JSONResponse:
    """The response for `problem`. On the official clients' paths it has OpenAI's `error` too, which they display."""
    headers = {"Cache-Control": "no-store", **problem.headers}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers.setdefault("WWW-Authenticate", "Bearer")
    document = problem.document(correlation_id(scope))
    if _OFFICIAL_CLIENTS_PATHS.match(scope["path"]):
        document["error"] = problem.api_error()
    return JSONResponse(document, problem.status, headers, media_type="application/problem+json")


async def refuse_socket(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a WebSocket handshake with `problem`, or with ASGI's plain 403 where the server has no such extension."""
    await receive()  # websocket.connect
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    response = problem_response(problem, scope)
    response.headers["X-Request-ID"] = correlation_id(scope)  # RequestContextMiddleware sets it on HTTP responses only
    await response(scope, receive, send)


def bearer_token(request: Request[Any]) -> str | None:
    """What stands behind `Authorization: Bearer`, or None."""
    return bearer_of(request.headers.get("authorization", "")) or None


def bearer_of(authorization: str) -> str:
    """The credential of an Authorization header's value; empty where its scheme is not Bearer."""
    scheme, _, credential = authorization.strip().partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""


def session_tokens(scope: Scope) -> list[str]:
    """What may be the request's session token: the Bearer, then X-Session-Token; each where it is there.

    A platform in front of the broker may put a token of its own into Authorization, in place of the client's.
    """
    headers = Headers(scope=scope)
    found = (bearer_of(headers.get("authorization", "")), without_scheme(headers.get(SESSION_TOKEN_HEADER, "")))
    return [token for token in found if token]


def without_scheme(text: str) -> str:
    """A credential without the `Bearer` that may stand before it."""
    scheme, _, credential = text.strip().partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else text.strip()


async def read_body(request: Request[Any], *, limit_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Raises Problem: 413 when it is larger than `limit_bytes`, 408 when it takes too long."""
    declared = request.headers.get("content-length", "")
    if len(declared) > _MAX_LENGTH_DIGITS:
        raise Problem(400, "malformed_request", "Send a Content-Length without leading zeros.")
    # Before anything is read; the loop below bounds chunked bodies, which declare no length.
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "client_left", "The connection ended before the body did.")
                body += message.get("body", b"")
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Problem(408, "body_timeout", f"Send the whole body within {timeout_s:g} s.") from None
    return bytes(body)


def _too_large(limit_bytes: int) -> Problem:
    return Problem(413, "body_too_large", f"Send at most {limit_bytes} bytes.")


def ensure_few_values(body: bytes) -> None:
    """Raises Problem 422 where JSON has more values than MAX_JSON_VALUES, which is counted without parsing it."""
    if body.count(b'"') <= 2 * MAX_JSON_VALUES and body.count(b",") + body.count(b":") <= MAX_JSON_VALUES:
        return
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') <= 2 * MAX_JSON_VALUES:
        outside = b"".join(unescaped.split(b'"')[::2])  # commas and colons inside strings do not count
        if outside.count(b",") + outside.count(b":") <= MAX_JSON_VALUES:
            return
    raise _invalid([{"field": "body", "message": f"has more than {MAX_JSON_VALUES} keys and values"}])


def without_half_surrogates(body: bytes) -> bytes:
    """A JSON object with U+FFFD in place of half surrogate pairs, so that the rest of its text is kept.

    Any other body is left as it is: no route takes a text that stands alone.
    """
    if not body.lstrip().startswith(b"{"):
        return body
    if rb"\u" in body and _HALF_ESCAPED.search(body):
        # Escaped backslashes are written otherwise first: in `\\ud83d` the `u` escapes nothing.
        body = _HALF_ESCAPED.sub(rb"\\ufffd", body.replace(rb"\\", rb"\u005c"))
    return _HALF_ENCODED.sub("\ufffd".encode(), body)


def parse_json(body: bytes, model: type[M]) -> M:
    """`body` as `model`. An empty body counts as `{}`, half a surrogate pair as U+FFFD.

    Raises Problem: 400 for invalid JSON, 422 naming the fields.
    """
    body = without_half_surrogates(body)
    ensure_few_values(body)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(item["type"] == "json_invalid" for item in found):
        raise Problem(400, "invalid_json", "Send a body that is valid JSON, in UTF-8.")
    fields = [
        {"field": ".".join(str(part)[:_MAX_NAME_CHARS] for part in item["loc"]) or "body", "message": item["msg"]}
        for item in found[:_MAX_FIELDS_NAMED]
    ]
    raise _invalid(fields, more=len(found) - len(fields))


def whole_number(value: object) -> object:
    """Takes 60.0 for 60, as a validator: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _invalid(fields: list[dict[str, str]], *, more: int = 0) -> Problem:
    named = "; ".join(f"{field['field']}: {field['message']}" for field in fields)
    others = f"; and {more} more" if more else ""
    return Problem(422, "invalid_request", f"Invalid request: {named}{others}.", extra={"errors": fields})


@dataclass(frozen=True, slots=True)
class ResolvedClient:
    """The client behind a request. `address` is an IP address or `unknown`; `host` has no default port."""

    address: str
    scheme: _Scheme
    host: str


@dataclass(frozen=True, slots=True)
class _TrustedProxies:
    """BROKER_TRUSTED_PROXIES: a number of hops, or networks. Neither trusts nothing."""

    hops: int = 0
    networks: tuple[_Network, ...] = ()

    def includes(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self.networks)


def client_of(scope: Scope, trusted_proxies: tuple[str, ...]) -> ResolvedClient:
    """The client behind `scope`; `trusted_proxies` as in the settings.

    With hops, proxies added that many addresses left of the peer's. With networks, the addresses are followed to the
    left while each is trusted. Everything further left is the caller's own claim, and ignored.
    """
    address, scheme, host = _resolve(scope, trusted_proxies)
    host = host or _listening_host(scope, scheme)
    return ResolvedClient(str(address) if address is not None else UNKNOWN_ADDRESS, scheme, host)


def asked_host(scope: Scope, trusted_proxies: tuple[str, ...]) -> str | None:
    """The requested host, as in `client_of`; None where there are two Host headers, or an invalid one.

    Without a Host header it is the address that was connected to.
    """
    _, scheme, host = _resolve(scope, trusted_proxies)
    return host if host or _values(scope, b"host") else _listening_host(scope, scheme)


def public_base(scope: Scope, public_url: str | None, trusted_proxies: tuple[str, ...]) -> str:
    """The base of URLs in plans: BROKER_PUBLIC_URL, else the requested scheme and host. No trailing slash."""
    if public_url is not None:
        return public_url.strip().rstrip("/")
    client = client_of(scope, trusted_proxies)
    return f"{client.scheme}://{client.host}"


def websocket_url(base: str) -> str:
    """The base for WebSockets: `http` becomes `ws`, `https` becomes `wss`."""
    return f"ws{base.removeprefix('http')}"


def client_address(scope: Scope, trusted_proxies: tuple[str, ...]) -> str:
    """The caller's address only, as in `client_of`."""
    peer = scope["client"][0] if scope.get("client") else None
    if not trusted_proxies:
        return peer or UNKNOWN_ADDRESS
    parsed = _parse_address(peer) if peer else None
    address, _ = _walk(parsed, _listed(scope, b"x-forwarded-for"), _parse_trusted(trusted_proxies))
    return str(address) if address is not None else UNKNOWN_ADDRESS


@functools.lru_cache(maxsize=4096)
def address_key(address: str) -> str:
    """The key of an anonymous caller's rate limit: the address, or the /64 network of an IPv6 address.

    One household has a whole /64, so it could use a new address for each request.
    """
    parsed = _parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed) if parsed is not None else UNKNOWN_ADDRESS


def normal_host(authority: str, scheme: str) -> str | None:
    """`authority` in lower case, IPv6 in its short form, without the root's dot and the scheme's default port.

    None where it is not `host` or `host:port`.
    """
    match = _AUTHORITY.fullmatch(authority.strip())
    if match is None:
        return None
    name, port = match["name"].lower().removesuffix("."), match["port"]
    if name.startswith("["):
        try:
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return None
    # Browsers leave the default port out of Origin and Host, some proxies do not.
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return name
    return f"{name}:{int(port)}" if int(port) <= 65_535 else None  # noqa: PLR2004


def _resolve(scope: Scope, trusted_proxies: tuple[str, ...]) -> tuple[_Address | None, _Scheme, str | None]:
    """Address, scheme and host: those that trusted proxies sent, else the request's own. Host is None if invalid."""
    trusted = _parse_trusted(trusted_proxies)
    peer = _parse_address(scope["client"][0]) if scope.get("client") else None
    address, trusted_hops = _walk(peer, _listed(scope, b"x-forwarded-for"), trusted)
    scheme = _SCHEMES.get(scope["scheme"], "http")
    host = None
    if trusted_hops:
        scheme = _SCHEMES.get(_value_from(scope, b"x-forwarded-proto", trusted_hops).lower(), scheme)
        host = normal_host(_value_from(scope, b"x-forwarded-host", trusted_hops), scheme)
    if host is None and len(values := _values(scope, b"host")) == 1:
        host = normal_host(values[0], scheme)
    return address, scheme, host


@functools.lru_cache(maxsize=16)
def _parse_trusted(trusted_proxies: tuple[str, ...]) -> _TrustedProxies:
    if len(trusted_proxies) == 1 and trusted_proxies[0].isdecimal():
        return _TrustedProxies(hops=int(trusted_proxies[0]))
    return _TrustedProxies(networks=tuple(ipaddress.ip_network(item, strict=False) for item in trusted_proxies))


def _walk(peer: _Address | None, chain: Sequence[str], trusted: _TrustedProxies) -> tuple[_Address | None, int]:
    """The first address from the right that is not a trusted proxy's, and how many proxies are to its right."""
    address, walked = peer, 0
    while walked < MAX_PROXIES_WALKED and (walked < trusted.hops or trusted.includes(address)):
        walked += 1
        if walked > len(chain) or (previous := _parse_address(chain[-walked])) is None:
            break
        address = previous
    return address, walked


@functools.lru_cache(maxsize=4096)
def _parse_address(text: str) -> _Address | None:
    """An address as proxies write it: bare, `1.2.3.4:567`, `[::1]`, `[::1]:567`, with a zone, or IPv4 in IPv6."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack socket reports IPv4 peers as IPv6, which no IPv4 network would contain.
    return getattr(address, "ipv4_mapped", None) or address


def _listening_host(scope: Scope, scheme: str) -> str:
    """The address that was connected to, as a host."""
    name, port = scope.get("server") or ("localhost", None)
    name = f"[{name}]" if ":" in name else name
    return normal_host(f"{name}:{port}" if port else name, scheme) or "localhost"


def _value_from(scope: Scope, name: bytes, proxies: int) -> str:
    """The value from the outermost of `proxies` trusted ones. Proxies append, so it is that far from the right."""
    values = _listed(scope, name)
    return values[-min(proxies, len(values))] if values else ""


def _listed(scope: Scope, name: bytes) -> list[str]:
    """The items of a list header, over all its lines."""
    return [item.strip() for value in _values(scope, name) for item in value.split(",")]


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]
