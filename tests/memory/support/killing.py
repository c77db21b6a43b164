"""Writers against a broker that is killed again and again, and what must be true afterwards."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.memory.support.app import bearer
from tests.memory.support.receiver import SECRET, Receiver
from tests.memory.support.stores import assert_sound
from tests.memory.support.turns import owner
from tests.memory.support.zep import KEY, Zep
from tests.memory.support.zep_cloud import KEY as CLOUD_KEY
from tests.memory.support.zep_cloud import ZepCloud
from tests.support import broker
from tests.support.forkserver import ForkedProcess
from tests.support.waiting import eventually
from token_broker.memory.delivery.zep import zep_user_id
from token_broker.memory.drivers.sqlite import sqlite_path
from token_broker.security.tokens import ANONYMOUS
from token_broker.settings import Settings

SIGNING_KEY = "k" * 40


@dataclass
class Report:
    """What a run came to."""

    kills: int = 0
    acknowledged: dict[str, list[str]] = field(default_factory=dict)  # by session, in the order of their sequence
    repeated_requests: int = 0
    repeated_deliveries: int = 0

    @property
    def turns(self) -> int:
        return sum(map(len, self.acknowledged.values()))


@contextlib.asynccontextmanager
async def process(
    folder: Path,
    port: int,
    database_url: str,
    zep: Zep | ZepCloud | None,
    receiver: Receiver | None = None,
    /,
    **environment: str,
) -> AsyncIterator[asyncio.subprocess.Process | ForkedProcess]:
    """`token-broker serve`, killed when the block ends."""
    mine = {
        "PORT": str(port),
        "BROKER_DATABASE_URL": database_url,
        "BROKER_SIGNING_KEY": SIGNING_KEY,
        "BROKER_LOG_LEVEL": "error",
        "BROKER_DELIVERY_TIMEOUT_S": "1",
        "BROKER_DELIVERY_POLL_S": "0.1",
    }
    is_cloud = isinstance(zep, ZepCloud)
    zeps = {"ZEP_API_KEY": CLOUD_KEY if is_cloud else KEY, "ZEP_API_URL": zep.base_url} if zep is not None else {}
    named = (("zep_cloud" if is_cloud else "zep", zep), ("http", receiver))
    sinks = {name for name, sink in named if sink is not None}
    mine["BROKER_MEMORY_SINKS"] = ",".join(sorted(sinks))
    if receiver is not None:
        zeps |= {"BROKER_MEMORY_HTTP_URL": receiver.url, "BROKER_MEMORY_HTTP_SECRET": SECRET}
    env = broker.environment(folder, None, **(mine | zeps | environment))
    with Path(os.devnull).open("wb") as nothing:  # noqa: ASYNC230  # opens at once
        running = await broker.start_process(("serve",), env, folder, nothing, nothing)
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def kill_and_check(
    folder: Path,
    database_url: str,
    zep: Zep | ZepCloud | None,
    *,
    receiver: Receiver | None = None,
    kills: int,
    writers: int = 4,
    seed: int = 1,
    longest_life_s: float = 0.5,
    pause_s: float = 0.005,
) -> Report:
    """Kills the broker so often, at random moments under load; then checks all that was acknowledged.

    Without `zep` and `receiver` the store is the memory, and its words are checked instead.
    """
    report = Report()
    settings = Settings.load(database_url=database_url, signing_keys=SIGNING_KEY)
    chance = random.Random(seed)
    stop = asyncio.Event()
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    sessions = [f"killed-session-{number:04}" for number in range(writers)]
    work = [asyncio.create_task(_write(base_url, settings, key, report, stop, pause_s=pause_s)) for key in sessions]
    for _ in range(kills):
        async with process(folder, port, database_url, zep, receiver) as running:
            await _turns_are_acknowledged(report)
            await asyncio.sleep(chance.uniform(0, longest_life_s))
            running.send_signal(signal.SIGKILL)
            await running.wait()
            report.kills += 1
    async with process(folder, port, database_url, zep, receiver):
        await _turns_are_acknowledged(report)
        stop.set()
        await asyncio.gather(*work)
        await _check_store(base_url, settings, report)
        if zep is not None:
            await _check_zep(zep, report)
        if receiver is not None:
            await _check_receiver(receiver, report)
        if zep is None and receiver is None and database_url.startswith("sqlite"):
            await asyncio.to_thread(_check_words, database_url)
    return report


async def _write(
    base_url: str, settings: Settings, session_id: str, report: Report, stop: asyncio.Event, *, pause_s: float
) -> None:
    """Says one turn after the other, each again until it is acknowledged."""
    said = report.acknowledged.setdefault(session_id, [])
    limits = httpx.Limits(max_keepalive_connections=1)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=15) as http:
        headers = bearer(settings, owner(session_id))
        while not stop.is_set():
            number = len(said) + 1
            said_now = {"agent_id": "elena", "role": "user", "content": f"line {number}"}
            body = {"session_id": session_id, "turn_id": f"{session_id}-{number}", "sequence": number, **said_now}
            while True:
                try:
                    answer = await http.post("/conversation/turn", json=body, headers=headers)
                except httpx.TransportError:
                    report.repeated_requests += 1
                    await asyncio.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    said.append(answer.json()["turn_id"])
                    await asyncio.sleep(pause_s)
                    break
                assert answer.status_code == 503, answer.text
                report.repeated_requests += 1
                await asyncio.sleep(0.05)


async def _turns_are_acknowledged(report: Report) -> None:
    """The process is up, and every writer has gone on."""
    before = report.turns

    async def more() -> bool:
        return report.turns > before + 4

    await eventually(more, within_s=300)


async def _check_store(base_url: str, settings: Settings, report: Report) -> None:
    async with httpx.AsyncClient(base_url=base_url, timeout=30) as http:
        for session_id, said in report.acknowledged.items():
            headers, found, after = bearer(settings, owner(session_id)), [], None
            while True:
                query = {"limit": 1000} | ({"after": after} if after else {})
                path = f"/api/v1/memory/sessions/{session_id}/turns"
                page = (await http.get(path, params=query, headers=headers)).json()
                found += [turn["turn_id"] for turn in page["turns"]]
                if (after := page["next"]) is None:
                    break
            assert found == said, f"{session_id}: not each acknowledged turn, once, in order"


async def _check_zep(zep: Zep | ZepCloud, report: Report) -> None:
    began_s = time.monotonic()

    def turn_ids(session_id: str) -> list[str]:
        return zep.turn_ids(zep_user_id(ANONYMOUS, session_id) if isinstance(zep, ZepCloud) else session_id)

    async def all_arrived() -> bool:
        return all(set(said) == set(turn_ids(key)) for key, said in report.acknowledged.items())

    await eventually(all_arrived, within_s=60)
    for session_id, said in report.acknowledged.items():
        arrived = turn_ids(session_id)
        assert list(dict.fromkeys(arrived)) == said, f"{session_id}: delivered out of order"
        report.repeated_deliveries += len(arrived) - len(said)
    assert time.monotonic() - began_s < 60


async def _check_receiver(receiver: Receiver, report: Report) -> None:
    """Each turn came, in order; an event with an id that was seen before is a repetition, and has the same turns."""

    async def all_arrived() -> bool:
        return all(set(said) == set(receiver.turn_ids(key)) for key, said in report.acknowledged.items())

    await eventually(all_arrived, within_s=60)
    assert receiver.unverified == 0
    for session_id, said in report.acknowledged.items():
        arrived = receiver.turn_ids(session_id)
        assert list(dict.fromkeys(arrived)) == said, f"{session_id}: posted out of order"
        report.repeated_deliveries += len(arrived) - len(said)
    bodies: dict[str, bytes] = {}
    for event in receiver.of("turns.stored"):
        assert bodies.setdefault(event.id, event.body) == event.body, "one id, two contents"
    report.repeated_deliveries += len(receiver.of("turns.stored")) - len(bodies)


def _check_words(database_url: str) -> None:
    """The file is sound, and has the words of every turn, and no others."""
    path = sqlite_path(database_url)
    assert_sound(path)
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as file:
        turns = sorted(file.execute("SELECT session_id, arrival FROM turns"))
        assert sorted(file.execute("SELECT session_id, arrival FROM turn_words")) == turns
