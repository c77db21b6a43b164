"""The worker against the Zep fake: in order, once, whatever Zep does. Time is the test's own where it matters."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from pydantic import SecretStr

from tests.memory.conftest import MakeSettings
from tests.memory.support.delivering import Clock, Delivering, a_talk
from tests.memory.support.faults import Fault
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep import KEY, Zep
from tests.support.waiting import eventually
from token_broker.memory.delivery.worker import DeliveryPolicy, DeliveryWorker
from token_broker.memory.delivery.zep import ZepMemory
from token_broker.memory.drivers.database import Database
from token_broker.memory.service import Memory
from token_broker.memory.store.dead_letters import list_dead
from token_broker.memory.store.outbox import OutboxStatus
from token_broker.memory.types import DeliveryBatch


@pytest.fixture
def clock() -> Clock:
    random.seed(7)
    return Clock()


@pytest.fixture
async def delivering(database: Database, zep: Zep, clock: Clock) -> AsyncIterator[Delivering]:
    delivering = Delivering(database, ZepMemory(SecretStr(KEY), zep.base_url, timeout_s=5), clock, max_attempts=5)
    yield delivering
    await delivering.sink.aclose()


async def test_talk_arrives_in_ordered_batches(delivering: Delivering, zep: Zep) -> None:
    talk = a_talk(75)
    await delivering.queue(*talk[40:], *talk[:40])
    await delivering.rounds()
    assert zep.turn_ids(SESSION) == [said.turn_id for said in talk]
    assert [len(ids) for _, ids in zep.calls] == [30, 30, 15]
    assert await delivering.read_status() == OutboxStatus(0, None, 0, 0)


async def test_gap_is_waited_for_ten_seconds(delivering: Delivering, zep: Zep) -> None:
    one, two, three, five = (turn(f"t{number}", sequence=number) for number in (1, 2, 3, 5))
    await delivering.queue(one, three)
    await delivering.rounds(seconds=9)
    assert zep.turn_ids(SESSION) == ["t1"]
    await delivering.queue(two, five)
    await delivering.rounds()
    assert zep.turn_ids(SESSION) == ["t1", "t2", "t3"]
    await delivering.rounds(seconds=11)
    assert zep.turn_ids(SESSION) == ["t1", "t2", "t3", "t5"]


async def test_poisoned_turn_dies_alone(delivering: Delivering, zep: Zep) -> None:
    zep.faults.append(Fault("status", "/memory", "POST", times=None, status=400, turn="t017"))
    others = [owner(f"another-session-{number:02}") for number in range(5)]
    await delivering.queue(*a_talk(40), *(said for by in others for said in a_talk(3, by=by)))
    await delivering.rounds()
    assert zep.turn_ids(SESSION) == [f"t{number:03}" for number in range(1, 41) if number != 17]
    assert all(zep.turn_ids(by.session_id) == ["t001", "t002", "t003"] for by in others)
    (letter,) = await delivering.database.read(partial(list_dead, limit=9))
    assert (letter.turn.turn_id, letter.reason) == ("t017", "zep: 400")


async def test_failing_turn_is_dead_after_attempts(delivering: Delivering, zep: Zep) -> None:
    zep.faults.append(Fault("status", "/memory", "POST", times=None, status=500, turn="t002"))
    await delivering.queue(*a_talk(3), *a_talk(3, by=owner("another-session-01")))
    await delivering.rounds(seconds=600, step_s=10)
    assert zep.turn_ids(SESSION) == ["t001", "t003"]
    assert (await delivering.read_status()).dead == 2
    assert delivering.worker.counts.dead == 2


async def test_backlog_arrives_after_long_outage(delivering: Delivering, zep: Zep, clock: Clock) -> None:
    talks = {by.session_id: a_talk(12, by=by) for by in (owner(f"session-number-{n:03}") for n in range(12))}
    everything = [said for talk in talks.values() for said in talk]
    random.shuffle(everything)
    down = Fault("status", times=None, status=503)
    with zep.fails(down):
        for start in range(0, len(everything), 100):
            await delivering.queue(*everything[start : start + 100])
        await delivering.rounds(seconds=3600, step_s=30)
    asked_while_down = len(zep.requests)
    assert asked_while_down < 300, "an unavailable Zep is asked a few times a minute, whatever waits"
    for fault in (
        Fault("status", "/memory", status=429, headers={"Retry-After": "30"}),
        Fault("status", "/memory", status=500, times=3),
        Fault("malformed", "/memory", "POST", times=3),
        Fault("reset", "/memory", "POST", times=3, stored=True),
    ):
        zep.faults.append(fault)
        await delivering.rounds(seconds=60, step_s=15)
    await delivering.rounds(seconds=1800, step_s=30)
    assert {key: zep.turn_ids(key) for key in talks} == {
        key: [said.turn_id for said in talk] for key, talk in talks.items()
    }
    assert await delivering.read_status() == OutboxStatus(0, None, 0, 0)
    assert zep.most_at_once <= 8
    assert not zep.overlapped


async def test_retry_after_is_obeyed(delivering: Delivering, zep: Zep) -> None:
    zep.faults.append(Fault("status", "/memory", "POST", status=429, headers={"Retry-After": "120"}))
    await delivering.queue(*a_talk(1))
    await delivering.rounds(seconds=119)
    assert zep.turn_ids(SESSION) == []
    await delivering.rounds(seconds=2)
    assert zep.turn_ids(SESSION) == ["t001"]


async def test_crash_before_settling_repeats_nothing(
    delivering: Delivering, database: Database, zep: Zep, clock: Clock
) -> None:
    """The first worker delivers and never settles, as if it was killed; the second takes over when the lease ends."""

    class Killed(DeliveryWorker):
        async def _settle(self, *_: object) -> None:
            return

    killed = Killed(database, delivering.sink, DeliveryPolicy(), clock=clock)
    await delivering.queue(*a_talk(3))
    assert await killed.round() == 1
    await killed.idle()
    await delivering.queue(turn("t004", sequence=4))
    await delivering.rounds(seconds=29)
    assert zep.turn_ids(SESSION) == ["t001", "t002", "t003"]
    await delivering.rounds(seconds=1)
    assert zep.turn_ids(SESSION) == ["t001", "t002", "t003", "t004"]


async def test_stopped_worker_still_settles(delivering: Delivering, database: Database, zep: Zep, clock: Clock) -> None:
    delivered = asyncio.Event()

    class Telling(ZepMemory):
        async def deliver(self, batch: DeliveryBatch) -> None:
            await delivering.sink.deliver(batch)
            delivered.set()

    telling = Telling(SecretStr(KEY), zep.base_url, timeout_s=5)
    worker = DeliveryWorker(database, telling, DeliveryPolicy(), clock=clock)
    await delivering.queue(*a_talk(3))
    running = asyncio.create_task(worker.run())
    await delivered.wait()
    running.cancel()
    await asyncio.wait({running})
    await telling.aclose()
    assert (await delivering.read_status()).queued == 0


async def test_broken_sink_loses_no_turn(delivering: Delivering, database: Database, clock: Clock, zep: Zep) -> None:
    class Broken(ZepMemory):
        async def deliver(self, batch: DeliveryBatch) -> None:
            raise KeyError(batch.session_id)

    broken = Broken(SecretStr(KEY), zep.base_url, timeout_s=5)
    worker = DeliveryWorker(database, broken, DeliveryPolicy(), clock=clock)
    await delivering.queue(*a_talk(2))
    assert await worker.round() == 1
    await worker.idle()
    await broken.aclose()
    assert (await delivering.read_status()).queued == 2
    assert worker.last_failure == "the sink broke (KeyError)"


async def test_refused_erasure_is_retried(delivering: Delivering, zep: Zep, zep_settings: MakeSettings) -> None:
    from token_broker.memory.maintenance import Maintenance

    await delivering.queue(*a_talk(2, by=owner(principal="ann")))
    await delivering.rounds()
    maintenance = Maintenance(
        delivering.database, sinks=["zep"], lease_s=30, session_token_s=7200, clock=delivering.clock
    )
    zep.faults.append(Fault("status", status=503, times=3))
    assert await maintenance.erase_user("ann") == 2
    await delivering.rounds(seconds=300, step_s=10)
    assert (zep.users, zep.messages) == ({}, {})
    assert (await delivering.read_status()).erasures == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_replicas_share_deliveries(zep_settings: MakeSettings, zep: Zep) -> None:
    settings = zep_settings()
    zep.slow_s = 0.005
    async with Memory.open(settings) as one, Memory.open(settings) as two:
        talks = [a_talk(20, by=owner(f"session-number-{number:03}")) for number in range(30)]
        await asyncio.gather(
            *(memory.append(talk[half::2]) for talk in talks for half, memory in enumerate((one, two)))
        )
        await zep.has(600)
        await _settled(one)
        assert all(zep.turn_ids(talk[0].owner.session_id) == [said.turn_id for said in talk] for talk in talks)
        assert not zep.overlapped
        assert min(memory.status().delivered for memory in (one, two)) > 0
        assert sum(memory.status().delivered for memory in (one, two)) == 600


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_dead_replica_loses_no_turn(zep_settings: MakeSettings, zep: Zep) -> None:
    settings = zep_settings(delivery_timeout_s=1)
    async with _dying(settings) as dying:
        with zep.fails(Fault("hang", "/memory", "POST", stored=True)):
            await dying.append(a_talk(3))
            await zep.has(3)
    async with Memory.open(settings) as heir:
        await heir.append(a_talk(5))
        await zep.has(5)
        await _settled(heir)
    assert zep.turn_ids(SESSION) == [f"t{number:03}" for number in range(1, 6)]


@asynccontextmanager
async def _dying(settings: object) -> AsyncIterator[Memory]:
    """A memory whose database vanishes under it when the block ends: nothing it does from then on is written."""
    async with Memory.open(settings) as memory:  # type: ignore[arg-type]
        yield memory
        await memory._database.close()


async def _settled(memory: Memory) -> None:
    async def nothing_is_queued() -> bool:
        await memory.refresh()
        return memory.status().queued == 0

    await eventually(nothing_is_queued)
