"""The broker as a test starts it: in the test's own event loop under uvicorn, or as `token-broker` in a process."""

import asyncio
import contextlib
import functools
import json
import os
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from sqlalchemy import create_engine
from starlette.applications import Starlette

from tests.support.processes import Finished, run_program
from tests.support.serving import serve_app
from tests.support.sockets import listening_socket
from token_broker.app import create_app
from token_broker.broker import Broker
from token_broker.memory.store.migrate import migrate
from token_broker.server.http import bounded_http
from token_broker.server.websocket import uvicorn_options
from token_broker.settings import Settings

__all__ = [
    "BrokerProcess",
    "RunningBroker",
    "TimedAnswer",
    "environment",
    "make_settings",
    "plain_client",
    "run_broker",
    "run_command",
    "run_process",
]

_START_S = 20
# Loopback is plain HTTP: a context without certificates spares each client the reading of the system's (50 ms).
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """An answer, and how long it took."""

    response: httpx.Response
    took_s: float

    @property
    def plan(self) -> dict[str, Any]:
        assert self.response.status_code == 200, self.response.text
        plan: dict[str, Any] = self.response.json()
        return plan


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that serves at `base_url`, with a client of it."""

    base_url: str
    settings: Settings
    app: Starlette
    client: httpx.AsyncClient

    @property
    def broker(self) -> Broker:
        broker: Broker = self.app.state.broker
        return broker

    async def token(self, body: object = None, **headers: str) -> TimedAnswer:
        """`POST /realtime/token`; header names with underscores."""
        began_s = time.monotonic()
        response = await self.client.post(
            "/realtime/token",
            content=json.dumps({} if body is None else body),
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        return TimedAnswer(response, time.monotonic() - began_s)

    async def plan(self, body: object = None, **headers: str) -> dict[str, Any]:
        return (await self.token(body, **headers)).plan

    async def burst(self, count: int, body: object = None) -> list[dict[str, Any]]:
        """So many plans asked for at once, each on a connection of its own."""
        connector = aiohttp.TCPConnector(limit=0)  # httpx takes seconds to open so many
        async with aiohttp.ClientSession(self.base_url, connector=connector) as session:

            async def ask() -> dict[str, Any]:
                async with session.post("/realtime/token", json={} if body is None else body) as answer:
                    assert answer.status == 200
                    plan: dict[str, Any] = await answer.json()
                    return plan

            return await asyncio.gather(*(ask() for _ in range(count)))

    async def strategies(self) -> dict[str, dict[str, Any]]:
        """What `/status` says of each strategy, by name."""
        status = (await self.client.get("/status")).json()
        return {strategy["name"]: strategy for strategy in status["strategies"]}


def make_settings(directory: Path, endpoint: str | None, **overrides: Any) -> Settings:
    """Settings for a loopback Azure at `endpoint`, with their database in `directory` and no limits in the way."""
    database = directory / f"broker-{time.monotonic_ns()}.db"
    database.write_bytes(_empty_database())
    return Settings.load(
        _env_file=None,
        **{
            "endpoint": endpoint,
            "endpoint_kind": "unified",
            "key": "simulated-key",
            "azure_auth": "key",
            "project_name": "demo",
            "database_url": f"sqlite+aiosqlite:///{database}",
            "rate_limit_per_minute": 0,
            "turns_per_minute": 0,
            "turn_bytes_per_minute": 0,
            "max_sessions_per_principal": 0,
            "max_sessions": 0,
            **overrides,
        },
    )


@functools.cache
def _empty_database() -> bytes:
    """A database with its tables made: migrating one takes longer than most tests."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty.db"
        engine = create_engine(f"sqlite:///{path}")
        with engine.begin() as connection:
            migrate(connection)
        engine.dispose()
        return path.read_bytes()


@contextlib.asynccontextmanager
async def run_broker(settings: Settings) -> AsyncIterator[RunningBroker]:
    """Serves the broker in this event loop on a port of its own until the block ends."""
    app = create_app(settings)
    http = bounded_http(head_timeout_s=settings.head_timeout_s, write_timeout_s=settings.client_write_timeout_s)
    shipped = {"http": http, **uvicorn_options(settings)}
    async with serve_app(app, lifespan="on", **shipped) as base_url, plain_client(base_url) as client:
        yield RunningBroker(base_url, settings, app, client)


def plain_client(base_url: str) -> httpx.AsyncClient:
    """A client of a loopback server: no proxy, no bound on connections."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=base_url, timeout=30, limits=limits, verify=_NO_TLS, trust_env=False)


def environment(directory: Path, endpoint: str | None, **variables: str) -> dict[str, str]:
    """The whole environment of a `token-broker` process: nothing inherited but what Python needs to run."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    ours = {
        "PORT": "0",
        "AZURE_VOICELIVE_KEY": "simulated-key",
        "AZURE_VOICELIVE_AUTH": "key",
        "AZURE_VOICELIVE_ENDPOINT_KIND": "unified",
        "AZURE_VOICELIVE_PROJECT_NAME": "demo",
        "BROKER_DATABASE_URL": f"sqlite+aiosqlite:///{directory / f'broker-{time.monotonic_ns()}.db'}",
        "BROKER_RATE_LIMIT_PER_MINUTE": "0",
        "BROKER_TURNS_PER_MINUTE": "0",
        "BROKER_TURN_BYTES_PER_MINUTE": "0",
        "BROKER_LOG_FORMAT": "json",
    }
    if endpoint is not None:
        ours["AZURE_VOICELIVE_ENDPOINT"] = endpoint
    return inherited | ours | variables


async def run_command(*arguments: str, env: dict[str, str], cwd: Path, timeout_s: float = 30) -> Finished:
    """Runs `token-broker …` to its end."""
    return await run_program([*_entry_point(), *arguments], cwd=cwd, env=env, timeout_s=timeout_s)


def _entry_point() -> tuple[str, ...]:
    """What the installed script `token-broker` does, without the need for it to be installed."""
    return (sys.executable, "-c", "from token_broker.cli.main import main; main()")


@dataclass(slots=True)
class BrokerProcess:
    """`token-broker serve` in a process of its own; `log` is its whole stderr so far."""

    base_url: str
    process: asyncio.subprocess.Process
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")


@contextlib.asynccontextmanager
async def run_process(command: str, env: dict[str, str], directory: Path) -> AsyncIterator[BrokerProcess]:
    """Runs `token-broker <command>` until the block ends, on the port that `env` has, or a free one."""
    if env["PORT"] == "0":
        with listening_socket() as free:
            env = env | {"PORT": str(free.getsockname()[1])}
    log_file = directory / f"{command}-{time.monotonic_ns()}.log"
    with log_file.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *_entry_point(), command, env=env, cwd=directory, stdout=stderr, stderr=stderr
        )
    base_url = f"http://127.0.0.1:{env['PORT']}"
    try:
        await _until_ready(base_url, process, log_file)
        yield BrokerProcess(base_url, process, log_file)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _until_ready(base_url: str, process: asyncio.subprocess.Process, log_file: Path) -> None:
    async with plain_client(base_url) as client:
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s and process.returncode is None:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.02)
    log = log_file.read_text(encoding="utf-8")  # noqa: ASYNC240  # nothing else runs by now
    raise AssertionError(f"the broker did not get ready:\n{log}")
