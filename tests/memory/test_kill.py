"""`kill -9` at random moments under load: the short form of `benchmarks/memory/soak.py`."""

import asyncio
import base64
import contextlib
import signal
import time
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.memory.support.app import bearer
from tests.memory.support.killing import SIGNING_KEY, free_port, kill_and_check, process
from tests.memory.support.receiver import running_receiver
from tests.memory.support.turns import owner, turn
from tests.memory.support.zep import Zep
from tests.relay.support.azure import scripted_azure
from tests.support.waiting import eventually
from token_broker.memory.service import Memory
from token_broker.memory.types import Outcome
from token_broker.security.tokens import TokenSigner
from token_broker.settings import Settings


async def test_acknowledged_turns_survive_kills(database_url: str, zep: Zep, tmp_path: Path) -> None:
    report = await kill_and_check(tmp_path, database_url, zep, kills=2)
    assert report.kills == 2
    assert report.turns > 3 * 4


async def test_two_sinks_survive_kills(database_url: str, zep: Zep, tmp_path: Path) -> None:
    async with running_receiver() as receiver:
        report = await kill_and_check(tmp_path, database_url, zep, receiver=receiver, kills=1)
    assert report.turns > 2 * 4


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_words_survive_kills(database_url: str, tmp_path: Path) -> None:
    report = await kill_and_check(tmp_path, database_url, None, kills=1)
    assert report.turns > 2 * 4


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_tickets_and_sessions_across_replicas(database_url: str) -> None:
    # Patient: a store that a busy machine keeps waiting would leave each replica to its own memory.
    settings = Settings.load(database_url=database_url, signing_keys=SIGNING_KEY, store_patience_s=20)
    async with Memory.open(settings) as one, Memory.open(settings) as two:
        await asyncio.gather(one.ready(), two.ready())
        expires_at_s = time.time() + 60
        spent = await asyncio.gather(*(memory.tickets.spend("ticket", expires_at_s) for memory in (one, two) * 3))
        assert sum(spent) == 1
        assert await one.append([turn("t1", by=owner(principal="ann"))]) == [Outcome.STORED]
        found = await two.sessions.find(owner().session_id)
        assert found is not None
        assert found.principal == "ann"
        assert await two.append([turn("t2", by=owner(principal="bob"))]) == [Outcome.FOREIGN]
        assert await two.append([turn("t1", by=owner(principal="ann"))]) == [Outcome.DUPLICATE]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_answer_that_is_played_survives_a_kill(database_url: str, tmp_path: Path) -> None:
    """Azure has completed it in a moment, and the user hears it for a quarter of a minute."""
    who, port = owner("killed-while-talking-1"), free_port()
    settings = Settings.load(database_url=database_url, signing_keys=SIGNING_KEY)
    ticket = TokenSigner(settings.signing_keys).ticket(who, agent_id="elena", ttl_s=60)
    url = f"ws://127.0.0.1:{port}/api/v1/voice/voicelive/{who.session_id}"

    async def turns() -> list[tuple[str, bool]]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=15) as http:
            path = f"/api/v1/memory/sessions/{who.session_id}/turns"
            answer = await http.get(path, headers=bearer(settings, who))
            page = answer.json() if answer.status_code == 200 else {"turns": []}
            return [(turn["content"], turn["interrupted"]) for turn in page["turns"]]

    async def is_kept() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return bool(await turns())
        return False  # it is still starting

    async def is_up() -> bool:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    async with scripted_azure() as azure:
        environment = {"AZURE_VOICELIVE_ENDPOINT": azure.url}
        offered = [Subprotocol("realtime"), Subprotocol(f"ticket.{ticket}")]
        async with process(tmp_path, port, database_url, None, **environment) as running:
            await eventually(is_up, within_s=30)
            async with connect(url, subprotocols=offered, proxy=None) as client:
                await client.recv()
                talk = await azure.talk()
                sound = base64.b64encode(bytes(15 * 48_000)).decode()
                await talk.send({"type": "response.audio.delta", "item_id": "item_a", "delta": sound})
                await talk.say("item_a", "A long story.")
                await eventually(is_kept)
                running.send_signal(signal.SIGKILL)
                await running.wait()
        async with process(tmp_path, port, database_url, None, **environment):
            await eventually(is_kept, within_s=30)
            assert await turns() == [("A long story.", False)]
