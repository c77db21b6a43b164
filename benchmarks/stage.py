"""Brokers over several simulated resources, and clients of their proxy: what the benchmarks of failover share.

The resources run in a thread of this process, so that their transcript can be read; each broker in one of its own.
"""

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from benchmarks.mint import free_port
from token_broker.simulator import RunningResources, run_resources_in_thread
from token_broker.simulator.records.transcript import TalkTranscript

ROOT = Path(__file__).parents[1]
START_S = 60.0
STOP_S = 20.0
_MOST_ENTRIES = 1_000_000  # of the transcript, which is the judge: 20 talks write 50,000 an hour
AUDIO_DELTAS = frozenset({"response.audio.delta", "response.output_audio.delta"})


@dataclass
class Stage:
    """What runs: the resources, and brokers at `urls` with a client of them. `url` is the first."""

    azure: RunningResources
    urls: list[str]
    client: httpx.AsyncClient

    @property
    def url(self) -> str:
        return self.urls[0]

    async def plan(self, *, replica: int = 0, **body: object) -> dict[str, Any]:
        """A plan for Elena, of that broker."""
        answer = await self.client.post(f"{self.urls[replica]}/realtime/token", json={"agent_id": "elena", **body})
        answer.raise_for_status()
        plan: dict[str, Any] = answer.json()
        return plan

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = (await self.client.get(f"{self.url}/status")).json()
        return status


@contextlib.asynccontextmanager
async def stage(
    directory: Path,
    names: Sequence[str],
    *,
    entries: Mapping[str, Mapping[str, object]] | None = None,
    replicas: int = 1,
    **variables: str,
) -> AsyncIterator[Stage]:
    """Runs them until the block ends. `entries` are what the resources' file says of some, beyond their place.

    Several `replicas` want a `BROKER_DATABASE_URL` of a PostgreSQL.
    """
    # It tells of each handshake whose client has left: a hedge that lost, for one.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    number = secrets.token_hex(4)
    async with contextlib.AsyncExitStack() as stack:
        transcript = TalkTranscript(limit=_MOST_ENTRIES)
        azure = stack.enter_context(run_resources_in_thread(*names, transcript=transcript))
        resources_file = directory / f"resources-{number}.toml"
        resources_file.write_text(_resources_file(azure, entries or {}))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "BROKER_"))},
            "SIMULATOR_KEY": "simulated-key",
            "BROKER_RESOURCES_FILE": str(resources_file),
            "BROKER_DATABASE_URL": f"sqlite+aiosqlite:///{directory}/broker-{number}.db",
            "BROKER_SIGNING_KEY": secrets.token_urlsafe(48),
            "BROKER_RATE_LIMIT_PER_MINUTE": "0",
            "BROKER_TURNS_PER_MINUTE": "0",
            "BROKER_TURN_BYTES_PER_MINUTE": "0",
            "BROKER_MAX_SESSIONS_PER_PRINCIPAL": "0",
            "BROKER_MAX_SESSIONS": "0",
            "BROKER_DRAIN_S": "1",
            "BROKER_LOG_FORMAT": "json",
            **variables,
        }
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=30, limits=limits, trust_env=False))
        running = Stage(azure, [], client)
        for replica in range(replicas):
            log = directory / f"broker-{number}-{replica}.log"
            running.urls.append(await stack.enter_async_context(_broker(environment, log, client)))
        yield running


@contextlib.asynccontextmanager
async def _broker(environment: Mapping[str, str], log: Path, client: httpx.AsyncClient) -> AsyncIterator[str]:
    """A broker that is ready, until the block ends; gives its URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from token_broker.cli.main import main; main()", "serve"),
            cwd=ROOT,
            env={**environment, "PORT": str(port)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        await _until_ready(url, client, process, log)
        yield url
    finally:
        await _stop(process)


def _resources_file(azure: RunningResources, entries: Mapping[str, Mapping[str, object]]) -> str:
    tables = []
    for table in azure.resources_file().split("\n\n"):
        name = next((each for each in azure.by_name if f'name = "{each}"' in table), "")
        added = dict(entries.get(name, {}))
        lines = [line for line in table.splitlines() if line.partition(" =")[0] not in added]
        tables.append("\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in added.items())]))
    return "\n\n".join(tables) + "\n"


async def _until_ready(url: str, client: httpx.AsyncClient, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.returncode is None:
        with contextlib.suppress(httpx.TransportError):
            if (await client.get(f"{url}/readyz")).status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"the broker did not start:\n{log.read_text()}")  # noqa: ASYNC240  # it ends here


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@dataclass
class Client:
    """One talk's client over the proxy or a compatible endpoint. It keeps what it heard, but for the audio itself."""

    socket: ClientConnection
    on_event: Callable[[dict[str, Any]], None] = lambda _event: None
    closed: str | None = None
    """How the socket was closed, once it is."""
    _unheard: "asyncio.Queue[dict[str, Any] | None]" = field(default_factory=asyncio.Queue)

    async def send(self, kind: str, **fields: Any) -> None:
        """An event; into a closed socket, nothing."""
        with contextlib.suppress(ConnectionClosed):
            await self.socket.send(json.dumps({"type": kind, **fields}))

    async def write(self, text: str) -> None:
        """A typed message, and the wish for an answer."""
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        await self.send("conversation.item.create", item=item)
        await self.send("response.create")

    async def say(self, pcm: bytes, piece_ms: int = 100) -> None:
        """Audio in real time."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for number, begin in enumerate(range(0, len(pcm), piece_ms * 48), 1):
            audio = base64.b64encode(pcm[begin : begin + piece_ms * 48]).decode()
            await self.send("input_audio_buffer.append", audio=audio)
            await asyncio.sleep(max(0.0, began_s + number * piece_ms / 1000 - loop.time()))

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next event of that kind.

        Raises:
            TalkLostError: the socket was closed before.

        """
        while (event := await self._unheard.get()) is not None:
            if event["type"] == kind:
                return event
        self._unheard.put_nowait(None)
        raise TalkLostError(self.closed)

    async def read(self) -> None:
        """Reads until the socket is closed."""
        try:
            async for message in self.socket:
                event: dict[str, Any] = json.loads(message)
                self.on_event(event)
                if event["type"] not in AUDIO_DELTAS:
                    self._unheard.put_nowait(event)
        except ConnectionClosed:
            pass
        finally:
            self.closed = f"{self.socket.close_code} {self.socket.close_reason}".strip()
            self._unheard.put_nowait(None)


class TalkLostError(Exception):
    """The talk's socket was closed; the message says how."""


@contextlib.asynccontextmanager
async def open_client(
    url: str, *, protocols: Sequence[str] = (), on_event: Callable[[dict[str, Any]], None] | None = None, **options: Any
) -> AsyncIterator[Client]:
    """A client that reads until the block ends."""
    offered = [Subprotocol(name) for name in protocols] or None
    async with connect(url, subprotocols=offered, max_size=1 << 22, proxy=None, compression=None, **options) as socket:
        client = Client(socket)
        if on_event is not None:
            client = dataclasses.replace(client, on_event=on_event)
        reading = asyncio.create_task(client.read())
        try:
            yield client
        finally:
            await socket.close()
            await reading


def proxy_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's connection through the broker's proxy."""
    found: dict[str, Any] = next(each for each in plan["connections"] if each["transport"] == "websocket_proxy")
    return found
