"""`kill -9` at random moments under load: the short form of `benchmarks/memory/soak.py`."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.memory.support.killing import SIGNING_KEY, kill_and_check
from tests.memory.support.turns import owner, turn
from tests.memory.support.zep import Zep
from token_broker.memory.service import Memory
from token_broker.memory.types import Outcome
from token_broker.settings import Settings


async def test_acknowledged_turns_survive_kills(database_url: str, zep: Zep, tmp_path: Path) -> None:
    report = await kill_and_check(tmp_path, database_url, zep, kills=2)
    assert report.kills == 2
    assert report.turns > 3 * 4


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_full_text_survives_kills(database_url: str, tmp_path: Path) -> None:
    report = await kill_and_check(tmp_path, database_url, None, kills=1)
    assert report.turns > 2 * 4


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_tickets_and_sessions_across_replicas(database_url: str) -> None:
    settings = Settings.load(database_url=database_url, signing_keys=SIGNING_KEY)
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
