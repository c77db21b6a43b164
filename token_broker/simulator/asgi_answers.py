"""Answers below Starlette, for HTTP and WebSocket handshakes alike, and the headers that every answer carries."""

import uuid
from collections.abc import Callable
from email.utils import formatdate

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from token_broker.simulator.azure_errors import AzureError
from token_broker.simulator.records.request_log import SeenRequest

_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_DISCONNECTS = frozenset({"http.disconnect", "websocket.disconnect"})

RawHeaders = list[tuple[bytes, bytes]]

SIMULATED: RawHeaders = [(b"x-simulated", b"true")]


def common_headers(now: Callable[[], float]) -> RawHeaders:
    """Headers of every answer: Azure's request id and date, CORS, and the one that says that this is a simulation."""
    date = formatdate(now(), usegmt=True).encode()
    return [
        *SIMULATED,
        # Pages of any origin post their offers to Azure themselves, and read refusals too.
        (b"access-control-allow-origin", b"*"),
        (b"access-control-expose-headers", b"Location,X-Request-Id"),
        (b"date", date),
        (b"apim-request-id", str(uuid.uuid4()).encode()),
    ]


def with_headers(send: Send, headers: Callable[[], RawHeaders], entry: SeenRequest | None = None) -> Send:
    """Wraps `send`: adds the headers to each answer, and notes in `entry` what was answered."""

    async def wrapped(message: Message) -> None:
        if message["type"] in _STARTS:
            message = {**message, "headers": [*message.get("headers", []), *headers()]}
        if entry is not None:
            entry.note_sent(message)
        await send(message)

    return wrapped


async def respond(scope: Scope, send: Send, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    """Answers an HTTP request, or refuses a WebSocket handshake, with a whole body."""
    prefix = "websocket." if scope["type"] == "websocket" else ""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    if status in (204, 304):
        body = b""
    else:
        raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": raw})
    await send({"type": f"{prefix}http.response.body", "body": body, "more_body": False})


async def respond_to_preflight(scope: Scope, send: Send) -> None:
    """Allows every header that a browser asks about: official clients add headers of their own."""
    asked = Headers(scope=scope).get("access-control-request-headers", "authorization, content-type, api-key")
    headers = [
        ("access-control-allow-methods", "GET, POST, OPTIONS"),
        ("access-control-allow-headers", asked),
        ("access-control-max-age", "600"),
    ]
    await respond(scope, send, 200, headers, b"")


async def respond_error(scope: Scope, send: Send, error: AzureError) -> None:
    """As `respond`, with an error of Azure's."""
    headers = [("content-type", error.media_type), *error.headers.items()]
    await respond(scope, send, error.status, headers, error.body)


async def client_left(receive: Receive) -> None:
    """Returns once the client has gone. What it sends meanwhile is read and dropped."""
    while (await receive())["type"] not in _DISCONNECTS:
        pass
