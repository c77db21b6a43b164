"""The command line's view: beside a running broker, on the same store."""

from functools import partial

import pytest

from tests.memory.conftest import MakeSettings
from tests.memory.support.faults import Fault
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep import Zep
from tests.support.waiting import eventually
from token_broker.memory.maintenance import open_maintenance
from token_broker.memory.service import Memory
from token_broker.memory.store.sessions import find_session
from token_broker.memory.types import Outcome


async def test_dead_letters_beside_running_broker(zep_settings: MakeSettings, zep: Zep) -> None:
    settings = zep_settings()
    async with Memory.open(settings) as memory:
        with zep.fails(Fault("status", "/memory", "POST", times=None, status=400, turn="t1")):
            await memory.append([turn("t1", sequence=1), turn("t2", sequence=2)])
            await zep.has(1)

            async def is_dead() -> bool:
                await memory.refresh()
                return memory.status().dead == 1

            await eventually(is_dead)
        async with open_maintenance(settings) as admin:
            assert [letter.turn.turn_id for letter in await admin.dead_letters(9)] == ["t1"]
            assert await admin.dead_letters(9, session_id="another-session-01") == []
            assert await admin.retry_dead() == 1
            await zep.has(2)
            assert zep.turn_ids(SESSION) == ["t2", "t1"]
            assert await admin.purge_dead() == 0


async def test_user_erasure_reaches_zep(zep_settings: MakeSettings, zep: Zep) -> None:
    settings = zep_settings(delivery_timeout_s=0.2)
    async with Memory.open(settings) as memory:
        for by in (owner(principal="ann"), owner("session-of-ann-002", principal="ann"), owner("session-of-bob-001")):
            await memory.append([turn("t1", by=by)])
        await zep.has(3)
        async with open_maintenance(settings) as admin:
            assert await admin.erase_user("ann") == 2

        async def is_forgotten() -> bool:
            return "ann" not in zep.users

        await eventually(is_forgotten)
        assert list(zep.messages) == ["session-of-bob-001"]
        assert await memory.turns(SESSION, principal="anonymous", limit=9) == []
        assert len(await memory.turns("session-of-bob-001", principal="anonymous", limit=9) or []) == 1


async def test_label_erasure_without_authentication(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory:
        await memory.append([turn("t1", by=owner(user_id="ann"))])
        await memory.append([turn("t1", by=owner("session-of-bob-001", user_id="bob"))])
        async with open_maintenance(settings) as admin:
            assert await admin.erase_user("ann") == 1
            assert await admin.erase_session("session-of-bob-001") == 1
        assert await memory.turns(SESSION, principal="anonymous", limit=9) == []


async def test_session_erased_by_another_process(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory:
        await memory.append([turn("t1")])
        async with open_maintenance(settings) as admin:
            await admin.erase_session(SESSION)
        assert await memory.append([turn("t2")]) == [Outcome.ERASED]
        assert await memory.turns(SESSION, principal="anonymous", limit=9) == []
        tombstone = await memory.sessions.find(SESSION)
        assert tombstone is not None
        assert tombstone.erased


@pytest.mark.parametrize(("days", "kept"), [(0, 2), (30, 1)])
async def test_retention_deletes_older_turns(make_settings: MakeSettings, days: int, kept: int) -> None:
    settings = make_settings()
    month_s, now_s = 31 * 86_400.0, 2_000_000_000.0
    async with Memory.open(settings, clock=lambda: now_s - month_s) as memory:
        await memory.append([turn("old")])
    async with Memory.open(settings, clock=lambda: now_s) as memory:
        await memory.append([turn("new")])
        await memory._maintenance.sweep(days)
        assert len(await memory.turns(SESSION, principal="anonymous", limit=9) or []) == kept


async def test_retention_deletes_empty_sessions(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(), clock=lambda: 2_000_000_000.0) as memory:
        old, new = owner("silent-session-old", epoch=1_000), owner("silent-session-new", epoch=2_000_000_000_000)
        for by in (old, new):
            memory.sessions.record(by, "elena")
        await memory.append([turn("said", by=owner(epoch=1_000))])
        await memory._maintenance.sweep(30)
        found = [
            await memory._database.read(partial(find_session, session_id=by.session_id)) for by in (old, new, owner())
        ]
        assert [record is not None for record in found] == [False, True, True]
