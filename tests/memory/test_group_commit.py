"""The group commit, the proxy's buffer and the repositories, before a database that does what the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr

from tests.memory.support.stores import Obstinate, erase_session, opened
from tests.memory.support.turns import SESSION, owner, turn
from tests.support.databases import sqlite_url
from tests.support.waiting import eventually
from token_broker.memory.drivers.connect import connect
from token_broker.memory.ingest.buffer import IngestBuffer
from token_broker.memory.ingest.group_commit import GroupWriter
from token_broker.memory.repositories import StoredSessions, StoredTickets
from token_broker.memory.store.sessions import claim_session, find_session, release_session
from token_broker.memory.store.turn_writes import save_sessions
from token_broker.memory.store_errors import StoreAwayError, StoreBusyError, StoreRefusedError, StoreUnreachableError
from token_broker.memory.types import Outcome
from token_broker.security.tokens import Owner


@pytest.fixture
async def database(tmp_path: Any) -> AsyncIterator[Obstinate]:
    async with opened(connect(SecretStr(sqlite_url(tmp_path)), timeout_s=10, patience_s=5)) as real:
        yield Obstinate(real)


@pytest.fixture
async def writer(database: Obstinate) -> AsyncIterator[GroupWriter]:
    writer = GroupWriter(database, gather_s=0, clock=lambda: 1000.0, on_stored=lambda _sessions: None)
    running = asyncio.create_task(writer.run())
    yield writer
    running.cancel()
    await asyncio.wait({running})


async def test_turns_during_commit_share_next_one(writer: GroupWriter, database: Obstinate) -> None:
    database.free.clear()
    first = writer.submit([turn()])
    await database.asked.wait()
    others = [writer.submit([turn()]) for _ in range(50)]
    database.free.set()
    assert [await done for done in (first, *others)] == [[Outcome.STORED]] * 51
    assert database.writes == 2


async def test_refused_row_fails_only_its_caller(writer: GroupWriter, database: Obstinate) -> None:
    database.refuses = "bad"
    good, bad, also_good = (writer.submit([turn(turn_id)]) for turn_id in ("good", "bad", "also-good"))
    assert await good == [Outcome.STORED]
    assert await also_good == [Outcome.STORED]
    with pytest.raises(StoreRefusedError):
        await bad
    assert writer.counts.refused == 1


async def test_batch_fails_while_store_is_away(writer: GroupWriter, database: Obstinate) -> None:
    database.error = StoreAwayError("disk full")
    both = [writer.submit([turn()]) for _ in range(2)]
    for done in both:
        with pytest.raises(StoreAwayError):
            await done
    assert writer.failing == "disk full"
    database.error = None
    assert await writer.submit([turn()]) == [Outcome.STORED]
    assert writer.failing is None


async def test_unreachable_store_fails_fast(writer: GroupWriter, database: Obstinate) -> None:
    database.error = StoreUnreachableError("down")
    with pytest.raises(StoreUnreachableError):
        await writer.submit([turn()])
    with pytest.raises(StoreUnreachableError):
        writer.submit([turn()])


async def test_leaving_caller_cancels_nothing(writer: GroupWriter, database: Obstinate) -> None:
    database.free.clear()
    caller = asyncio.ensure_future(writer.submit([turn("t1")]))
    await database.asked.wait()
    caller.cancel()
    neighbour = writer.submit([turn("t2")])
    database.free.set()
    assert await neighbour == [Outcome.STORED]
    assert await writer.submit([turn("t1")]) == [Outcome.DUPLICATE]


async def test_queue_is_bounded_in_turns(writer: GroupWriter, database: Obstinate) -> None:
    database.free.clear()
    for _ in range(50):
        writer.submit([turn() for _ in range(100)])
    with pytest.raises(StoreBusyError):
        writer.submit([turn()])


async def test_queue_is_bounded_in_bytes(writer: GroupWriter, database: Obstinate) -> None:
    database.free.clear()
    for _ in range(16):
        writer.submit([turn(content="x" * 1_000_000)])
    with pytest.raises(StoreBusyError):
        writer.submit([turn(content="x" * 1_000_000)])


@pytest.fixture
async def ingest(writer: GroupWriter) -> AsyncIterator[IngestBuffer]:
    ingest = IngestBuffer(writer, max_turns=10, max_bytes=100_000)
    running = asyncio.create_task(ingest.run())
    yield ingest
    running.cancel()
    await asyncio.wait({running})


async def test_proxied_turns_outlast_store_outage(
    writer: GroupWriter, ingest: IngestBuffer, database: Obstinate
) -> None:
    database.error = StoreAwayError("down")
    said = [turn(f"t{number}", by=owner(f"session-{number // 2}-0123456")) for number in range(6)]
    assert all(ingest.offer(each) for each in said)
    await database.asked.wait()
    await asyncio.sleep(0)
    database.error = None
    async with asyncio.timeout(10):
        await ingest.flushed()
    assert ingest.buffered == 0
    assert await writer.submit(said) == [Outcome.DUPLICATE] * 6


async def test_buffer_counts_overflow(ingest: IngestBuffer, database: Obstinate) -> None:
    database.error = StoreAwayError("down")
    owners = [owner(f"session-number-{number}") for number in range(12)]
    assert [ingest.offer(turn(by=each)) for each in owners] == [True] * 10 + [False] * 2
    assert ingest.counts.overflowed == 2


async def test_buffer_is_bounded_in_bytes(ingest: IngestBuffer, database: Obstinate) -> None:
    database.error = StoreAwayError("down")
    assert ingest.offer(turn(content="x" * 60_000))
    assert not ingest.offer(turn(content="x" * 60_000))


async def test_refused_turn_holds_up_no_other(writer: GroupWriter, ingest: IngestBuffer, database: Obstinate) -> None:
    database.refuses = "bad"
    for turn_id in ("t1", "bad", "t2"):
        ingest.offer(turn(turn_id))
    async with asyncio.timeout(10):
        await ingest.flushed()
    assert await writer.submit([turn("t1"), turn("t2")]) == [Outcome.DUPLICATE] * 2
    assert ingest.counts.refused == 1


async def test_unstorable_characters_are_replaced(
    writer: GroupWriter, ingest: IngestBuffer, database: Obstinate
) -> None:
    from token_broker.memory.store.turn_reads import last_turns

    ingest.offer(turn(content="a\x00b\ud800c"))
    async with asyncio.timeout(10):
        await ingest.flushed()
    (found,) = await database.read(lambda connection: last_turns(connection, SESSION, 1))
    assert found.content == "a\ufffdb\ufffdc"


@pytest.fixture
def silence(database: Obstinate) -> Callable[[], None]:
    """The store says nothing at all from here on."""
    return database.free.clear


async def test_ticket_works_once_with_silent_store(database: Obstinate, silence: Callable[[], None]) -> None:
    tickets = StoredTickets(database, patience_s=0.05, clock=lambda: 1000.0)
    assert [await tickets.spend("one", 1100.0) for _ in range(2)] == [True, False]
    before = tickets.spent_locally  # a slow machine's store may have been silent for once
    silence()
    assert [await tickets.spend("two", 1100.0) for _ in range(2)] == [True, False]
    assert not await tickets.spend("one", 1100.0)
    assert tickets.spent_locally == before + 1


async def test_concurrent_ticket_use_is_refused(database: Obstinate) -> None:
    tickets = StoredTickets(database, patience_s=5, clock=lambda: 1000.0)
    assert sorted(await asyncio.gather(*(tickets.spend("one", 1100.0) for _ in range(5)))) == [False] * 4 + [True]


async def test_ticket_of_another_replica(database: Obstinate, silence: Callable[[], None]) -> None:
    here, there = (StoredTickets(database, patience_s=0.5, clock=lambda: 1000.0) for _ in range(2))
    assert await there.spend("one", 1100.0)
    assert not await here.spend("one", 1100.0)
    await there.spend("two", 1100.0)
    silence()
    assert await here.spend("two", 1100.0)  # what is promised then: once a process


async def test_expired_tickets_are_dropped(database: Obstinate, silence: Callable[[], None]) -> None:
    now_s = 1000.0
    tickets = StoredTickets(database, patience_s=0.01, clock=lambda: now_s)
    silence()
    for number in range(5):
        await tickets.spend(f"ticket-{number}", 1100.0)
    now_s = 1300.0
    await tickets.spend("another", 1400.0)
    assert len(tickets._spent) == 1


async def test_long_lived_ticket_keeps_no_others(database: Obstinate, silence: Callable[[], None]) -> None:
    now_s = 1000.0
    tickets = StoredTickets(database, patience_s=0.01, clock=lambda: now_s)
    silence()
    assert await tickets.spend("of-two-hours", 8200.0)
    assert await tickets.spend("of-minutes", 1180.0)
    now_s = 1400.0
    assert await tickets.spend("another", 1580.0)
    assert not await tickets.spend("of-two-hours", 8200.0)
    assert len(tickets._spent) == 2


async def test_store_decides_when_memory_is_full(
    database: Obstinate, silence: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_broker.memory.repositories._TICKETS_KEPT", 1)
    tickets = StoredTickets(database, patience_s=0.5, clock=lambda: 1000.0)
    assert await tickets.spend("remembered", 1100.0)
    assert sorted([await tickets.spend("one more", 1100.0) for _ in range(3)]) == [False, False, True]
    silence()
    assert not await tickets.spend("and another", 1100.0)
    assert tickets.spent_locally == 0


async def test_uncommitted_session_is_found(
    writer: GroupWriter, database: Obstinate, silence: Callable[[], None]
) -> None:
    here, there = (StoredSessions(database, writer, patience_s=0.2) for _ in range(2))
    here.record(owner(principal="ann", epoch=5), "elena")
    found = await here.find(SESSION)
    assert found is not None
    assert (found.principal, found.epoch) == ("ann", 5)
    await writer.submit([turn(by=owner("another-session-01"))])
    elsewhere = await there.find(SESSION)
    assert elsewhere is not None
    assert elsewhere.principal == "ann"
    silence()
    for session_id in (SESSION, "unknown-session-01"):
        with pytest.raises(StoreAwayError):
            await here.find(session_id)
    assert here.unanswered == 2


async def test_one_claim_of_an_id_wins(writer: GroupWriter, database: Obstinate) -> None:
    here, there = (StoredSessions(database, writer, patience_s=5) for _ in range(2))
    claims = [(here if number % 2 else there).claim(owner(epoch=number), "elena") for number in range(10)]
    assert sorted(await asyncio.gather(*claims)) == [False] * 9 + [True]


async def test_only_owner_claims_again(writer: GroupWriter, database: Obstinate) -> None:
    sessions = StoredSessions(database, writer, patience_s=5)
    claimants = [("ann", 5), ("ann", 6), ("bob", 7), ("anonymous", 8)]
    claims = [await sessions.claim(owner(principal=principal, epoch=epoch), "elena") for principal, epoch in claimants]
    assert claims == [True, True, False, False]


async def test_erased_id_cannot_be_claimed(writer: GroupWriter, database: Obstinate) -> None:
    await erase_session(database, SESSION)
    sessions = StoredSessions(database, writer, patience_s=5)
    assert not await sessions.claim(owner(principal="ann"), "elena")
    assert not await sessions.claim(owner(), "elena")


async def test_late_claim_is_released(writer: GroupWriter, database: Obstinate, silence: Callable[[], None]) -> None:
    sessions = StoredSessions(
        database, writer, patience_s=0.5
    )  # on a busy machine less is over before the claim is begun
    silence()
    with pytest.raises(StoreAwayError):
        await sessions.claim(owner(epoch=5), "elena")
    database.free.set()

    async def released() -> bool:
        # A new one each time: who finds the row before it is released remembers it.
        return database.writes == 2 and await StoredSessions(database, writer, patience_s=5).find(SESSION) is None

    await eventually(released)
    another = StoredSessions(database, writer, patience_s=5)
    assert await another.claim(owner(epoch=6), "elena"), "who was told to try again may have it"


async def test_release_spares_renewed_session(database: Obstinate) -> None:
    await database.write(partial(claim_session, owner=owner(epoch=5), agent_id="elena", now_s=1.0))
    await database.write(partial(save_sessions, owners=[(owner(epoch=6), "elena")], now_s=2.0))
    await database.write(partial(release_session, owner=owner(epoch=5)))
    assert await database.read(partial(find_session, session_id=SESSION)) is not None


async def test_session_is_written_with_next_commit(writer: GroupWriter, database: Obstinate) -> None:
    sessions = StoredSessions(database, writer, patience_s=0.2)
    database.error = StoreAwayError("down")
    sessions.record(owner(principal="ann"), "elena")
    await database.asked.wait()
    await asyncio.sleep(0)
    database.error = None
    await writer.submit([turn(by=owner("another-session-01"))])
    found = await StoredSessions(database, writer, patience_s=0.2).find(SESSION)
    assert found is not None
    assert found.principal == "ann"


async def test_session_is_written_without_a_turn(
    writer: GroupWriter, database: Obstinate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its row is there, another replica takes the session's id for nobody's."""
    monkeypatch.setattr("token_broker.memory.ingest.group_commit._SESSIONS_AGAIN_S", 0.01)
    sessions = StoredSessions(database, writer, patience_s=5)
    database.error = StoreAwayError("down")
    sessions.record(owner(principal="ann"), "elena")
    await database.asked.wait()
    await asyncio.sleep(0)
    database.error = None

    async def written() -> bool:
        return await database.read(partial(find_session, session_id=SESSION)) is not None

    await eventually(written)


async def test_lost_session_is_reported(writer: GroupWriter, database: Obstinate) -> None:
    lost: list[Owner] = []
    ingest = IngestBuffer(writer, max_turns=9, max_bytes=9_999, on_refused=lost.append)
    anns, bobs, erased = (owner(f"session-of-{name}-01", principal=name) for name in ("ann", "bob", "eve"))
    await writer.submit([turn(by=anns)])
    await erase_session(database, erased.session_id)
    running = asyncio.create_task(ingest.run())
    mallorys = owner(anns.session_id, principal="mallory")
    for by in (anns, mallorys, bobs, erased):
        assert ingest.offer(turn(by=by))
    await ingest.flushed()
    running.cancel()
    assert lost == [mallorys, erased]
    assert ingest.counts.refused == 2


async def test_flood_leaves_buffer_to_others(writer: GroupWriter, database: Obstinate) -> None:
    database.error = StoreAwayError("down")
    ingest = IngestBuffer(writer, max_turns=40, max_bytes=1_000_000)
    greedy, others = owner("session-of-eve-01", principal="eve"), owner("session-of-ann-01", principal="ann")
    assert sum(ingest.offer(turn(by=greedy)) for _ in range(50)) == 10
    assert not ingest.offer(turn(by=owner("session-of-eve-02", principal="eve"))), "another session of theirs"
    assert sum(ingest.offer(turn(by=others)) for _ in range(10)) == 10
    assert ingest.counts.overflowed == 41
    running = asyncio.create_task(ingest.run())
    database.error = None
    await ingest.flushed()
    running.cancel()
    assert sum(ingest.offer(turn(by=greedy)) for _ in range(50)) == 10


async def test_proxied_turns_count_against_quota(writer: GroupWriter, database: Obstinate) -> None:
    ingest = IngestBuffer(writer, max_turns=1_000, max_bytes=10_000_000, turns_per_minute=20, bytes_per_minute=20_000)
    greedy = owner("session-of-eve-01", principal="eve")
    assert sum(ingest.offer(turn(by=greedy)) for _ in range(50)) == 20
    large = owner("session-of-bob-01", principal="bob")
    assert sum(ingest.offer(turn(content="x" * 4_000, by=large)) for _ in range(50)) == 4
    first, second = owner("session-anonymous-1"), owner("session-anonymous-2")
    assert [sum(ingest.offer(turn(by=each)) for _ in range(50)) for each in (first, second)] == [20, 20]
