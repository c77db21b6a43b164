"""Servers that hooks are posted to: one that keeps what it got, and one that answers as it is told, byte by byte."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from pydantic import SecretStr

from token_broker.hooks.secrets import WebhookSecret, parse_webhook_secrets

__all__ = ["SECRET", "RawServer", "Received", "answered", "hangs", "raw_server", "secrets"]

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def secrets() -> tuple[WebhookSecret, ...]:
    return parse_webhook_secrets(SecretStr(SECRET))


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came: its line, its headers in small letters, its body's bytes."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class RawServer:
    """What a server got, and where it is. `port` is on loopback."""

    port: int
    answer: Answer
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # a whole request has come

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/tool"


@contextlib.asynccontextmanager
async def raw_server(answer: Answer) -> AsyncIterator[RawServer]:
    """Reads whole requests, and has `answer` write what it wants; the connection ends when `answer` does."""
    running: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        server.connections += 1
        try:
            line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            server.received.append(Received(line, headers, body))
            server.asked.set()
            await server.answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the server ends: asyncio would log a task that was cancelled
        finally:
            running.discard(task)
            writer.close()

    listener = await asyncio.start_server(converse, "127.0.0.1", 0)
    server = RawServer(listener.sockets[0].getsockname()[1], answer)
    try:
        yield server
    finally:
        listener.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def answered(body: bytes = b"", *, status: int = 200, headers: str = "") -> Answer:
    """A whole answer, and the end of the connection."""

    async def write(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
        writer.write(head.encode() + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    return write


async def hangs(_writer: asyncio.StreamWriter) -> None:
    """No answer."""
    await asyncio.sleep(60)
