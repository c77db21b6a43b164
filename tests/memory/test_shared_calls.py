"""What any replica knows of a call that another one holds: whose it is, and what its page was told."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, and_, func, select, update

from tests.memory.test_call_leases import OWNER, Replica, age, call_row
from tests.support.waiting import eventually
from token_broker.calls.attach_claims import AttachClaims
from token_broker.calls.call_row import DELIVERED, CallRow
from token_broker.calls.followed_calls import SharedEvents
from token_broker.calls.page_events import ATTACHED, CallStreams, PageEvents
from token_broker.memory.drivers.database import Database
from token_broker.memory.store.erasure import delete_erased, mark_erased
from token_broker.memory.store.tables import call_events, calls
from token_broker.memory.store_errors import StoreUnreachableError
from token_broker.security.tokens import Owner

OTHER_OWNER = Owner("session-2", "bob", 1)
PAGE = (OWNER.session_id, "rtc_1")


def claims_of(replica: Replica, database: Database, name: str) -> AttachClaims:
    return AttachClaims(database, name, replica.leases, patience_s=60)


def named(row: CallRow, owner: Owner) -> CallRow:
    """The same call, named by another session."""
    return dataclasses.replace(row, key=f"key of {owner.session_id}", owner=owner)


async def test_attached_call_is_known_everywhere(database: Database) -> None:
    one, other = Replica(database, "one"), Replica(database, "other")
    here, there, row = claims_of(one, database, "one"), claims_of(other, database, "other"), call_row()
    foreign = named(row, OTHER_OWNER)
    assert await here.claim(row) == "claimed"
    assert await there.claim(row) == "attached", "it is being asked for"
    assert await there.claim(foreign) == "claimed", "whose it is is not known yet"
    assert await there.endpoint_of(row.call_id, OWNER) is None, "nor may anybody hang it up"
    assert await here.settle(row, verified=True)
    assert one.leases.holds(row.name)
    assert await there.claim(row) == "attached"
    assert await there.claim(named(row, Owner("session-3", "carl", 1))) == "foreign"
    assert not await there.settle(foreign, verified=True), "even where nothing is checked"
    assert not other.leases.holds(row.name)
    assert await there.claim(foreign) == "foreign"
    assert await there.endpoint_of(row.call_id, OWNER) == row.endpoint
    assert await there.endpoint_of(row.call_id, OTHER_OWNER) is None
    other.leases.over(row.name)  # it was hung up there
    await other.leases.refresh()
    assert await here.claim(row) == "refused"
    assert await here.endpoint_of(row.call_id, OWNER) == row.endpoint, "and may be once more"
    one.leases.over(row.name)
    await one.leases.refresh()
    assert await there.claim(row) == await there.claim(named(row, Owner("session-3", "carl", 1))) == "refused"
    assert await there.endpoint_of(row.call_id, OWNER) is None


async def test_refused_attach_is_refused_everywhere(database: Database) -> None:
    one, other = Replica(database, "one"), Replica(database, "other")
    here, there, row = claims_of(one, database, "one"), claims_of(other, database, "other"), call_row()
    assert await here.claim(named(row, OTHER_OWNER)) == "claimed"
    assert not await here.settle(named(row, OTHER_OWNER), verified=False)
    assert await there.claim(named(row, OTHER_OWNER)) == "refused"
    assert await there.claim(row) == "claimed", "its own session's all the same"
    await age(database, 61)  # the replica that asked has died
    assert await here.claim(row) == "claimed"
    assert not await there.settle(row, verified=True), "it comes late"
    assert await here.settle(row, verified=True)


async def test_attaches_at_once_settle_to_one_holder(database: Database) -> None:
    """Sessions at several replicas name one call, and nothing tells whose it is (`BROKER_ATTACH_CHECK=off`)."""
    replicas = [Replica(database, f"replica {number}") for number in range(4)]
    claims = [claims_of(each, database, f"replica {number}") for number, each in enumerate(replicas)]
    for attempt in range(3):
        called = call_row(attempt)
        owners = [Owner(f"session-{attempt}-{number}", "bob", 1) for number in range(4)]
        rows = [dataclasses.replace(named(called, owner), key=f"{attempt} {owner.session_id}") for owner in owners]
        found = [await each.claim(row) for each, row in zip(claims, rows, strict=True)]
        assert found == ["claimed"] * 4
        settling = [each.settle(row, verified=True) for each, row in zip(claims, rows, strict=True)]
        is_held = await asyncio.gather(*settling)
        assert sum(is_held) == 1
        assert [each.leases.holds(called.name) for each in replicas] == is_held
        stored = await database.read(partial(find_held, call_id=called.call_id))
        assert stored == [row.key for row, held in zip(rows, is_held, strict=True) if held]


def find_held(connection: Connection, call_id: str) -> list[str]:
    is_held = and_(calls.c.call_id == call_id, calls.c.state == DELIVERED)
    return list(connection.scalars(select(calls.c.call_key).where(is_held)))


async def test_silent_store_attaches_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_work: object, **_others: object) -> None:
        raise StoreUnreachableError("silence")

    monkeypatch.setattr(database, "write", away)
    with pytest.raises(StoreUnreachableError):
        await claims_of(Replica(database, "one"), database, "one").claim(call_row())


@asynccontextmanager
async def sharing(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SharedEvents, ...]]:
    """The events of two replicas; what SQLite's one does not need is switched on."""
    for name, seconds in {"_EVERY_S": 0.02, "_LAST_WORDS_S": 0.1, "_NOTED_EVERY_S": 0.1}.items():
        monkeypatch.setattr(f"token_broker.calls.followed_calls.{name}", seconds)
    both = SharedEvents(database), SharedEvents(database)
    for each in both:
        each._is_alone = False
        each.start()
    try:
        yield both
    finally:
        for each in both:
            await each.aclose()


async def heard(shared: SharedEvents, last: str = "", *, until: str = "") -> list[tuple[str, str]]:
    """Names and types of what a page is told at that replica, to the first of the type `until`, or to the end."""
    got: list[tuple[str, str]] = []
    async with asyncio.timeout(60):
        followed = await shared.follow(PAGE)
        assert followed is not None
        reading = followed.read(last, silence_s=60)
        async for told in reading:
            assert told is not None
            got.append((told[0], told[1]["type"]))
            if told[1]["type"] == until:
                break
        await reading.aclose()
    return got


async def test_events_are_read_at_any_replica(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sharing(database, monkeypatch) as (here, there):
        assert await there.follow(PAGE) is None, "no such call"
        one = await Replica(database, "one").start()
        await one.holds(call_row())
        streams = CallStreams(here.told)
        events = streams.of(*PAGE)
        events.joined()
        events.tell("broker.tool", name="look_up")
        await eventually(lambda: written(database, 2))
        reading = asyncio.create_task(heard(there, until=ATTACHED))

        async def is_noted() -> bool:
            await one.leases.refresh()
            return bool(one.watcher.read)

        await eventually(is_noted)
        assert not events.is_heard, "the page has not read it, and asks by itself"
        events.read_elsewhere(one.watcher.read[-1].read_for_s)
        assert events.is_heard
        assert await reading == [(f"{events.name}-2", "broker.tool"), (f"{events.name}-3", ATTACHED)]
        again = asyncio.create_task(heard(there, f"{events.name}-2", until="broker.error"))
        events.tell("broker.error", code="answer_failed")
        assert [kind for _, kind in await again] == [ATTACHED, "broker.error"], "from where it was"
        to_the_end = asyncio.create_task(heard(there, f"{events.name}-4"))
        one.leases.over(("https://azure.example", "rtc_1"))
        await one.leases.refresh()
        streams.end(*PAGE, events=events)
        assert await to_the_end == [(f"{events.name}-5", "broker.detached")], "the stream ends with the call"


async def written(database: Database, at_least: int) -> bool:
    count = select(func.count()).select_from(call_events)
    return (await database.read(lambda connection: connection.scalar(count)) or 0) >= at_least


async def test_shared_events_are_few_and_erased(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sharing(database, monkeypatch) as (here, _):
        one = await Replica(database, "one").start()
        await one.holds(call_row())
        await one.holds(call_row(2, owner=OTHER_OWNER))
        events, others = CallStreams(here.told).of(*PAGE), CallStreams(here.told).of("session-2", "rtc_2")
        for _ in range(300):
            events.tell("broker.tool")
        others.tell("broker.tool")

        async def numbers() -> list[int]:
            wanted = select(call_events.c.number).where(call_events.c.session_id == PAGE[0])
            return sorted(await database.read(lambda connection: connection.scalars(wanted).all()))

        await eventually(lambda: written(database, 257))
        assert await numbers() == list(range(45, 301))
        await database.write(lambda connection: mark_erased(connection, PAGE[0], 1, sinks=()).turns)
        await database.write(lambda connection: delete_erased(connection, PAGE[0], max_turns=9, max_bytes=9))
        events.tell("broker.error")
        events.close()
        await here._write()
        assert await numbers() == []
        one.leases.over(("https://azure.example", "rtc_2"))
        await one.leases.refresh()
        older: Any = update(calls).values(lease_until_us=calls.c.lease_until_us - 3_700_000_000)
        await database.write(lambda connection: connection.execute(older).rowcount)
        await one.leases.refresh()
        assert not await written(database, 1), "they go with their call"


async def test_page_that_a_dead_replica_told_reads_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sharing(database, monkeypatch) as (here, there):
        one, other = await Replica(database, "one").start(), await Replica(database, "other").start()
        await one.holds(call_row())
        first = PageEvents(lambda events: here.told(PAGE, events))
        first.joined()
        await eventually(lambda: written(database, 1))
        reading = asyncio.create_task(heard(there, f"{first.name}-1", until="broker.tool"))
        await eventually(lambda: asyncio.sleep(0, there._followed))
        await age(database, 7)
        other.leases._looks_at_s, other.leases._is_alone = 0, False

        async def is_taken() -> bool:  # not while the row is locked to note that its page reads
            await other.leases.refresh()
            return bool(other.watcher.took)

        await eventually(is_taken)
        (found,) = other.watcher.took
        assert found.read_for_s > 0, "who takes it knows that its page reads"
        second = PageEvents(lambda events: here.told(PAGE, events))
        second.read_elsewhere(found.read_for_s)
        second.joined()
        assert second.is_heard
        second.tell("broker.tool")
        assert [kind for _, kind in await reading] == [ATTACHED, "broker.tool"]
        first.close()
        second.close()
