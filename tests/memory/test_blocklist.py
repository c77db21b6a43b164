"""Whom the operator blocked: known to every process within two seconds, and for as long as it takes."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
from sqlalchemy import insert
from structlog.testing import capture_logs

from tests.memory.conftest import MakeSettings
from tests.memory.support.turns import SESSION, owner, turn
from tests.support.waiting import eventually
from token_broker.memory.drivers.database import Database
from token_broker.memory.maintenance import open_maintenance
from token_broker.memory.repositories import Refused, StoredBlocklist
from token_broker.memory.service import Memory
from token_broker.memory.store.sessions import MAX_BLOCKS, block, blocked_keys, unblock
from token_broker.memory.store.tables import blocks
from token_broker.memory.store_errors import BlocklistFullError


@pytest.fixture
def known(database: Database) -> StoredBlocklist:
    return StoredBlocklist(database, every_s=0.02)


@pytest.fixture
async def kept(known: StoredBlocklist) -> AsyncIterator[StoredBlocklist]:
    """The same, read again and again."""
    task = asyncio.create_task(known.run())
    yield known
    task.cancel()
    await asyncio.wait([task])


async def cut(database: Database, *principals: str) -> None:
    for name in principals:
        await database.write(partial(block, kind="principal", name=name, now_us=1))


async def fill(database: Database, count: int) -> None:
    rows = [{"kind": "principal", "id": f"user-{number}", "since_us": number} for number in range(count)]
    await database.write(lambda connection: connection.execute(insert(blocks), rows).rowcount)


@pytest.mark.slow
async def test_block_and_unblock_beside_running_broker(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory, open_maintenance(settings) as admin:
        await memory.ready()
        assert not memory.blocklist.refused("ann", SESSION)
        assert await admin.block("principal", "ann")
        assert await admin.block("session", SESSION)

        async def everywhere() -> bool:
            return memory.status().blocked == 2

        await eventually(everywhere, within_s=10)
        refused = memory.blocklist.refused
        assert [refused("ann", None), refused("ann", "another-session-01"), refused("bob", SESSION)] == [True] * 3
        assert [refused("bob", None), refused(SESSION, "ann"), refused("ann2", "another-session-01")] == [False] * 3
        assert [(one.kind, one.id) for one in await admin.blocked()] == [("principal", "ann"), ("session", SESSION)]
        assert await admin.unblock("principal", "ann")
        await memory.blocklist.refresh()
        assert [refused("ann", "another-session-01"), refused("ann", SESSION)] == [False, True]


async def test_turns_of_blocked_session_are_kept(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory, open_maintenance(settings) as admin:
        await admin.block("session", SESSION)
        await memory.append([turn("t1")])
        assert [found.turn_id for found in await memory.turns(SESSION, principal="anonymous", limit=9) or []] == ["t1"]


async def test_blocklist_is_known_at_start(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with open_maintenance(settings) as admin:
        await admin.block("principal", "ann")
    async with Memory.open(settings) as memory:
        await memory.ready()
        assert memory.blocklist.refused("ann", None)


async def test_block_and_unblock_are_idempotent(database: Database) -> None:
    work = partial(block, kind="principal", name="ann")
    assert [await database.write(partial(work, now_us=at)) for at in (1, 2)] == [True, False]
    assert [await database.write(partial(unblock, kind="principal", name="ann")) for _ in range(2)] == [True, False]


async def test_concurrent_blocks_make_one_entry(database: Database) -> None:
    both = [database.write(partial(block, kind="session", name=SESSION, now_us=1)) for _ in range(2)]
    assert sorted(await asyncio.gather(*both)) == [False, True]


async def test_long_blocklist_is_read_whole(database: Database, known: StoredBlocklist) -> None:
    await fill(database, 1000)
    await database.write(partial(block, kind="session", name=SESSION, now_us=1))
    await known.refresh()
    assert known.count == 1001
    assert all(known.refused(f"user-{number}", None) for number in range(1000))
    assert known.refused("nobody", SESSION)


async def test_full_blocklist_refuses_more(database: Database) -> None:
    await fill(database, MAX_BLOCKS)
    with pytest.raises(BlocklistFullError, match="10000 are blocked already"):
        await cut(database, "ann")
    assert await database.read(partial(blocked_keys, limit=9, after=("principal", "ann"))) == await database.read(
        partial(blocked_keys, limit=9)
    ), "nobody was added"
    await cut(database, "user-1")  # who is on it may be named again
    await database.write(partial(unblock, kind="principal", name="user-1"))
    await cut(database, "ann")


async def test_knows_only_stored_ids(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory, open_maintenance(settings) as admin:
        await memory.append([turn("t1", by=owner(principal="ann"))])
        assert [await admin.knows("principal", name) for name in ("ann", "bob")] == [True, False]
        assert [await admin.knows("session", name) for name in (SESSION, "another-session-01")] == [True, False]


async def test_watchers_run_after_each_reading(database: Database, kept: StoredBlocklist) -> None:
    """Each, so that a talk that slipped in beside one reading is ended after the next."""
    told: asyncio.Queue[bool] = asyncio.Queue()

    def end_where(refused: Refused) -> None:
        told.put_nowait(refused("ann", None))

    kept.watch(end_where)
    await cut(database, "ann")
    async with asyncio.timeout(10):
        assert [await told.get() for _ in range(3)] == [True] * 3


async def test_watchers_idle_without_blocks(known: StoredBlocklist, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = asyncio.Semaphore(0)
    refresh = known.refresh

    async def counted() -> None:
        await refresh()
        readings.release()

    monkeypatch.setattr(known, "refresh", counted)
    known.watch(lambda _: pytest.fail("told of nobody"))
    task = asyncio.create_task(known.run())
    async with asyncio.timeout(10):
        for _ in range(3):
            await readings.acquire()
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.slow
async def test_broken_watcher_stops_no_other(make_settings: MakeSettings) -> None:
    def breaks(_: Refused) -> None:
        raise ZeroDivisionError

    settings = make_settings()
    async with Memory.open(settings) as memory, open_maintenance(settings) as admin:
        await memory.ready()
        memory.blocklist.watch(breaks)
        for name in ("ann", "bob"):
            await admin.block("principal", name)

            async def refused(name: str = name) -> bool:
                return memory.blocklist.refused(name, None)

            await eventually(refused, within_s=15)


async def test_blocks_are_audited(database: Database, kept: StoredBlocklist) -> None:
    with capture_logs() as logs:
        await cut(database, "ann", "bob")

        async def read(count: int) -> bool:
            return kept.count == count

        await eventually(partial(read, 2))
        await database.write(partial(unblock, kind="principal", name="ann"))
        await eventually(partial(read, 1))
    told = [line for line in logs if line["event"] == "blocklist_changed"]
    assert [name for line in told for name in line["blocked"]] == ["principal ann", "principal bob"]
    assert [name for line in told for name in line["unblocked"]] == ["principal ann"]
