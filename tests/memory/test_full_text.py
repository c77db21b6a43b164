"""SQLite's full text lags behind the commits: it catches up, loses nothing, and stays sound."""

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from tests.memory.conftest import MakeSettings
from tests.memory.support.stores import Obstinate, erase_session
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep import Zep
from tests.support.waiting import eventually
from token_broker.memory.drivers.database import Database
from token_broker.memory.service import Memory
from token_broker.memory.store import full_text
from token_broker.memory.store.erasure import delete_older_turns
from token_broker.memory.store.full_text import FullTextIndexer, index_turns, merge_step, search
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.store_errors import StoreAwayError, StoreError
from token_broker.memory.types import ArrivedTurn, arrival_at

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def put(database: Database, *contents: str, session_id: str = SESSION, at_s: float = 1000) -> None:
    by = owner(session_id)
    said = [ArrivedTurn(turn(content=text, by=by), arrival_at(at_s + n)) for n, text in enumerate(contents)]
    work = partial(insert_turns, batch=said, now_s=1.0, unknown=[(by, "elena")], sinks=[])
    await database.write(work)


async def found(database: Database, *terms: str, of: Sequence[str] = (SESSION,)) -> list[str]:
    return [said.content for said in await database.read(partial(search, terms=terms, limit=9, session_ids=of))]


async def found_by(memory: Memory, word: str) -> list[str]:
    return await found(memory._database, word)


def indexed(connection: Connection) -> int:
    """How many turns are in the index, which is sound."""
    connection.execute(text("INSERT INTO turns_fts (turns_fts) VALUES ('integrity-check')"))
    return connection.scalar(text("SELECT count(*) FROM turns_fts")) or 0


def pieces(connection: Connection) -> int:
    """How many pieces a search has to go through."""
    return connection.scalar(text("SELECT count(DISTINCT segid) FROM turns_fts_idx")) or 0


async def test_turns_are_indexed_once_in_order(database: Database) -> None:
    await put(database, "one harbour", "two harbours", "three harbours")
    assert await database.write(partial(index_turns, limit=2)) == 2
    assert await found(database, "harbour", "harbours") == ["two harbours", "one harbour"]
    assert [await database.write(index_turns) for _ in range(2)] == [1, 0]
    assert await database.write(indexed) == 3


async def test_rare_terms_rank_higher(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(database, "about the harbour", "about Bergen", "about tea", "about it, about them", "nothing")
    await database.write(index_turns)
    words = ("about", "harbour", "bergen")
    told = ["about Bergen", "about the harbour", "about it, about them", "about tea"]
    assert await found(database, *words) == told
    monkeypatch.setattr(full_text, "_RANKED_TURNS", 3)
    assert await found(database, *words) == [said for said in told if said != "about the harbour"]
    monkeypatch.setattr(full_text, "_RANKED_CHARS", 5)
    assert await found(database, *words) == ["about it, about them", "about tea", "about Bergen"]


async def test_index_is_merged_in_small_steps(database: Database) -> None:
    for number in range(300):
        words = " ".join(f"word{number}x{n}" for n in range(40))
        await put(database, *(f"{number} {n} {words}" for n in range(20)), at_s=1000 + 100 * number)
        await database.write(index_turns)
    before = await database.read(pieces)
    assert before > 100
    steps = 0
    while await database.write(merge_step):
        steps += 1
    assert steps > 10
    assert await database.read(pieces) < 20
    assert await database.write(indexed) == 300 * 20
    assert await found(database, "299") != []


async def test_broker_keeps_index_merged(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.memory.store.full_text._PAUSE_S", 0)

    async with Memory.open(make_settings()) as memory:
        for number in range(60):
            await memory.append([turn(content=f"harbour {number}")])
            await eventually(partial(found_by, memory, str(number)))
        assert await memory._database.read(pieces) < 20


async def test_erasing_unindexed_turn_keeps_index_sound(database: Database) -> None:
    await put(database, "a harbour that is indexed")
    await database.write(index_turns)
    await put(database, "a harbour that is not", at_s=2000)
    await put(database, "a harbour of others", session_id="another-session-01", at_s=3000)
    assert await erase_session(database, SESSION) == 2
    assert await database.write(indexed) == 0
    await put(database, "a harbour once more", session_id="session-after-it-1", at_s=4000)
    await database.write(index_turns)
    assert await database.write(indexed) == 2
    assert await found(database, "harbour", of=["session-after-it-1"]) == ["a harbour once more"]


async def test_erasing_newest_turn_reindexes_nothing(database: Database) -> None:
    await put(database, "the oldest harbour", "an old harbour", "a harbour")
    await database.write(index_turns)

    def erase_newest(connection: Connection) -> int:
        return connection.execute(text("DELETE FROM turns WHERE arrival = (SELECT max(arrival) FROM turns)")).rowcount

    assert await database.write(erase_newest) == 1
    assert await database.write(index_turns) == 0
    await put(database, "the newest harbour", at_s=2000)
    assert await database.write(index_turns) == 1
    assert await database.write(indexed) == 3
    assert (
        await database.write(partial(delete_older_turns, before_arrival=arrival_at(3000), limit=9, max_bytes=10_000))
        == 3
    )
    assert await database.write(indexed) == 0


async def test_unindexed_turns_are_indexed_at_start(database: Database, make_settings: MakeSettings) -> None:
    await put(database, *(f"harbour number {number}" for number in range(1200)))
    await database.close()
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        await eventually(partial(found_by, memory, "1199"))
        assert await memory._database.write(indexed) == 1200


async def test_stored_turn_is_soon_found(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings()) as memory:
        for word in ("harbour", "lighthouse"):
            await memory.append([turn(content=f"the {word}")])
            assert await eventually(partial(found_by, memory, word), within_s=5) == [f"the {word}"]


async def test_nothing_is_indexed_with_zep(zep_settings: MakeSettings, make_settings: MakeSettings, zep: Zep) -> None:
    async with Memory.open(zep_settings()) as memory:
        await memory.append([turn("t1", "the harbour", sequence=1)])
        await zep.has(1)
        await asyncio.sleep(0.5)
        assert await found_by(memory, "harbour") == []
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        assert await eventually(partial(found_by, memory, "harbour")) == ["the harbour"]


async def test_indexer_retries_store_that_is_away(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.memory.store.full_text._AWAY_S", 0.05)
    await put(database, "a harbour")
    obstinate = Obstinate(database)
    obstinate.error = StoreAwayError("SQLITE_FULL")
    with capture_logs() as logged:
        running = asyncio.create_task(FullTextIndexer(obstinate).run())

        async def tried_twice() -> bool:
            return obstinate.writes >= 2

        await eventually(tried_twice)
        obstinate.error = None
        assert await eventually(partial(found, database, "harbour")) == ["a harbour"]

        async def told() -> bool:
            return len(logged) > 1

        await eventually(told)
    running.cancel()
    assert [(line["event"], line.get("reason")) for line in logged] == [
        ("full_text_not_indexed", "SQLITE_FULL"),
        ("full_text_indexed_again", None),
    ]


async def test_damaged_index_is_rebuilt(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.memory.store.full_text._AWAY_S", 0.05)
    for number in range(3):
        await put(database, f"harbour {number}", at_s=1000 + number)
        await database.write(index_turns)

    def damage(connection: Connection) -> int:
        return connection.execute(text("UPDATE turns_fts_data SET block = zeroblob(9)")).rowcount

    assert await database.write(damage) > 0
    with pytest.raises(StoreError, match="SQLITE_CORRUPT_VTAB"):
        await erase_session(database, SESSION)
    with capture_logs() as logged:
        await put(database, "harbour 3", session_id="another-session-01", at_s=2000)
        running = asyncio.create_task(FullTextIndexer(database).run())

        async def told() -> bool:
            return len(logged) > 1

        await eventually(told)
    running.cancel()
    assert [line["event"] for line in logged] == ["full_text_not_indexed", "full_text_indexed_again"]
    assert len(await found(database, "harbour", of=[SESSION, "another-session-01"])) == 4
    assert await erase_session(database, SESSION) == 3, "what the damage left of the erasure is deleted"
    assert await database.write(indexed) == 1
