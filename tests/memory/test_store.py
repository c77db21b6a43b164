"""The store's statements, on SQLite and on PostgreSQL: once, in order, and only into one's own session."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text

from tests.memory.support.stores import erase_session
from tests.memory.support.turns import SESSION, owner, turn
from token_broker.memory.drivers.database import Database
from token_broker.memory.drivers.postgres import PostgresDatabase
from token_broker.memory.ingest.group_commit import ArrivalClock
from token_broker.memory.store.erasure import (
    Marked,
    delete_erased,
    delete_idle_sessions,
    delete_older_turns,
    mark_erased,
    unfinished_erasures,
)
from token_broker.memory.store.sessions import find_session, remove_expired_tickets, spend_ticket
from token_broker.memory.store.tables import turns
from token_broker.memory.store.turn_reads import last_turns, last_turns_of, list_turns, recent_sessions, turns_at
from token_broker.memory.store.turn_words import read_words
from token_broker.memory.store.turn_writes import insert_turns, last_arrival, save_sessions
from token_broker.memory.store_errors import NotOwnerError, StoreUnreachableError
from token_broker.memory.types import ArrivedTurn, Outcome, SinkName, Turn, arrival_at

arrivals = ArrivalClock()
S, D, F, E = Outcome.STORED, Outcome.DUPLICATE, Outcome.FOREIGN, Outcome.ERASED


async def put(database: Database, *turns: Turn, known: bool = False, sinks: Sequence[SinkName] = ()) -> list[Outcome]:
    unknown = [] if known else [(said.owner, said.agent_id) for said in turns]
    batch = [ArrivedTurn(said, arrivals.next()) for said in turns]
    return await database.write(partial(insert_turns, batch=batch, now_s=1.0, unknown=unknown, sinks=sinks))


async def words_of(database: Database, session_ids: list[str]) -> list[str]:
    """Ids of the turns of these sessions that a search looks through."""
    chunks = await database.read(partial(read_words, session_ids=session_ids))
    arrivals = [int(arrival) for keys, _ in chunks for arrival in keys.split(" ")]
    said = await database.read(partial(turns_at, arrivals=arrivals, principal="anonymous"))
    return [turn.turn_id for turn in said]


async def ids(
    database: Database,
    session_id: str = SESSION,
    limit: int = 100,
    after: str | None = None,
    *,
    principal: str = "anonymous",
) -> list[str]:
    found = await database.read(
        partial(list_turns, session_id=session_id, limit=limit, after=after, principal=principal)
    )
    return [said.turn_id for said in found or []]


async def test_turn_round_trip(database: Database) -> None:
    said = turn(
        "t1", 'naïve "quotes" 日本 \u2028 \\ 🎙', by=owner(user_id="ann"), sequence=4, interrupted=True, channel="web"
    )
    await put(database, said)
    (found,) = (
        await database.read(partial(list_turns, session_id=SESSION, limit=9, after=None, principal="anonymous")) or []
    )
    assert (found.turn_id, found.content, found.created_at, found.sequence) == ("t1", said.content, said.created_at, 4)
    assert (found.role, found.agent_id, found.interrupted, found.channel) == ("user", "elena", True, "web")
    assert found.source == "browser"


async def test_special_text_round_trip(database: Database) -> None:
    odd = [
        "",
        "NULL",
        "null",
        "{}",
        "{a,b}",
        ",",
        '"',
        '""',
        "\\",
        '\\"',
        "\\\\",
        "\\x41",
        " ",
        "\t \n\r",
        "'",
        "''",
        "$1",
        "?",
        ":x",
    ]
    texts = [*odd, *(f"a{chr(code)}b" for code in range(1, 256))]
    said = [turn(f"t{place:03}", text, sequence=place, channel=text) for place, text in enumerate(texts)]
    assert set(await put(database, *said)) == {S}
    found = list(
        await database.read(
            partial(list_turns, session_id=SESSION, limit=len(texts), after=None, principal="anonymous")
        )
        or []
    )
    assert [(kept.content, kept.channel) for kept in found] == [(text, text) for text in texts]


async def test_turn_is_stored_once(database: Database) -> None:
    assert await put(database, turn("t1", "first"), turn("t2"), turn("t1", "second")) == [S, S, D]
    assert await put(database, turn("t1", "third"), turn("t3")) == [D, S]
    found = list(
        await database.read(partial(list_turns, session_id=SESSION, limit=9, after=None, principal="anonymous")) or []
    )
    assert [(said.turn_id, said.content) for said in found] == [("t1", "first"), ("t2", "hello"), ("t3", "hello")]


async def test_turn_ids_are_per_session(database: Database) -> None:
    assert await put(database, turn("t1"), turn("t1", by=owner("another-session-01"))) == [S, S]


async def test_reading_order(database: Database) -> None:
    later = owner(epoch=2)
    await put(database, turn("e2-1", by=later, sequence=1), turn("n1"), turn("n2"), turn("s9", sequence=9))
    await put(database, turn("s0", sequence=0), turn("s2", sequence=2), turn("again-s2", sequence=2))
    assert await ids(database) == ["s0", "s2", "again-s2", "s9", "n1", "n2", "e2-1"]


async def test_pages_have_no_gap(database: Database) -> None:
    await put(database, *(turn(f"t{number}", sequence=number) for number in range(7)))
    assert await ids(database, limit=3) == ["t0", "t1", "t2"]
    assert await ids(database, limit=3, after="t2") == ["t3", "t4", "t5"]
    assert await ids(database, limit=3, after="t6") == []
    assert (
        await database.read(partial(list_turns, session_id=SESSION, limit=3, after="unknown", principal="anonymous"))
        is None
    )


async def test_foreign_session_takes_no_turn(database: Database) -> None:
    await put(database, turn("t1", by=owner(principal="ann")))
    mallory = owner(principal="mallory", epoch=9)
    assert await put(database, turn("t2", by=mallory), turn("t1", by=mallory)) == [F, F]
    assert await put(database, turn("t3", by=mallory), known=True) == [F]
    assert await ids(database, principal="ann") == ["t1"]


async def test_foreign_session_is_not_read(database: Database) -> None:
    await put(database, turn("t1", by=owner(principal="ann")))
    for principal in ("mallory", "anonymous", ""):
        with pytest.raises(NotOwnerError):
            await ids(database, principal=principal)
    record = await database.read(partial(find_session, session_id=SESSION))
    assert record is not None
    assert (record.principal, record.epoch) == ("ann", 1)


async def test_missing_session_is_stored_with_turn(database: Database) -> None:
    assert await put(database, turn("t1"), turn("t2", by=owner("another-session-01")), known=True) == [S, S]
    assert await database.read(partial(find_session, session_id=SESSION)) is not None


async def test_only_newer_plan_renews_session(database: Database) -> None:
    for epoch in (5, 9, 7):
        await database.write(partial(save_sessions, owners=[(owner(epoch=epoch), "elena")], now_s=1.0))
    record = await database.read(partial(find_session, session_id=SESSION))
    assert record is not None
    assert record.epoch == 9


async def test_concurrent_writers_store_once(database: Database) -> None:
    turns = [turn(f"t{number}", by=owner(f"session-of-test-{number % 3}")) for number in range(30)]
    outcomes = await asyncio.gather(*(put(database, *turns[start:], *turns[:start]) for start in range(0, 30, 5)))
    assert sum(outcome is S for answer in outcomes for outcome in answer) == 30
    assert [len(await ids(database, f"session-of-test-{number}")) for number in range(3)] == [10, 10, 10]


async def test_ticket_is_spent_once(database: Database) -> None:
    spend = partial(spend_ticket, ticket_id="ticket-1", expires_at_s=100.0)
    assert sorted(await asyncio.gather(*(database.write(spend) for _ in range(8)))) == [False] * 7 + [True]


async def test_tickets_are_kept_until_expired(database: Database) -> None:
    for number, expires_at_s in enumerate((50.0, 150.0)):
        await database.write(partial(spend_ticket, ticket_id=f"ticket-{number}", expires_at_s=expires_at_s))
    assert await database.write(partial(remove_expired_tickets, before_s=100.0)) == 1
    assert not await database.write(partial(spend_ticket, ticket_id="ticket-1", expires_at_s=150.0))


async def test_erased_session_leaves_nothing(database: Database) -> None:
    await put(database, turn("t1", "a secret about marmalade"), sinks=["zep"])
    await put(database, turn("o1", "marmalade too", by=owner("another-session-01")))
    both = [SESSION, "another-session-01"]
    assert await words_of(database, both) == ["t1", "o1"]
    assert await erase_session(database, SESSION) == 1
    assert await ids(database) == []
    tombstone = await database.read(partial(find_session, session_id=SESSION))
    assert tombstone is not None
    assert tombstone.erased
    assert await put(database, turn("t2", "new")) == [E]
    assert await put(database, turn("t3", "new"), known=True) == [E]
    assert await words_of(database, both) == ["o1"]


async def test_erasure_uses_short_transactions(database: Database) -> None:
    await put(database, *(turn(f"t{number}", "x" * 1000) for number in range(9)), turn("long", "x" * 9000))
    assert await database.write(partial(mark_erased, session_id=SESSION, now_us=1, sinks=[])) == Marked(10)
    assert await ids(database) == [], "nobody reads what is not deleted yet"
    assert await database.read(partial(unfinished_erasures, limit=9)) == [SESSION]
    chunk = partial(delete_erased, session_id=SESSION, max_turns=5, max_bytes=4000)
    deleted = [await database.write(chunk) for _ in range(6)]
    assert sum(deleted) == 10
    assert max(deleted) == 4, "4,000 bytes at most"
    assert min(deleted[: deleted.index(0)]) >= 1, "a turn that is larger is deleted too"
    assert await database.read(partial(unfinished_erasures, limit=9)) == []


async def test_unerased_session_keeps_turns(database: Database) -> None:
    await put(database, turn("t1"))
    assert await database.write(partial(delete_erased, session_id=SESSION, max_turns=5, max_bytes=4000)) == 0
    assert await ids(database) == ["t1"]


async def test_tombstone_outlives_sweep(database: Database) -> None:
    await erase_session(database, SESSION)
    assert await database.write(partial(delete_idle_sessions, before_s=10**9, limit=9)) == 0
    assert await put(database, turn("t1")) == [E]


async def test_foreign_session_is_not_erased(database: Database) -> None:
    await put(database, turn("t1", by=owner(principal="ann")))
    work = partial(mark_erased, session_id=SESSION, now_us=1, sinks=[])
    with pytest.raises(NotOwnerError):
        await database.write(partial(work, principal="mallory"))
    assert await ids(database, principal="ann") == ["t1"]
    assert await database.write(partial(work, principal="ann")) == Marked(1)
    assert await database.write(partial(work, principal="mallory")) == Marked(0), (
        "there is nothing left to be anybody's"
    )


def _stored(connection: Connection, session_id: str) -> int:
    return connection.scalar(select(func.count()).select_from(turns).where(turns.c.session_id == session_id)) or 0


async def test_erasure_catches_turn_under_way(database: Database) -> None:
    """Turns and erasures at once: whatever was stored, and whenever, is deleted in the end."""
    for number in range(10):
        key = f"session-raced-{number:02}"
        erasing = asyncio.create_task(erase_session(database, key))
        writes = [put(database, turn(f"t{n}", by=owner(key)), sinks=["zep"]) for n in range(5)]
        outcomes = await asyncio.gather(*writes)
        await erasing
        await erase_session(database, key)
        assert {outcome for one in outcomes for outcome in one} <= {S, E}
        assert await database.read(partial(_stored, session_id=key)) == 0
        assert await put(database, turn("late", by=owner(key))) == [E]


async def test_old_turns_and_idle_sessions_go(database: Database) -> None:
    old = [ArrivedTurn(turn(f"old{number}"), arrival_at(1000 + number)) for number in range(3)]
    mixed = ArrivedTurn(turn("old", by=owner("another-session-01")), arrival_at(1003))
    for item in [*old, mixed]:
        unknown = [(item.turn.owner, "elena")]
        await database.write(partial(insert_turns, batch=[item], now_s=1.0, unknown=unknown, sinks=[]))
    await put(database, turn("new", by=owner("another-session-01")))
    forget = partial(delete_older_turns, before_arrival=arrival_at(2000), limit=3, max_bytes=10_000)
    assert [await database.write(forget) for _ in range(3)] == [3, 1, 0]
    assert await ids(database, "another-session-01") == ["new"]
    assert await database.read(partial(find_session, session_id=SESSION)) is not None, "a token may still name it"
    assert await database.write(partial(delete_idle_sessions, before_s=1.0, limit=9)) == 1
    assert await database.read(partial(find_session, session_id=SESSION)) is None


async def test_last_turns_are_for_owner_only(database: Database) -> None:
    ann = owner(principal="ann")
    await put(database, *(turn(f"t{number}", by=ann, sequence=number) for number in range(5)))
    newest = await database.read(partial(last_turns, session_id=SESSION, limit=2))
    assert [said.turn_id for said in newest] == ["t3", "t4"]
    told = await database.read(partial(last_turns_of, owner=ann, limit=9))
    assert told is not None
    assert len(told) == 5
    assert await database.read(partial(last_turns_of, owner=owner(principal="bob"), limit=9)) is None


async def test_newest_sessions_come_first(database: Database) -> None:
    sessions = [(owner(f"session-of-ann-0{number}", principal="ann", epoch=number), "elena") for number in range(4)]
    await database.write(partial(save_sessions, owners=[*sessions, (owner(), "elena")], now_s=1.0))
    find = partial(recent_sessions, principal="ann", limit=2, but="session-of-ann-03")
    assert await database.read(find) == ["session-of-ann-02", "session-of-ann-01"]


async def test_last_arrival(database: Database) -> None:
    assert await database.read(last_arrival) == 0
    await put(database, turn("t1"))
    assert 0 < await database.read(last_arrival) < arrivals.next()


@pytest.mark.parametrize("count", [1, 250])
async def test_batch_of_any_size_is_stored(database: Database, count: int) -> None:
    outcomes = await put(
        database, *(turn(f"t{n}", by=owner(f"session-of-test-{n % 7}")) for n in range(count)), sinks=["zep"]
    )
    assert outcomes == [S] * count


async def test_closed_store_opens_nothing_again(database: Database) -> None:
    await database.close()
    with pytest.raises(StoreUnreachableError):
        await database.read(last_arrival)
    with pytest.raises(StoreUnreachableError):
        await database.write(last_arrival)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_close_waits_for_work_under_way(database: PostgresDatabase) -> None:
    began, drivers = asyncio.Event(), list[Any]()

    def work(connection: Connection) -> None:
        drivers.append(connection.connection.driver_connection)
        began.set()
        connection.execute(text("SELECT pg_sleep(0.1)"))

    reading = asyncio.create_task(database.read(work, pool="recall"))
    await began.wait()
    await database.close()
    await reading
    assert all(driver.is_closed() for driver in drivers), "a connection in use is closed, too"
