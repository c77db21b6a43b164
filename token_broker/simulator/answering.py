"""Plain answers below Starlette, for HTTP and WebSocket handshakes alike, and the marks that every answer carries."""

import uuid
from collections.abc import Callable
from email.utils import formatdate

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from token_broker.simulator.errors import AzureError
from token_broker.simulator.seen import SeenRequest

_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_DISCONNECTS = frozenset({"http.disconnect", "websocket.disconnect"})


Marks = list[tuple[bytes, bytes]]

SIMULATED: Marks = [(b"x-simulated", b"true")]
# Browsers post their offers to Azure directly, from any page; and they read refusals as well.
_CORS: Marks = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"location, retry-after, apim-request-id, x-simulated"),
]


def marks(now: Callable[[], float]) -> Marks:
    """Headers of every answer: Azure's request id and date, and the plain word that this is a simulation."""
    date = formatdate(now(), usegmt=True).encode()
    return [*SIMULATED, *_CORS, (b"date", date), (b"apim-request-id", str(uuid.uuid4()).encode())]


def marking(send: Send, marks: Callable[[], Marks], entry: SeenRequest | None = None) -> Send:
    """Wraps `send`: puts the marks on each answer, and notes in `entry` what was answered."""

    async def marked(message: Message) -> None:
        if message["type"] in _STARTS:
            message = {**message, "headers": [*message.get("headers", []), *marks()]}
        if entry is not None:
            entry.note_sent(message)
        await send(message)

    return marked


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
    """Lets a browser send whatever it asks about: official clients add headers of their own."""
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
