"""Claims, leases, fences and dead letters, on SQLite and on PostgreSQL."""

import asyncio
from functools import partial

import pytest

from tests.memory.support.stores import erase_session
from tests.memory.support.turns import SESSION, owner, turn
from token_broker.memory.drivers.database import Database
from token_broker.memory.ingest.group_commit import ArrivalClock
from token_broker.memory.store.dead_letters import list_dead, purge_dead, retry_dead
from token_broker.memory.store.erasure import mark_erased
from token_broker.memory.store.outbox import (
    Claim,
    Settlement,
    claim,
    claim_erasures,
    due_buckets,
    finish_erasure,
    postpone_erasure,
    read_status,
    request_erasure,
    settle,
)
from token_broker.memory.store.turn_reads import list_turns
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.types import BUCKETS, ArrivedTurn, Backlog, SinkErasure, Turn, bucket_of

NOW = 1_000_000_000
LEASE = NOW + 30_000_000
arrivals = ArrivalClock()


async def queue(database: Database, *turns: Turn, now_us: int = NOW) -> None:
    unknown = [(said.owner, said.agent_id) for said in turns]
    batch = [ArrivedTurn(said, arrivals.next()) for said in turns]
    await database.write(partial(insert_turns, batch=batch, now_s=now_us / 1e6, unknown=unknown, sinks=["zep"]))


async def take(database: Database, *, now_us: int = NOW, limit: int = 10, session_id: str = SESSION) -> list[Claim]:
    work = partial(
        claim, sink="zep", bucket=bucket_of(session_id), limit=limit, now_us=now_us, lease_until_us=now_us + 30_000_000
    )
    return await database.write(work)


async def give_back(database: Database, held: Claim, result: Settlement) -> bool:
    return await database.write(partial(settle, held=held, result=result))


async def deliveries(database: Database, session_id: str = SESSION) -> list[str]:
    found = list(
        await database.read(partial(list_turns, session_id=session_id, limit=100, after=None, principal="anonymous"))
        or []
    )
    return [said.delivery.label for said in found]


async def test_claim_is_exclusive_and_ordered(database: Database) -> None:
    await queue(database, turn("t2", sequence=2), turn("t1", sequence=1))
    (held,) = await take(database)
    assert [said.turn_id for said in held.turns] == ["t1", "t2"]
    assert not held.uncertain
    assert await take(database) == []


async def test_claim_has_at_most_fifty_turns(database: Database) -> None:
    await queue(database, *(turn(f"t{number:02}", sequence=number) for number in range(60)))
    (held,) = await take(database)
    assert [said.turn_id for said in held.turns] == [f"t{number:02}" for number in range(50)]


async def test_settling_leaves_the_rest_queued(database: Database) -> None:
    await queue(database, *(turn(f"t{number}", sequence=number) for number in range(3)))
    (held,) = await take(database)
    assert await give_back(database, held, Settlement(NOW, delivered=["t0", "t1"]))
    assert await deliveries(database) == ["delivered", "delivered", "queued"]
    (again,) = await take(database)
    assert [said.turn_id for said in again.turns] == ["t2"]
    assert again.last_settled is not None
    assert again.last_settled.place == 1


async def test_settled_session_leaves_outbox(database: Database) -> None:
    await queue(database, turn("t1"))
    (held,) = await take(database)
    assert await give_back(database, held, Settlement(NOW, delivered=["t1"]))
    assert await database.read(partial(due_buckets, sink="zep", now_us=LEASE * 2)) == []
    assert (await database.read(read_status)).queued == 0


async def test_expired_lease_is_claimed_as_uncertain(database: Database) -> None:
    await queue(database, turn("t1"))
    (first,) = await take(database)
    assert await take(database, now_us=first.lease_until_us - 1) == []
    (second,) = await take(database, now_us=first.lease_until_us)
    assert second.uncertain
    assert second.fence == first.fence + 1


async def test_lost_lease_settles_nothing(database: Database) -> None:
    await queue(database, turn("t1"))
    (first,) = await take(database)
    (second,) = await take(database, now_us=first.lease_until_us)
    assert not await give_back(database, first, Settlement(NOW, delivered=["t1"]))
    assert await deliveries(database) == ["queued"]
    assert await give_back(database, second, Settlement(NOW, delivered=["t1"]))


async def test_known_failure_is_certain_again(database: Database) -> None:
    await queue(database, turn("t1"))
    (held,) = await take(database)
    result = Settlement(NOW + 5, Backlog(attempts=1, failures=2, failing_since_us=NOW, batch=7), reason="zep: 503")
    assert await give_back(database, held, result)
    assert await take(database, now_us=NOW + 4) == []
    (again,) = await take(database, now_us=NOW + 5)
    assert not again.uncertain
    assert again.backlog == Backlog(1, 2, NOW, 7)


async def test_new_turn_ends_gap_wait_not_backoff(database: Database) -> None:
    await queue(database, turn("t3", sequence=3))
    (held,) = await take(database)
    await give_back(database, held, Settlement(NOW + 10_000_000))
    await queue(database, turn("t2", sequence=2), now_us=NOW + 1)
    (held,) = await take(database, now_us=NOW + 1)
    await give_back(database, held, Settlement(NOW + 10_000_000, Backlog(failures=1)))
    await queue(database, turn("t1", sequence=1), now_us=NOW + 2)
    assert await take(database, now_us=NOW + 2) == []


async def test_turn_during_delivery_stays_queued(database: Database) -> None:
    await queue(database, turn("t1"))
    (held,) = await take(database)
    await queue(database, turn("t2"))
    await give_back(database, held, Settlement(NOW, delivered=["t1"]))
    (again,) = await take(database)
    assert [said.turn_id for said in again.turns] == ["t2"]


async def test_concurrent_claims_share_sessions(database: Database) -> None:
    same_bucket = [key for key in (f"session-number-{n:04}" for n in range(2000)) if bucket_of(key) == 5][:12]
    await queue(database, *(turn("t1", by=owner(key)) for key in same_bucket))
    work = partial(claim, sink="zep", bucket=5, limit=4, now_us=NOW, lease_until_us=LEASE)
    claims = await asyncio.gather(*(database.write(work) for _ in range(6)))
    taken = sorted(held.session_id for some in claims for held in some)
    assert taken == sorted(same_bucket)


async def test_due_buckets(database: Database) -> None:
    await queue(database, turn("t1"), turn("t1", by=owner("another-session-01")))
    expected = {bucket_of(SESSION), bucket_of("another-session-01")}
    assert set(await database.read(partial(due_buckets, sink="zep", now_us=NOW))) == expected
    assert all(0 <= bucket < BUCKETS for bucket in expected)


async def test_dead_letters_can_be_retried(database: Database) -> None:
    await queue(database, turn("t1", sequence=1), turn("t2", sequence=2))
    (held,) = await take(database)
    await give_back(database, held, Settlement(NOW, delivered=["t2"], dead=["t1"], reason="zep: 400"))
    (letter,) = await database.read(partial(list_dead, limit=9))
    assert (letter.session_id, letter.turn.turn_id, letter.reason) == (SESSION, "t1", "zep: 400")
    assert (await database.read(read_status)).dead == 1
    assert await database.write(partial(retry_dead, now_us=NOW)) == 1
    assert await deliveries(database) == ["queued", "delivered"]
    (again,) = await take(database)
    assert [said.turn_id for said in again.turns] == ["t1"]


async def test_dead_letters_are_purged_by_session(database: Database) -> None:
    for by in (owner(), owner("another-session-01")):
        await queue(database, turn("t1", by=by))
        (held,) = await take(database, session_id=by.session_id)
        await give_back(database, held, Settlement(NOW, dead=["t1"], reason="zep: 400"))
    assert await database.write(partial(purge_dead, session_id=SESSION)) == 1
    assert [letter.session_id for letter in await database.read(partial(list_dead, limit=9))] == ["another-session-01"]


async def test_outbox_status_counts(database: Database) -> None:
    await queue(database, turn("t1"), turn("t2"), now_us=NOW)
    await queue(database, turn("t3"), turn("t1", by=owner("another-session-01")), now_us=NOW + 50)
    found = await database.read(read_status)
    assert (found.queued, found.oldest_us, found.dead, found.erasures) == (4, NOW, 0, 0)


async def test_erasure_waits_for_delivery(
    database: Database,
) -> None:
    await queue(database, turn("t1"))
    (held,) = await take(database)
    await erase_session(database, SESSION, now_us=NOW, sinks=["zep"])
    early = partial(claim_erasures, sink="zep", limit=9, now_us=held.lease_until_us - 1, lease_until_us=LEASE * 2)
    assert await database.write(early) == []
    assert await take(database) == []
    assert not await give_back(database, held, Settlement(NOW, delivered=["t1"]))
    on_time = partial(claim_erasures, sink="zep", limit=9, now_us=held.lease_until_us, lease_until_us=LEASE * 2)
    (erasure,) = await database.write(on_time)
    assert erasure == SinkErasure("zep", "anonymous", SESSION, agent_id="elena", before_us=NOW)
    await database.write(partial(finish_erasure, erasure=erasure))
    assert await database.write(early) == []


async def test_erased_session_is_not_delivered(database: Database) -> None:
    """Also where a dead letter is queued again before the session's turns are all deleted."""
    await queue(database, turn("t1"))
    (held,) = await take(database)
    await give_back(database, held, Settlement(NOW, dead=["t1"], reason="no"))
    await database.write(partial(mark_erased, session_id=SESSION, now_us=NOW, sinks=[]))
    assert await database.write(partial(retry_dead, now_us=NOW)) == 1
    assert await take(database) == []
    claim_due = partial(claim_erasures, sink="zep", limit=9, now_us=NOW + LEASE, lease_until_us=2 * LEASE)
    (erasure,) = await database.write(claim_due)
    await database.write(partial(finish_erasure, erasure=erasure))
    assert await take(database) == []
    assert (await database.read(read_status)).queued == 0


async def test_user_under_erasure_is_not_delivered(database: Database) -> None:
    await database.write(partial(request_erasure, erasure=SinkErasure("zep", "ann", ""), due_at_us=NOW))
    await queue(database, turn("t1", by=owner(principal="ann")))
    assert await take(database) == []
    (erasure,) = await database.write(partial(claim_erasures, sink="zep", limit=9, now_us=NOW, lease_until_us=LEASE))
    await database.write(partial(postpone_erasure, erasure=erasure, due_at_us=NOW + 9, reason="zep: 503"))
    assert await take(database, now_us=NOW + 3_000_000) == []
    (again,) = await database.write(partial(claim_erasures, sink="zep", limit=9, now_us=NOW + 9, lease_until_us=LEASE))
    assert again == SinkErasure("zep", "ann", "", failures=1)
    await database.write(partial(finish_erasure, erasure=again))
    assert len(await take(database, now_us=NOW + 6_000_000)) == 1


@pytest.mark.parametrize("dead", [True, False])
async def test_retried_letter_joins_queue(database: Database, *, dead: bool) -> None:
    await queue(database, turn("t1", sequence=1))
    (held,) = await take(database)
    ended = Settlement(NOW, dead=["t1"], reason="no") if dead else Settlement(NOW, delivered=["t1"])
    await give_back(database, held, ended)
    await queue(database, turn("t2", sequence=2))
    assert await database.write(partial(retry_dead, now_us=NOW)) == int(dead)
    (again,) = await take(database)
    assert [said.turn_id for said in again.turns] == (["t1", "t2"] if dead else ["t2"])
