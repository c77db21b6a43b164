"""A receiver of the sink `http` on a loopback socket: it verifies each event as its operator would, and can fail.

It keeps what it is given, so that tests ask it what arrived.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.memory.support.faults import CanFail, fail, next_fault
from tests.support.serving import serve_app

__all__ = ["SECRET", "Event", "Receiver", "running_receiver"]

SECRET = f"whsec_{base64.b64encode(bytes(range(40, 72))).decode()}"


@dataclass(frozen=True, slots=True)
class Event:
    """An event that was accepted, as it came."""

    id: str
    timestamp: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        kind: str = self.json["type"]
        return kind

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.json["data"]
        return data

    @property
    def turn_ids(self) -> list[str]:
        return [turn["turn_id"] for turn in self.data.get("turns", [])]


@dataclass
class Receiver(CanFail):
    """What arrived, in order. `seen` are all requests, `events` those that were taken."""

    url: str = ""
    seen: list[Event] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)  # of the requests, on the loop's clock
    verifies: bool = True
    unverified: int = 0
    most_at_once: int = 0
    in_flight: int = 0
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, kind: str) -> list[Event]:
        """The events of a type."""
        return [event for event in self.events if event.kind == kind]

    def turn_ids(self, session_id: str) -> list[str]:
        """The ids of a session's turns as they arrived; an event whose id was seen before is a repetition."""
        found, ids = [], set()
        for event in self.of("turns.stored"):
            if event.data["session_id"] == session_id and event.id not in ids:
                ids.add(event.id)
                found += event.turn_ids
        return found

    async def has(self, count: int, kind: str = "turns.stored", *, timeout_s: float = 20) -> None:
        """Returns when so many events of the type are there."""
        async with asyncio.timeout(timeout_s):
            while len(self.of(kind)) < count:
                self.changed.clear()
                await self.changed.wait()


def make_app(receiver: Receiver) -> Starlette:
    async def receive(request: Request) -> Response:
        receiver.times_s.append(asyncio.get_running_loop().time())
        receiver.in_flight += 1
        receiver.most_at_once = max(receiver.most_at_once, receiver.in_flight)
        try:
            body = await request.body()
            headers = {name: value for name, value in request.headers.items() if name.startswith("webhook-")}
            event = Event(headers["webhook-id"], int(headers["webhook-timestamp"]), headers, body)
            receiver.seen.append(event)
            fault = next_fault(receiver.faults, request.method, request.url.path, body.decode())
            if fault is not None and not fault.stored:
                return await fail(receiver.closing, fault)
            try:
                if receiver.verifies:
                    Webhook(SECRET).verify(body, headers)
            except Exception:  # noqa: BLE001  # the package's error, which its module does not export
                receiver.unverified += 1
                return PlainTextResponse("unverified", 401)
            receiver.events.append(event)
            receiver.changed.set()
            return await fail(receiver.closing, fault) if fault is not None else PlainTextResponse("", 204)
        finally:
            receiver.in_flight -= 1

    return Starlette(routes=[Route("/events", receive, methods=["POST"])])


@contextlib.asynccontextmanager
async def running_receiver(port: int = 0) -> AsyncIterator[Receiver]:
    """The receiver on 127.0.0.1, at a free port unless one is given."""
    receiver = Receiver()
    async with serve_app(make_app(receiver), port=port, timeout_graceful_shutdown=0) as base_url:
        receiver.url = f"{base_url}/events"
        try:
            yield receiver
        finally:
            receiver.closing.set()
