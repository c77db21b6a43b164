"""A scripted Azure on a real socket: a WebSocket server of which a test controls every step and byte."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

Event = dict[str, Any]
Script = Callable[["AzureTalk"], Awaitable[None]]


@dataclass
class AzureTalk:
    """One connection that Azure accepted."""

    connection: ServerConnection
    path: str
    headers: Headers
    received: list[Event] = field(default_factory=list)
    raw: list[str | bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def dialect(self) -> str:
        return "preview" if "/voice-live/" in self.path else "ga"

    async def send(self, event: Event) -> None:
        await self.connection.send(json.dumps(event, separators=(",", ":")))

    async def say(self, item_id: str, text: str, *, response_id: str = "resp_1", previous: str | None = None) -> None:
        """A whole spoken answer, with a little audio."""
        ga = self.dialect == "ga"
        audio, transcript = ("output_audio", "output_audio_transcript") if ga else ("audio", "audio_transcript")
        about = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        await self.send({"type": "response.created", "response": {"id": response_id, "status": "in_progress"}})
        await self.send(
            {
                "type": "conversation.item.added" if ga else "conversation.item.created",
                "previous_item_id": previous,
                "item": {"id": item_id, "type": "message", "role": "assistant", "content": []},
            }
        )
        await self.send({"type": f"response.{audio}.delta", **about, "delta": "AAAA" * 8})
        await self.send({"type": f"response.{transcript}.delta", **about, "delta": text[: len(text) // 2]})
        await self.send({"type": f"response.{transcript}.delta", **about, "delta": text[len(text) // 2 :]})
        await self.send({"type": f"response.{transcript}.done", **about, "transcript": text})
        await self.send(
            {
                "type": "response.done",
                "response": {
                    "id": response_id,
                    "status": "completed",
                    "usage": {"total_tokens": 30, "input_tokens": 10, "output_tokens": 20},
                },
            }
        )

    async def hear(self, item_id: str, text: str, *, previous: str | None = None) -> None:
        """An utterance of the user's, committed and transcribed."""
        await self.commit(item_id, previous=previous)
        await self.send(
            {
                "type": "conversation.item.input_audio_transcription.completed",
                "item_id": item_id,
                "content_index": 0,
                "transcript": text,
            }
        )

    async def commit(self, item_id: str, *, previous: str | None = None) -> None:
        await self.send({"type": "input_audio_buffer.committed", "item_id": item_id, "previous_item_id": previous})

    async def next_event(self, kind: str, *, nth: int = 1) -> Event:
        """The nth event of that type which the broker sent; waits for it."""
        async with asyncio.timeout(15):
            while True:
                found = [event for event in self.received if event.get("type") == kind]
                if len(found) >= nth:
                    return found[nth - 1]
                self._arrived.clear()
                await self._arrived.wait()

    async def arrivals(self, count: int) -> None:
        """Waits until the broker has sent this many events in all."""
        async with asyncio.timeout(15):
            while len(self.received) < count:
                self._arrived.clear()
                await self._arrived.wait()

    def arrived(self, message: str | bytes) -> None:
        self.raw.append(message)
        with contextlib.suppress(ValueError):
            self.received.append(json.loads(message))
        self._arrived.set()


async def converse(talk: AzureTalk) -> None:
    """Azure's usual behaviour: it creates and updates a session, and acknowledges items."""
    await talk.send(
        {
            "type": "session.created",
            "event_id": "event_1",
            "session": {"id": "sess_1", "instructions": "you are helpful"},
        }
    )
    async for message in talk.connection:
        talk.arrived(message)
        event = talk.received[-1]
        if event["type"] == "session.update":
            await talk.send({"type": "session.updated", "session": {"id": "sess_1", **event.get("session", {})}})
        elif event["type"] == "conversation.item.create":
            kind = "conversation.item.added" if talk.dialect == "ga" else "conversation.item.created"
            await talk.send({"type": kind, "item": {"id": "item_typed", **event["item"]}})


@dataclass
class ScriptedAzure:
    """What a test sees of the scripted Azure, and can change."""

    script: Script = converse
    url: str = ""
    talks: list[AzureTalk] = field(default_factory=list)
    handshakes: list[Request] = field(default_factory=list)
    refuse: Callable[[Request], Response | None] = lambda _: None
    hang_in_handshake: bool = False
    clock_ahead_s: float = 0.0
    open: set[ServerConnection] = field(default_factory=set)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        talk = AzureTalk(connection, connection.request.path, connection.request.headers)
        self.open.add(connection)
        self.talks.append(talk)
        self._came.set()
        try:
            with contextlib.suppress(ConnectionClosed):
                await self.script(talk)
        finally:
            self.open.discard(connection)
            talk.closed.set()

    async def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request)
        if self.hang_in_handshake:
            await connection.wait_closed()
        return self.refuse(request)

    def process_response(self, connection: ServerConnection, request: Request, response: Response) -> Response:
        del connection, request
        if self.clock_ahead_s:
            del response.headers["Date"]
            response.headers["Date"] = formatdate(time.time() + self.clock_ahead_s, usegmt=True)
        return response

    async def talk(self, number: int = 0) -> AzureTalk:
        """The numbered connection; waits for it."""
        async with asyncio.timeout(15):
            while len(self.talks) <= number:
                self._came.clear()
                await self._came.wait()
        return self.talks[number]


def answer(status: int, body: bytes = b"", **headers: str) -> Response:
    """A plain HTTP answer to a handshake."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, HTTPStatus(status).phrase, Headers({"Content-Length": str(len(body)), **named}), body)


@contextlib.asynccontextmanager
async def scripted_azure(
    script: Script = converse, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedAzure]:
    azure = ScriptedAzure(script)
    server: Server = await serve(
        azure.handle,
        "127.0.0.1",
        0,
        process_request=azure.process_request,
        process_response=azure.process_response,
        compression=None,
        max_size=None,
        ping_interval=None,
        close_timeout=0.2,
        ssl=tls,
    )
    port = next(iter(server.sockets)).getsockname()[1]
    azure.url = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    try:
        yield azure
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def silent_server(*, greet: bytes = b"") -> AsyncIterator[tuple[str, set[asyncio.StreamWriter]]]:
    """Accepts, says `greet` at most, and never answers. Yields its host:port and the connections that are open."""
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        writer.write(greet)
        try:
            while await reader.read(65_536):
                pass
        except ConnectionError:
            pass
        finally:
            writers.discard(writer)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", writers
    finally:
        server.close()
        for writer in list(writers):
            writer.close()
        await server.wait_closed()
