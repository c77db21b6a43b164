"""Recall: what an agent is told, whose it is, and what a slow or dead memory costs."""

import asyncio
import time
from typing import Any

import pytest

from tests.memory.conftest import MakeSettings
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep import Fault, Zep
from tests.support.waiting import eventually
from token_broker.memory.base import Owner
from token_broker.memory.database import DialectName
from token_broker.memory.errors import StoreUnreachableError
from token_broker.memory.recall import BoundedRecall
from token_broker.memory.service import Memory


async def test_a_reconnect_is_told_the_sessions_last_turns(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings()) as memory:
        await memory.append([turn(content=f"line {number}", sequence=number) for number in range(20)])
        block = await memory.recall.block(owner(epoch=2))
        lines = block.split("\n")[2:-1]
        assert lines[-1] == '"user: line 19"'
        assert '"user: line 8"' in lines
        assert '"user: line 7"' not in lines


async def test_a_user_is_known_by_what_they_said_in_earlier_sessions(make_settings: MakeSettings) -> None:
    earlier, now = owner("earlier-session-01", principal="ann"), owner(principal="ann", epoch=2)
    async with Memory.open(make_settings()) as memory:
        await memory.append([turn(content="my boat lies in Bergen", by=earlier), turn(content="goodbye", by=earlier)])
        assert "my boat lies in Bergen" in await memory.recall.block(now)
        await memory.append([turn(content="let us talk about the boat again", by=now)])

        async def told() -> bool:  # once the words are indexed
            return "my boat lies in Bergen" in await memory.recall.block(now)

        await eventually(told, within_s=5)


@pytest.mark.parametrize("stranger", [owner("another-session-01"), owner("another-session-01", principal="bob")])
async def test_nobody_is_told_what_others_said(make_settings: MakeSettings, stranger: Owner) -> None:
    async with Memory.open(make_settings()) as memory:
        for by in (owner(), owner("session-of-ann-001", principal="ann")):
            await memory.append([turn(content="my boat lies in Bergen", by=by)])
        await memory.append([turn(content="where does a boat lie", by=stranger)])
        assert "Bergen" not in await memory.recall.block(stranger)
        stolen = Owner("session-of-ann-001", stranger.principal, 9)
        assert "Bergen" not in await memory.recall.block(stolen)


async def test_zeps_facts_and_the_last_turns_are_told_together(zep_settings: MakeSettings, zep: Zep) -> None:
    async with Memory.open(zep_settings()) as memory:
        await memory.append([turn("t1", "hello", sequence=1)])
        await zep.has(1)
        zep.facts = {SESSION: ["likes tea"]}
        lines = (await memory.recall.block(owner())).split("\n")
        assert lines[2:-1] == ['"known: likes tea"', '"user: hello"']


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "fault",
    [Fault("hang", times=None), Fault("status", times=None), Fault("malformed", times=None)],
    ids=lambda f: f.kind,
)
async def test_a_slow_or_faulty_zep_costs_the_facts_and_no_more_than_the_budget(
    zep_settings: MakeSettings, zep: Zep, fault: Fault
) -> None:
    async with Memory.open(zep_settings()) as memory:
        await memory.append([turn("t1", "hello", sequence=1)])
        await zep.has(1)
        with zep.fails(fault):
            began_s = time.monotonic()
            block = await memory.recall.block(owner())
            assert time.monotonic() - began_s < 0.3 + 0.5
        assert block.split("\n")[2:-1] == ['"user: hello"']


class SlowDatabase:
    """Answers after two seconds."""

    dialect: DialectName = "sqlite"

    async def open(self) -> bool:
        return False

    async def write(self, work: Any, *, again: bool = True) -> Any:
        await asyncio.sleep(2)

    async def read(self, work: Any) -> Any:
        await asyncio.sleep(2)

    async def close(self) -> None: ...


class Away(SlowDatabase):
    """Answers at once that it can't."""

    async def read(self, work: Any) -> Any:
        raise StoreUnreachableError("down")


async def test_a_memory_that_takes_two_seconds_adds_no_more_than_the_budget() -> None:
    recall = BoundedRecall(SlowDatabase(), lambda: None, budget_s=0.3)
    began_s = time.monotonic()
    assert await recall.block(owner()) == ""
    assert time.monotonic() - began_s < 0.3 + 0.5
    assert recall.counts.late == 1


async def test_a_source_that_breaks_costs_nothing_but_its_facts() -> None:
    class Broken:
        async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
            raise KeyError(owner.session_id)

    recall = BoundedRecall(Away(), Broken, budget_s=5)
    assert await recall.block(owner()) == ""
    assert recall.counts.failed == 2


async def test_with_a_store_that_is_away_nothing_is_told_of_a_session_that_may_be_anothers() -> None:
    class Zep:
        async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
            return ["a fact of the session"] if of_session else ["a fact of the user"]

    block = await BoundedRecall(Away(), Zep, budget_s=5).block(owner(principal="ann"))
    assert "a fact of the user" in block
    assert "a fact of the session" not in block


async def test_without_a_budget_nothing_is_asked() -> None:
    recall = BoundedRecall(SlowDatabase(), lambda: pytest.fail("asked"), budget_s=0)
    assert await recall.block(owner()) == ""
