"""A session's size: no session outgrows its limit, in one process exactly, and what is erased makes room again."""

import asyncio
from functools import partial

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from tests.memory.conftest import MakeSettings
from tests.memory.support.stores import make_dead
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.test_quotas import ANN, calling, refusal
from tests.support.waiting import eventually
from token_broker.memory.ingest.group_commit import SessionSizes
from token_broker.memory.service import Memory
from token_broker.memory.store.dead_letters import purge_dead
from token_broker.memory.store.erasure import delete_older_turns
from token_broker.memory.types import Outcome, arrival_at, stored_bytes

SIZE = stored_bytes(turn("t0", "x" * 100))  # of a turn with an id of two characters


def columns(connection: Connection) -> dict[str, int]:
    rows = connection.execute(text("SELECT session_id, stored_bytes FROM sessions")).all()
    return {row.session_id: row.stored_bytes for row in rows}


async def test_session_limit_is_exact(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(session_bytes=10 * SIZE)) as memory:
        assert [await memory.append([turn(f"t{n}", "x" * 100)]) for n in range(9)] == [[Outcome.STORED]] * 9
        assert await memory.append([turn("t9", "x" * 101)]) == [Outcome.FULL]
        assert await memory.append([turn("t9", "x" * 100)]) == [Outcome.STORED]
        assert await memory.append([turn("ta", "x")]) == [Outcome.FULL]
        assert await memory.append([turn("t9", "x" * 100)]) == [Outcome.DUPLICATE]
        assert await memory.append([turn("ta", "x", by=owner("another-session-01"))]) == [Outcome.STORED]
        assert len(await memory.turns(SESSION, principal="anonymous", limit=99) or []) == 10
        assert (memory.status().full_sessions, memory.status().stored) == (2, 11)


async def test_group_is_stored_whole_or_not(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(session_bytes=3 * SIZE)) as memory:
        assert await memory.append([turn("t0", "x" * 100), turn("t1", "x" * 100)]) == [Outcome.STORED] * 2
        assert await memory.append([turn("t2", "x" * 100), turn("t3", "x" * 100)]) == [Outcome.FULL] * 2
        assert await memory.append([turn("t4", "x" * 100)]) == [Outcome.STORED]


async def test_concurrent_turns_respect_limit(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(session_bytes=10 * SIZE)) as memory:
        outcomes = await asyncio.gather(*(memory.append([turn(f"{n:02}", "x" * 100)]) for n in range(40)))
        assert outcomes.count([Outcome.STORED]) == 10
        assert outcomes.count([Outcome.FULL]) == 30


async def test_sizes_survive_restart(make_settings: MakeSettings) -> None:
    settings = make_settings(session_bytes=10 * SIZE)
    async with Memory.open(settings) as memory:
        for number in range(8):
            await memory.append([turn(f"t{number}", "x" * 100)])
    async with Memory.open(settings) as heir:
        assert await heir.append([turn("t8", "x" * 100), turn("t9", "x" * 100)]) == [Outcome.STORED] * 2
        assert await heir.append([turn("ta", "x")]) == [Outcome.FULL]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_replicas_exceed_limit_by_lag_only(make_settings: MakeSettings) -> None:
    limit = 160 * SIZE  # a sixteenth of which is ten turns
    settings = make_settings(session_bytes=limit)
    async with Memory.open(settings) as one, Memory.open(settings) as two:
        stored = 0
        for number in range(120):
            outcomes = [
                *await one.append([turn(f"{number:02x}", "x" * 100)]),
                *await two.append([turn(f"{number:02X}".lower().rjust(3, "z"), "x" * 99)]),
            ]
            stored += outcomes.count(Outcome.STORED)
        assert 160 <= stored <= 160 + 10
        assert outcomes == [Outcome.FULL] * 2


async def test_full_then_erased_session_is_erased(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(session_bytes=2 * SIZE)) as memory:
        await memory.append([turn("t0", "x" * 100), turn("t1", "x" * 100)])
        assert await memory.append([turn("t2", "x")]) == [Outcome.FULL]
        await memory.erase_session(SESSION, principal="anonymous")
        assert await memory.append([turn("t2", "x")]) == [Outcome.ERASED]


async def test_retention_makes_room(make_settings: MakeSettings) -> None:
    now_s = 1000.0
    async with Memory.open(make_settings(session_bytes=4 * SIZE), clock=lambda: now_s) as memory:
        await memory.append([turn("t0", "x" * 100), turn("t1", "x" * 100)])
        now_s = 2000.0
        await memory.append([turn("t2", "x" * 100), turn("t3", "x" * 100)])
        assert await memory.append([turn("t4", "x" * 100)]) == [Outcome.FULL]
        await memory._database.write(
            partial(delete_older_turns, before_arrival=arrival_at(1500), limit=9, max_bytes=10_000)
        )
        assert await memory.append([turn("t4", "x" * 100), turn("t5", "x" * 100)]) == [Outcome.STORED] * 2
        assert await memory.append([turn("t6", "x")]) == [Outcome.FULL]


async def test_purged_dead_letters_make_room(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(session_bytes=2 * SIZE)) as memory:
        await memory.append([turn("t0", "x" * 100), turn("t1", "x" * 100)])
        await make_dead(memory._database, "t0")
        assert await memory._database.write(purge_dead) == 1
        assert await memory.append([turn("t2", "x" * 100)]) == [Outcome.STORED]


async def test_deletion_counts_before_the_size_is_written(make_settings: MakeSettings) -> None:
    """The column lags behind: what is deleted before it is written is subtracted all the same."""
    async with Memory.open(make_settings(session_bytes=1_000_000)) as memory:
        await memory.append([turn("t0", "x" * 100), turn("t1", "x" * 100)])
        await make_dead(memory._database, "t0")
        assert await memory._database.write(purge_dead) == 1
    async with Memory.open(make_settings(session_bytes=2 * SIZE)) as memory:
        assert await memory.append([turn("t2", "x" * 100)]) == [Outcome.STORED]
        assert await memory.append([turn("t3", "x" * 100)]) == [Outcome.FULL]


async def test_full_session_is_413_for_its_owner(make_settings: MakeSettings) -> None:
    async with calling(make_settings(session_bytes=1000)) as caller:
        assert (await caller.say("x" * 900)).status_code == 200
        assert refusal(await caller.say("x" * 900, "t2")) == (413, "session_full", False)
        assert refusal(await caller.enrich("y", "x" * 100)) == (413, "session_full", False)
        assert await caller.stored() == ["x" * 900]
        stranger = owner(principal="bob")
        assert refusal(await caller.say("x" * 900, "t3", by=stranger)) == (403, "foreign_session", False)
        assert (await caller.say("x" * 900, by=owner("session-of-bob-001", principal="bob"))).status_code == 200


async def test_proxied_turn_of_full_session(
    make_settings: MakeSettings,
) -> None:
    async with Memory.open(make_settings(session_bytes=1000)) as memory:
        await memory.append([turn("t0", "x" * 900, by=ANN)])
        with capture_logs() as logs:
            for number in range(5):
                memory.ingest.offer(turn(f"full-{number}", "x" * 900, by=ANN))
            memory.ingest.offer(turn("t1", by=owner("another-session-01")))

            async def arrived() -> bool:
                return len(await memory.turns("another-session-01", principal="anonymous", limit=9) or []) == 1

            await eventually(arrived)
        assert [line["session_id"] for line in logs if line["event"] == "session_full"] == [SESSION]
        assert memory.status().full_sessions == 5
        assert memory.ingest.buffered == 0


async def test_zero_session_limit_is_off(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings(session_bytes=0)) as memory:
        assert await memory.append([turn(content="x" * 30_000) for _ in range(100)]) == [Outcome.STORED] * 100


async def test_size_column_follows_storage(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings()) as memory:
        for number in range(5):
            await memory.append([turn(f"t{number}", "ü" * 20_000)])
        size = 5 * stored_bytes(turn("t0", "ü" * 20_000))

        async def written() -> int:
            return (await memory._database.read(columns))[SESSION]

        assert size - 65_536 <= await written() <= size
        await memory._writer.write_sizes(everything=True)
        assert await written() == size


def test_evicted_sizes_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.memory.ingest.group_commit._SIZES_KNOWN", 10)
    sizes = SessionSizes(1_000_000)
    for number in range(100):
        sizes.learn({f"s{number}": 0})
        sizes.add({f"s{number}": 7})
    assert sizes.due() == {f"s{number}": 7 for number in range(90)}
    assert sizes.due(everything=True) == {f"s{number}": 7 for number in range(100)}


def test_stored_bytes_of_a_turn() -> None:
    said = turn("tü", "naïve 🎙", by=ANN, channel="web")
    assert stored_bytes(said) == len("naïve 🎙".encode()) + len("tü".encode()) + len(SESSION) + len("elena") + len("web")
