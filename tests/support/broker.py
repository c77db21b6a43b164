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
from typing import Any, BinaryIO

import aiohttp
import httpx
from pydantic import AliasChoices, BaseModel
from sqlalchemy import create_engine

from tests.support.forkserver import ForkedProcess, fork_broker
from tests.support.processes import Finished
from tests.support.serving import serve_app
from tests.support.sockets import listening_socket
from token_broker.app import create_app
from token_broker.bootstrap import BrokerState
from token_broker.memory.service import Memory
from token_broker.memory.store.tables import migrate
from token_broker.relay.voice_relay import VoiceRelay
from token_broker.security.limits import SessionLimits
from token_broker.security.tokens import TokenSigner
from token_broker.server.drain import Drain
from token_broker.server.uvicorn_options import uvicorn_options
from token_broker.sessions.agents import AgentRegistry
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
    "start_process",
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
    """A broker that serves at `base_url`, with a client of it.

    Each request gets a copy of `state`: assign a part to put another one in its place.
    """

    base_url: str
    settings: Settings
    client: httpx.AsyncClient
    state: BrokerState

    @property
    def signer(self) -> TokenSigner:
        return self.state["callers"].signer

    @property
    def agents(self) -> AgentRegistry:
        return self.state["minting"].agents

    @property
    def memory(self) -> Memory:
        return self.state["memory"]

    @property
    def relay(self) -> VoiceRelay:
        return self.state["relay"]

    @property
    def talks(self) -> SessionLimits:
        return self.state["calls"].talks

    @property
    def drain(self) -> Drain:
        return self.state["status"].drain

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


class _GivenSettings(Settings):
    """Settings that are not looked for in an environment that has none of them, which took longer than all the rest."""

    def __init__(self, **values: Any) -> None:
        if _VARIABLES.isdisjoint(os.environ):
            BaseModel.__init__(self, **values)
        else:
            super().__init__(_env_file=None, **values)


_VARIABLES = {
    name
    for field in Settings.model_fields.values()
    for name in (
        field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else [field.validation_alias]
    )
}


def make_settings(directory: Path | None, endpoint: str | None, **overrides: Any) -> Settings:
    """Settings for a loopback Azure at `endpoint`, with no limits in the way and with `overrides` by field name.

    Their database is a new one in `directory`. Without a directory there is none, unless `overrides` name one.
    """
    database = Path("/nowhere/broker.db")
    if directory is not None:
        database = directory / f"broker-{time.monotonic_ns()}.db"
        database.write_bytes(_empty_database())
    return _GivenSettings.load(
        **{
            "endpoint": endpoint,
            "endpoint_kind": "unified",
            "key": "simulated-key",
            "azure_auth": "key",
            "project_name": "demo",
            "voice_live_webrtc": "off",  # it would open a socket at each start, and change plans
            "database_url": f"sqlite+aiosqlite:///{database}",
            "rate_limit_per_minute": 0,
            "turns_per_minute": 0,
            "turn_bytes_per_minute": 0,
            "max_sessions_per_principal": 0,
            "max_sessions": 0,
            "store_patience_s": 1,  # on a busy machine a store that is there may take longer than the default
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
    state: Any
    async with (
        app.router.lifespan_context(app) as state,
        serve_app(app, state=state, **uvicorn_options(settings)) as base_url,
        plain_client(base_url) as client,
    ):
        yield RunningBroker(base_url, settings, client, state)


def plain_client(base_url: str = "") -> httpx.AsyncClient:
    """A client of loopback servers: no proxy of the environment, no limit of connections."""
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
        "AZURE_VOICELIVE_WEBRTC": "off",
        "BROKER_DATABASE_URL": f"sqlite+aiosqlite:///{directory / f'broker-{time.monotonic_ns()}.db'}",
        "BROKER_RATE_LIMIT_PER_MINUTE": "0",
        "BROKER_TURNS_PER_MINUTE": "0",
        "BROKER_TURN_BYTES_PER_MINUTE": "0",
        "BROKER_LOG_FORMAT": "json",
    }
    if endpoint is not None:
        ours["AZURE_VOICELIVE_ENDPOINT"] = endpoint
    return inherited | ours | variables


async def run_command(
    *arguments: str, env: dict[str, str], cwd: Path, timeout_s: float = 30, fresh: bool = False
) -> Finished:
    """Runs `token-broker …` to its end; `fresh` gives it an interpreter of its own."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = await start_process(arguments, env, cwd, out, err, fresh=fresh)
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        out.seek(0)
        err.seek(0)
        return Finished(code, out.read().decode(), err.read().decode())


@dataclass(slots=True)
class BrokerProcess:
    """`token-broker serve` in a process of its own; `log` is its whole output so far."""

    base_url: str
    process: asyncio.subprocess.Process | ForkedProcess
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")


@contextlib.asynccontextmanager
async def run_process(
    command: str, env: dict[str, str], directory: Path, *, fresh: bool = False
) -> AsyncIterator[BrokerProcess]:
    """Runs `token-broker <command>` until the block ends, on the port of `env` or a free one.

    `fresh` gives it an interpreter of its own.
    """
    if env["PORT"] == "0":
        with listening_socket() as free:
            env = env | {"PORT": str(free.getsockname()[1])}
    log_file = directory / f"{command}-{time.monotonic_ns()}.log"
    with log_file.open("wb") as output:
        process = await start_process((command,), env, directory, output, output, fresh=fresh)
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


async def start_process(
    arguments: tuple[str, ...], env: dict[str, str], cwd: Path, out: BinaryIO, err: BinaryIO, *, fresh: bool = False
) -> asyncio.subprocess.Process | ForkedProcess:
    """Starts `token-broker …` and returns at once; the caller sees to its end."""
    if not fresh:
        return await fork_broker(arguments, env=env, cwd=cwd, stdout=out, stderr=err)
    # As the installed script starts it, without the need for it to be installed.
    program = (sys.executable, "-c", "from token_broker.cli.main import main; main()")
    return await asyncio.create_subprocess_exec(
        *program, *arguments, env=env, cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err
    )


async def _until_ready(base_url: str, process: asyncio.subprocess.Process | ForkedProcess, log_file: Path) -> None:
    async with plain_client(base_url) as client:
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s and process.returncode is None:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.02)
    log = log_file.read_text(encoding="utf-8")  # noqa: ASYNC240  # nothing else runs by now
    raise AssertionError(f"the broker did not get ready:\n{log}")
