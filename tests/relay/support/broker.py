"""The relay under a real uvicorn, in the test's own loop, with recording test doubles."""

import asyncio
import contextlib
import functools
import gc
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Scope
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from strategies.credentials import AccessToken, Credentials, EntraTokens
from strategies.hedging import Hedger
from strategies.transport import make_tls_context
from tests.support.broker import make_settings as broker_settings
from tests.support.serving import run_server, server_config
from token_broker.azure import (
    add_agents_routes,
    build_agents_availability,
    build_availability,
    build_calls,
    build_connector,
    build_pool,
)
from token_broker.calls.watched_calls import WatchedCalls
from token_broker.memory.types import Interruption, Remembered, Turn
from token_broker.observability.events import Observer, null_observer
from token_broker.relay.adapters import COMPAT_ENDPOINTS
from token_broker.relay.admission import Admission
from token_broker.relay.azure.connector import UpstreamConnector
from token_broker.relay.voice_relay import VoiceRelay, websocket_not_found
from token_broker.security.limits import RateLimiter, SessionLimits
from token_broker.security.tokens import Owner, TokenSigner
from token_broker.server.drain import Drain, DrainingServer
from token_broker.server.uvicorn_options import uvicorn_options
from token_broker.sessions.agents import AgentRegistry, load_agents
from token_broker.settings import Settings
from token_broker.simulator.server import shut_down
from token_broker.tools.guardrail import GuardrailClient
from token_broker.tools.runner import ToolRunner
from token_broker.usage.ledger import UsageLedger
from token_broker.web.requests import Problem, uuid7

KEY = "canary-key-7f3a91"
ENTRA_TOKEN = "canary-entra-5b20cc"
PATH = "/api/v1/voice/voicelive"


class RecordingIngest:
    """Keeps turns; with `full` it accepts none."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.interruptions: list[Interruption] = []
        self.full = False
        self._came = asyncio.Event()

    def offer(self, turn: Turn) -> bool:
        if self.full:
            return False
        self.turns.append(turn)
        self._came.set()
        return True

    def mark_interrupted(self, interruption: Interruption) -> bool:
        self.interruptions.append(interruption)
        self._came.set()
        return True

    @property
    def said(self) -> list[tuple[str, str]]:
        """(role, content) in the conversation's order."""
        ordered = sorted(self.turns, key=lambda turn: turn.sequence or 0)
        return [(turn.role, turn.content) for turn in ordered]

    async def reach(self, count: int, *, interruptions: int = 0) -> None:
        """Waits until this many turns, and marks of interruption, have arrived."""
        async with asyncio.timeout(15):
            while len(self.turns) < count or len(self.interruptions) < interruptions:
                self._came.clear()
                await self._came.wait()


class OnceTickets:
    def __init__(self) -> None:
        self.spent: set[str] = set()

    async def spend(self, ticket_id: str, expires_at_s: float) -> bool:
        if ticket_id in self.spent:
            return False
        self.spent.add(ticket_id)
        return True


@dataclass
class FixedBlocklist:
    names: set[str] = field(default_factory=set)
    was_read: bool = True
    is_missed: bool = False

    def refused(self, principal: str, session_id: str | None) -> bool:
        return bool(self.names & {principal, session_id})


@dataclass
class FixedRecall:
    text: str = ""
    asked: int = 0

    found: Sequence[Remembered] = ()

    async def block(self, owner: Owner) -> str:
        self.asked += 1
        return self.text

    async def search(self, owner: Owner, query: str, *, limit: int = 5) -> Sequence[Remembered]:
        return self.found[:limit]


class FixedEntra:
    async def fetch(self) -> AccessToken:
        return AccessToken(SecretStr(ENTRA_TOKEN), time.time() + 3600)

    async def aclose(self) -> None:
        pass


@dataclass
class Running:
    """A running broker, and what a test does with it."""

    settings: Settings
    relay: VoiceRelay
    calls: WatchedCalls
    connector: UpstreamConnector
    drain: Drain
    limits: SessionLimits
    ingest: RecordingIngest
    recall: FixedRecall
    tickets: OnceTickets
    blocklist: FixedBlocklist
    signer: TokenSigner
    agents: AgentRegistry
    port: int = 0
    server: uvicorn.Server | None = None
    origins: set[str] = field(default_factory=set)

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, session_id: str) -> str:
        return f"ws://127.0.0.1:{self.port}{PATH}/{session_id}"

    def ticket(
        self, session_id: str, *, agent_id: str = "elena", principal: str = "anonymous", ttl_s: int = 180
    ) -> str:
        return self.signer.ticket(Owner(session_id, principal, 1), agent_id=agent_id, ttl_s=ttl_s)

    @contextlib.asynccontextmanager
    async def client(
        self,
        *,
        session_id: str | None = None,
        ticket: str | None = None,
        agent_id: str = "elena",
        path: str = "",
        **options: Any,
    ) -> AsyncIterator["Client"]:
        """A client, by default with a valid ticket, and of the proxy: `path` is what a compatible endpoint appends."""
        session = session_id or uuid7()
        offered = ["realtime", f"ticket.{ticket or self.ticket(session, agent_id=agent_id)}"]
        options = {"subprotocols": offered, "compression": None, "max_size": None, "ping_interval": None} | options
        async with connect(self.url(session) + path, close_timeout=1, proxy=None, **options) as socket:
            yield Client(socket, session)

    async def quiet(self) -> None:
        """Waits until no talk, place or socket is left; fails if one stays."""
        async with asyncio.timeout(15):
            while self.relay.active or self.limits.active or self.drain.talks:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)


@dataclass
class Client:
    socket: ClientConnection
    session_id: str
    events: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, event: dict[str, Any]) -> None:
        await self.socket.send(json.dumps(event))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(15):
            event: dict[str, Any] = json.loads(await self.socket.recv())
        self.events.append(event)
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        """Reads on to the next event of that type."""
        while True:
            event = await self.next()
            if event["type"] == kind:
                return event

    async def ready(self) -> dict[str, Any]:
        event = await self.next()
        assert event["type"] == "broker.ready"
        return event

    async def closed(self, *, within_s: float = 15) -> int:
        """Reads until the socket is closed; returns the code."""
        async with asyncio.timeout(within_s):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    self.events.append(json.loads(await self.socket.recv()))
            await self.socket.wait_closed()
        assert self.socket.close_code is not None
        return self.socket.close_code


def make_settings(url: str, **overrides: Any) -> Settings:
    """Settings of a relay, which has no database; limits are the defaults, but for one principal's talks."""
    chosen: dict[str, Any] = {
        "endpoint_kind": "auto",
        "key": SecretStr(KEY),
        "signing_keys": "k" * 40,
        "drain_s": 1.0,
        "proxy_connect_timeout_s": 3.0,
        "rate_limit_per_minute": 60,
        "max_sessions": 1000,
    }
    return broker_settings(None, url, **(chosen | overrides))


def build(
    settings: Settings,
    *,
    tls: ssl.SSLContext | None = None,
    agents: AgentRegistry | None = None,
    tools: ToolRunner | None = None,
    guardrail: GuardrailClient | None = None,
    observe: Observer = null_observer,
    ledger: UsageLedger | None = None,
) -> Running:
    entra = EntraTokens(FixedEntra(), timeout_s=2) if settings.uses_entra else None
    credentials = Credentials(key=settings.key if settings.uses_key else None, entra=entra)
    pool = build_pool(settings)
    connector = build_connector(
        settings, {each.name: credentials for each in pool.resources}, tls or make_tls_context(), Hedger(pool)
    )
    drain, limits = (
        Drain(),
        SessionLimits(per_key=settings.max_sessions_per_principal, total=settings.max_sessions),
    )
    ingest, recall, tickets, blocklist, signer = (
        RecordingIngest(),
        FixedRecall(),
        OnceTickets(),
        FixedBlocklist(),
        TokenSigner(settings.signing_keys),
    )
    registry = agents or load_agents()
    running: Running

    def origin_refusal(scope: Scope) -> Problem | None:
        origin = dict(scope["headers"]).get(b"origin")
        if origin is None or origin.decode() in running.origins:
            return None
        return Problem(403, "origin_not_allowed", "Not from here.")

    admission = Admission(
        settings=settings,
        agents=registry,
        signer=signer,
        tickets=tickets,
        limits=limits,
        rate=RateLimiter(settings.rate_limit_per_minute),
        drain=drain,
        origin_refusal=origin_refusal,
        blocklist=blocklist,
    )
    add_agents_routes(settings, connector, registry.values())
    relay = VoiceRelay(
        settings=settings,
        agents=registry,
        admission=admission,
        ingest=ingest,
        recall=recall,
        connector=connector,
        limits=limits,
        drain=drain,
        tools=tools,
        guardrail=guardrail,
        observe=observe,
        ledger=ledger,
        calls=build_calls(
            settings,
            connector,
            build_availability(settings, connector),
            build_agents_availability(settings, connector),
        ),
    )
    calls = WatchedCalls(
        relay.parts,
        hang_up=lambda endpoint, call_id, owner, *, why: None,
        limits=limits,
        drain=drain,
        level=relay._level,
    )
    running = Running(
        settings, relay, calls, connector, drain, limits, ingest, recall, tickets, blocklist, signer, registry
    )
    return running


@dataclass
class _Application:
    """Starlette takes a method for an endpoint of its own kind, and an object for an application."""

    call: Callable[[Scope, Any, Any], Awaitable[None]]

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        await self.call(scope, receive, send)


def application(relay: VoiceRelay, *more: BaseRoute) -> Starlette:
    path = PATH + "/{session_id}"
    proxy = _Application(relay.proxy)
    compat_endpoints = [
        (path, _Application(functools.partial(relay.compat, compat)))
        for compat in COMPAT_ENDPOINTS
        for path in compat.paths
    ]
    routes = [
        Route(path, proxy),
        WebSocketRoute(path, proxy),
        *(WebSocketRoute(*compat) for compat in compat_endpoints),
        *more,
    ]
    app = Starlette(routes=routes)
    not_found = app.router.default

    async def default(scope: Scope, receive: Any, send: Any) -> None:
        await (websocket_not_found if scope["type"] == "websocket" else not_found)(scope, receive, send)

    app.router.default = default
    return app


class _QuickServer(DrainingServer):
    """It looks often whether it is to end: uvicorn sleeps for 100 ms, twice in each test."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await shut_down(self, sockets or [])


@contextlib.asynccontextmanager
async def serving(running: Running, *more: BaseRoute, **options: Any) -> AsyncIterator[Running]:
    """Serves until the block ends; then checks that nothing is left over."""
    before = left_over()
    app = application(running.relay, *more)
    config = server_config(app, **(uvicorn_options(running.settings) | options))
    running.server = _QuickServer(config, running.drain, grace_s=running.settings.drain_s)
    try:
        async with run_server(running.server) as base_url:
            running.port = int(base_url.rpartition(":")[2])
            yield running
            await running.quiet()
    finally:
        await running.connector.aclose()
    await nothing_left(before)


@contextlib.asynccontextmanager
async def broker(
    url: str,
    *,
    tls: ssl.SSLContext | None = None,
    agents: AgentRegistry | None = None,
    tools: ToolRunner | None = None,
    observe: Observer = null_observer,
    ledger: UsageLedger | None = None,
    **overrides: Any,
) -> AsyncIterator[Running]:
    settings = make_settings(url, **overrides)
    running = build(settings, tls=tls, agents=agents, tools=tools, observe=observe, ledger=ledger)
    async with serving(running):
        yield running


def left_over() -> tuple[set[str], int]:
    """The names of the tasks and the number of sockets that exist now."""
    tasks = {task.get_name() for task in asyncio.all_tasks()}
    sockets = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets += str(descriptor.readlink()).startswith("socket:")
    return tasks, sockets


async def nothing_left(before: tuple[set[str], int]) -> None:
    """Fails if there are more tasks or sockets than before, after a moment for those that are closing."""
    deadline_s = time.monotonic() + 15
    while True:
        tasks, sockets = left_over()
        extra = {name for name in tasks - before[0] if name.startswith(("talk", "drain", "uvicorn"))}
        if not extra and sockets <= before[1]:
            return
        assert time.monotonic() < deadline_s, f"left over: tasks {extra}, sockets {before[1]} -> {sockets}"
        gc.collect()  # only now: it takes as long as the rest of the check
        await asyncio.sleep(0.02)
