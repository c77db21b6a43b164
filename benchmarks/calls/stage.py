"""An Azure whose calls have no media, brokers on one PostgreSQL, and their clients: what the benchmarks of calls share.

A call lives from its offer to its hang-up. It answers by itself now and then, whether a sideband hears it or not, and
notes what each answer costs and who heard its end. It is no measure of Azure's speed.
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from aiohttp import WSMsgType, web

from benchmarks.mint import free_port
from tests.support.broker import BrokerProcess, environment, start_process
from tests.support.databases import postgres_server
from tests.support.offers import OFFER

__all__ = ["FakeAzure", "FakeTalk", "Replicas", "Stage", "call_stage"]

_START_S = 180.0
_ASKED_TIMES = 20
_ANSWER = OFFER.replace("o=- 1", "o=- 9")


@dataclass(eq=False)
class FakeTalk:
    """A call, or a proxied session, at Azure. `heard` are the tokens of answers whose end somebody heard."""

    name: str
    session_id: str
    answers: "asyncio.Task[None] | None" = None
    made_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None
    sockets: set[web.WebSocketResponse] = field(default_factory=set)
    joins: int = 0
    joined_s: float | None = None
    left_s: float | None = None  # when the latest listener left
    heard_until_s: float | None = None  # of one that has ended
    heard: int = 0
    unheard: int = 0
    notes: list[tuple[float, str]] = field(default_factory=lambda: [(time.time(), "made")])  # since 1970
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lives(self) -> bool:
        return self.ended_s is None

    def end(self) -> None:
        """The call is over, and its sidebands close."""
        if self.ended_s is None:
            self.ended_s = time.monotonic()
            self.heard_until_s = self.ended_s if self.sockets else self.left_s
            self.note("ended")
            self.over.set()
            if self.answers is not None:
                self.answers.cancel()

    def note(self, what: str) -> None:
        self.notes.append((time.time(), what))

    async def tell(self, *events: dict[str, Any]) -> bool:
        """Whether anybody was told."""
        told = False
        for socket in list(self.sockets):
            with contextlib.suppress(ConnectionError, RuntimeError):
                for event in events:
                    await socket.send_str(json.dumps(event))
                told = True
        return told


class FakeAzure:
    """GA's mint, calls, hang-ups, sidebands and sockets. `every_s` is the pause between a talk's answers; 0: none."""

    def __init__(self, every_s: float) -> None:
        self.talks: dict[str, FakeTalk] = {}
        self.url = ""
        self.tokens = 1000  # of one answer
        self._every_s = every_s
        self._numbers = itertools.count()

    def live(self) -> list[FakeTalk]:
        return [talk for talk in self.talks.values() if talk.lives]

    def routes(self) -> list[web.RouteDef]:
        base = "/openai/v1/realtime"
        return [
            web.post(f"{base}/client_secrets", self._mint),
            web.post(f"{base}/calls", self._offer),
            web.post(f"{base}/calls/{{call}}/hangup", self._hang_up),
            web.get(base, self._socket),
        ]

    async def _mint(self, request: web.Request) -> web.Response:
        await request.read()
        number = next(self._numbers)
        session = {"id": f"sess_{number}", "type": "realtime"}
        return web.json_response({"value": f"ek_{number}", "expires_at": int(time.time()) + 600, "session": session})

    async def _offer(self, request: web.Request) -> web.Response:
        await request.read()
        secret = request.headers["Authorization"].partition("ek_")[2]
        talk = self._made(f"rtc_{next(self._numbers)}", f"sess_{secret}")
        return web.Response(status=201, text=_ANSWER, headers={"Location": f"/v1/realtime/calls/{talk.name}"})

    async def _hang_up(self, request: web.Request) -> web.Response:
        talk = self.talks.get(request.match_info["call"])
        if talk is None or not talk.lives:
            return web.Response(status=404)
        talk.note("hung up")
        talk.end()
        return web.Response()

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        """A sideband of a call, or a session of its own, which lives as long as its socket."""
        if (name := request.query.get("call_id")) is not None:
            talk = self.talks.get(name)
            if talk is None or not talk.lives:
                return web.Response(status=404)
        else:
            talk = self._made(f"ws_{next(self._numbers)}", f"sess_ws_{next(self._numbers)}")
        socket = web.WebSocketResponse(max_msg_size=0)
        try:
            await socket.prepare(request)
        except ConnectionError:  # a broker that was killed
            return socket
        if name is None:
            await socket.send_json({"type": "session.created", "session": {"id": talk.session_id}})
        talk.sockets.add(socket)
        talk.joins += 1
        talk.joined_s = talk.joined_s or time.monotonic()
        talk.note("joined")
        over = asyncio.create_task(talk.over.wait())
        try:
            while not over.done():
                reading = asyncio.ensure_future(socket.receive())
                await asyncio.wait((reading, over), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    break
                message = reading.result()
                if message.type is not WSMsgType.TEXT:
                    break
                event = message.json()
                if event["type"] == "input_audio_buffer.append":
                    delta = {"type": "response.output_audio.delta", "response_id": "r", "item_id": "i"}
                    await socket.send_json({**delta, "output_index": 0, "content_index": 0, "delta": event["audio"]})
                if event["type"] == "session.update":
                    session = {**event["session"], "id": talk.session_id}
                    await socket.send_json({"type": "session.updated", "session": session})
        finally:
            over.cancel()
            talk.sockets.discard(socket)
            talk.left_s = time.monotonic()
            talk.note("left")
            if name is None:
                talk.end()
            with contextlib.suppress(ConnectionError, RuntimeError):
                await socket.close()
        return socket

    def _made(self, name: str, session_id: str) -> FakeTalk:
        talk = self.talks[name] = FakeTalk(name, session_id)
        if self._every_s:
            talk.answers = asyncio.create_task(self._answer(talk))
        return talk

    async def _answer(self, talk: FakeTalk) -> None:
        for number in itertools.count():
            await asyncio.sleep(self._every_s * random.uniform(0.5, 1.5))  # no secret
            response = {"id": f"resp_{talk.name}_{number}", "object": "realtime.response"}
            tokens = {"input_tokens": self.tokens - 100, "output_tokens": 100, "total_tokens": self.tokens}
            done = {**response, "status": "completed", "output": [], "usage": tokens}
            heard = await talk.tell(
                {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
                {"type": "response.done", "response": done},
            )
            if heard:
                talk.heard += self.tokens
            else:
                talk.unheard += self.tokens


class Replicas:
    """Brokers on one database; those that were ended are replaced by `start`."""

    def __init__(self, stack: contextlib.AsyncExitStack, directory: Path, azure: FakeAzure, **variables: str) -> None:
        self.running: list[BrokerProcess] = []
        self._stack, self._directory, self._azure, self._variables = stack, directory, azure, variables

    async def start(self) -> BrokerProcess:
        env = environment(
            self._directory,
            self._azure.url,
            AZURE_VOICELIVE_ENDPOINT_KIND="direct",
            BROKER_AUTH="none",
            BROKER_SIGNING_KEY="k" * 40,
            BROKER_MAX_SESSIONS="0",
            BROKER_MAX_SESSIONS_PER_PRINCIPAL="0",
            BROKER_TRUSTED_PROXIES="1",
            BROKER_DRAIN_S="20",
            BROKER_TOKEN_BUDGET_S="20",  # setting the calls up is not what is measured
            **self._variables,
        )
        return await self._stack.enter_async_context(self._run(env))

    @contextlib.asynccontextmanager
    async def _run(self, env: dict[str, str]) -> AsyncIterator[BrokerProcess]:
        """A broker until the block ends; it may take its time to start, on a machine that is busy."""
        port = free_port()
        log_file, base_url = self._directory / f"serve-{port}.log", f"http://127.0.0.1:{port}"
        with log_file.open("wb") as out:
            started = start_process(("serve",), env | {"PORT": str(port)}, self._directory, out, out, fresh=True)
            broker = BrokerProcess(base_url, await started, log_file)
        try:
            async with asyncio.timeout(_START_S), httpx.AsyncClient() as client:
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get(f"{base_url}/readyz")).is_success:
                            break
                    await asyncio.sleep(0.2)
            self.running.append(broker)
            yield broker
        finally:
            if broker.process.returncode is None:
                broker.process.kill()  # what it still holds is of no interest
                await broker.process.wait()


@dataclass
class Stage:
    """What runs, and a client of the brokers."""

    azure: FakeAzure
    replicas: Replicas
    client: httpx.AsyncClient
    database_url: str

    async def call(self, broker: BrokerProcess, address: str = "10.0.0.1", **body: Any) -> tuple[str, dict[str, str]]:
        """A relayed call of a talk of its own: its address at the broker, and its client's headers."""
        mine, _ = await self.plan(broker, address, **body)
        offer = {**mine, "Content-Type": "application/sdp"}
        for _ in range(5):  # on a busy machine Azure's mint may be late
            placed = await self.client.post(f"{broker.base_url}/realtime/calls", content=OFFER, headers=offer)
            if placed.status_code < 500:
                break
        assert placed.is_success, f"{placed.text}\n{broker.log[-2000:]}"
        return placed.headers["location"], mine

    async def plan(
        self, broker: BrokerProcess, address: str = "10.0.0.1", **body: Any
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """A plan's headers for its session, and the plan. The caller's principal is its address."""
        via = {"X-Forwarded-For": address}
        for _ in range(_ASKED_TIMES):  # as the answer says: a busy machine's store may be silent for a while
            answer = await self.client.post(f"{broker.base_url}/realtime/token", json=body, headers=via)
            if answer.status_code != 503:
                break
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
        answer.raise_for_status()
        plan: dict[str, Any] = answer.json()
        return {"Authorization": f"Bearer {plan['session_token']}", **via}, plan


@contextlib.asynccontextmanager
async def call_stage(directory: Path, *, every_s: float, replicas: int, **variables: str) -> AsyncIterator[Stage]:
    """Runs them until the block ends."""
    azure = FakeAzure(every_s)
    runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
    runner.app.router.add_routes(azure.routes())
    with postgres_server() as postgres:
        async with contextlib.AsyncExitStack() as stack:
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
            await site.start()
            azure.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            url = await postgres.create()
            brokers = Replicas(stack, directory, azure, BROKER_DATABASE_URL=url, **variables)
            limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=60, limits=limits))
            for _ in range(replicas):
                await brokers.start()
            yield Stage(azure, brokers, client, url)
            for talk in azure.live():
                talk.end()
