"""Recall: what an agent is told, whose it is, and what a slow or dead memory costs."""

import asyncio
import time
from typing import Any

import pytest

from tests.memory.conftest import MakeSettings
from tests.memory.support.faults import Fault
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep import Zep
from tests.support.machine import retry_if_host_busy
from tests.support.waiting import eventually
from token_broker.memory.context import TOLD_CHARS
from token_broker.memory.drivers.database import Database, DialectName, PoolName
from token_broker.memory.recall import BoundedRecall
from token_broker.memory.service import Memory
from token_broker.memory.store import tables
from token_broker.memory.store_errors import StoreUnreachableError
from token_broker.security.limits import RecallCache
from token_broker.security.tokens import Owner


async def test_reconnect_gets_last_turns(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(content=f"line {number}", sequence=number) for number in range(20)])
        block = await memory.recall.block(owner(epoch=2))
        assert block.split("\n")[2:-1] == [f"user: line {number}" for number in range(19, 7, -1)]


async def test_facts_from_earlier_sessions(make_settings: MakeSettings) -> None:
    earlier, now = owner("earlier-session-01", principal="ann"), owner(principal="ann", epoch=2)
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(content="my boat lies in Bergen", by=earlier), turn(content="goodbye", by=earlier)])
        assert "my boat lies in Bergen" in await memory.recall.block(now)
        await memory.append([turn(content="let us talk about the boat again", by=now)])

        async def told() -> bool:  # once the words are indexed
            return "my boat lies in Bergen" in await memory.recall.block(now)

        await eventually(told, within_s=5)


async def test_search_finds_ones_own_turns(make_settings: MakeSettings) -> None:
    earlier, now = owner("earlier-session-01", principal="ann"), owner(principal="ann", epoch=2)
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(content="my boat lies in Bergen", by=earlier), turn(content="goodbye", by=earlier)])

        async def found() -> list[str]:  # once the words are indexed
            return [each.text for each in await memory.recall.search(now, "Where is Bergen?")]

        assert await eventually(found, within_s=5) == ["my boat lies in Bergen"]
        assert await memory.recall.search(owner(principal="bob"), "Where is Bergen?") == []
        stolen = owner("earlier-session-01", principal="bob")
        assert await memory.recall.search(stolen, "Where is Bergen?") == []


@pytest.mark.parametrize("stranger", [owner("another-session-01"), owner("another-session-01", principal="bob")])
async def test_recall_is_ones_own(make_settings: MakeSettings, stranger: Owner) -> None:
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        for by in (owner(), owner("session-of-ann-001", principal="ann")):
            await memory.append([turn(content="my boat lies in Bergen", by=by)])
        await memory.append([turn(content="where does a boat lie", by=stranger)])
        assert "Bergen" not in await memory.recall.block(stranger)
        stolen = Owner("session-of-ann-001", stranger.principal, 9)
        assert "Bergen" not in await memory.recall.block(stolen)


async def test_zep_facts_with_last_turns(zep_settings: MakeSettings, zep: Zep) -> None:
    async with Memory.open(zep_settings(recall_budget_s=5)) as memory:
        await memory.append([turn("t1", "hello", sequence=1)])
        await zep.has(1)
        zep.facts = {SESSION: ["likes tea"]}
        lines = (await memory.recall.block(owner())).split("\n")
        assert lines[2:-1] == ["known: likes tea", "user: hello"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "fault",
    [Fault("hang", times=None), Fault("status", times=None), Fault("malformed", times=None)],
    ids=lambda f: f.kind,
)
@retry_if_host_busy()
async def test_faulty_zep_costs_only_facts(zep_settings: MakeSettings, zep: Zep, fault: Fault) -> None:
    async with Memory.open(zep_settings()) as memory:
        await memory.append([turn("t1", "hello", sequence=1)])
        await zep.has(1)
        with zep.fails(fault):
            began_s = time.monotonic()
            block = await memory.recall.block(owner())
            assert time.monotonic() - began_s < 0.3 + 0.5
        assert block.split("\n")[2:-1] == ["user: hello"]


class SlowDatabase:
    """Answers after two seconds."""

    dialect: DialectName = "sqlite"

    async def open(self) -> bool:
        return False

    async def write(self, work: Any, *, idempotent: bool = True, one_statement: bool = False) -> Any:
        await asyncio.sleep(2)

    async def read(self, work: Any, *, pool: PoolName = "quick") -> Any:
        await asyncio.sleep(2)

    async def close(self) -> None: ...


class Away(SlowDatabase):
    """Answers at once that it can't."""

    async def read(self, work: Any, *, pool: PoolName = "quick") -> Any:
        raise StoreUnreachableError("down")


@retry_if_host_busy()
async def test_slow_memory_stays_within_budget() -> None:
    recall = BoundedRecall(SlowDatabase(), lambda: None, budget_s=0.3)
    began_s = time.monotonic()
    assert await recall.block(owner()) == ""
    assert time.monotonic() - began_s < 0.3 + 0.5
    assert recall.counts.late == 1


async def test_broken_source_costs_only_facts() -> None:
    class Broken:
        async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
            raise KeyError(owner.session_id)

    recall = BoundedRecall(Away(), Broken, budget_s=5)
    assert await recall.block(owner()) == ""
    assert recall.counts.failed == 2


async def test_store_away_reveals_no_session() -> None:
    class Zep:
        async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
            return ["a fact of the session"] if of_session else ["a fact of the user"]

    block = await BoundedRecall(Away(), Zep, budget_s=5).block(owner(principal="ann"))
    assert "a fact of the user" in block
    assert "a fact of the session" not in block


async def test_zero_budget_asks_nothing() -> None:
    recall = BoundedRecall(SlowDatabase(), lambda: pytest.fail("asked"), budget_s=0)
    assert await recall.block(owner()) == ""


class Counting:
    """A real database that counts what recall asks of it, and may be slow."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect
        self.asked = 0
        self.free = asyncio.Event()
        self.free.set()

    async def open(self) -> bool:
        return False

    async def write(self, work: Any, *, idempotent: bool = True, one_statement: bool = False) -> Any:
        return await self._database.write(work, idempotent=idempotent, one_statement=one_statement)

    async def read(self, work: Any, *, pool: PoolName = "quick") -> Any:
        self.asked += 1
        found = await self._database.read(work, pool=pool)
        await self.free.wait()
        return found

    async def close(self) -> None: ...


async def test_repeated_recall_is_cached(
    make_settings: MakeSettings,
) -> None:
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(content="line 1", sequence=1)])
        memory.recall._database = counting = Counting(memory._database)
        first = await memory.recall.block(owner())
        again = await memory.recall.block(owner(epoch=2))
        assert counting.asked == 1
        assert memory.status().recalls_repeated == 1
        assert first != again, "the fence is another each time"
        assert first.split("\n")[2:-1] == again.split("\n")[2:-1] == ["user: line 1"]
        await memory.append([turn(content="line 2", sequence=2)])
        assert (await memory.recall.block(owner())).split("\n")[2:-1] == ["user: line 2", "user: line 1"]
        await memory.append([turn(by=owner("another-session-01"))])
        await memory.recall.block(owner())
        assert counting.asked == 2, "what others say outdates nothing"


async def test_cache_is_per_owner(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(content="my boat", by=owner(principal="ann"))])
        assert "my boat" in await memory.recall.block(owner(principal="ann"))
        assert await memory.recall.block(owner(principal="bob")) == ""
        assert "my boat" in await memory.recall.block(owner(principal="ann"))


async def test_erasure_clears_cache(make_settings: MakeSettings) -> None:
    earlier, now = owner("earlier-session-01", principal="ann"), owner(principal="ann")
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(content="my boat lies in Bergen", by=earlier)])
        assert "Bergen" in await memory.recall.block(now)
        await memory.erase_session(earlier.session_id, principal="ann")
        assert await memory.recall.block(now) == ""


async def test_turn_during_recall_is_not_missed(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(content="line 1", sequence=1)])
        memory.recall._database = counting = Counting(memory._database)
        counting.free.clear()
        asking = asyncio.create_task(memory.recall.block(owner()))

        async def has_read() -> bool:
            return counting.asked > 0

        await eventually(has_read)
        await memory.append([turn(content="line 2", sequence=2)])
        counting.free.set()
        await asking
        assert "line 2" in await memory.recall.block(owner())


async def test_late_recall_is_not_cached() -> None:
    recall = BoundedRecall(Away(), lambda: None, budget_s=5)
    for _ in range(3):
        await recall.block(owner())
    assert (recall.counts.failed, recall.counts.repeated) == (3, 0)


def test_cache_expires_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.security.limits._CACHED_SESSIONS", 3)
    now_s = 100.0
    cache: RecallCache[int] = RecallCache(keep_s=2, clock=lambda: now_s)
    for number in range(9):
        by = owner(f"session-{number}")
        mark = cache.ask(by)
        cache.keep(by, mark, number)
        cache.done(by, mark)
    assert [cache.get(owner(f"session-{number}")) for number in range(9)] == [None] * 6 + [6, 7, 8]
    now_s += 2
    assert cache.get(owner("session-8")) is None
    assert not cache._asking


async def test_long_turns_are_cut_in_database(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they are: the contents that come out of the database are cut there."""
    read: list[int] = []
    stored = tables.stored_turn

    def stored_turn(row: Any) -> Any:
        read.append(len(row.content))
        return stored(row)

    for module in ("turn_reads", "tables"):
        monkeypatch.setattr(f"token_broker.memory.store.{module}.stored_turn", stored_turn)
    ann = owner(principal="ann")
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        said = [turn(content=f"harbour {number} " + "boat " * 6_000, by=ann, sequence=number) for number in range(40)]
        await memory.append(said)

        async def told() -> bool:  # facts too, once the words are indexed
            memory.recall.cache.clear()
            return "known:" in await memory.recall.block(ann)

        await eventually(told)
    assert len(read) > 20
    assert max(read) == TOLD_CHARS


async def test_cut_turn_renders_as_whole(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        for length in (393, 394, 395, 400, 401, 5000):
            by = owner(f"session-of-{length:08}")
            await memory.append([turn(content="x" * length, by=by)])
            (line,) = (await memory.recall.block(by)).split("\n")[2:-1]
            text = "user: " + "x" * length
            assert line == (text if len(text) <= 400 else text[:400] + "…"), length
