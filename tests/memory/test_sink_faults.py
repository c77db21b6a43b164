"""Each sink through each fault: every turn arrives, once and in order, and none becomes a dead letter."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from pydantic import SecretStr

from tests.memory.support.delivering import Clock, Delivering, a_talk
from tests.memory.support.faults import CanFail, Fault
from tests.memory.support.receiver import SECRET, running_receiver
from tests.memory.support.turns import SESSION, owner
from tests.memory.support.zep import KEY, running_zep
from tests.memory.support.zep_cloud import KEY as CLOUD_KEY
from tests.memory.support.zep_cloud import running_zep_cloud
from token_broker.memory.delivery.http import HttpSink
from token_broker.memory.delivery.worker import DeliveryPolicy, DeliveryWorker
from token_broker.memory.delivery.zep import ZepMemory
from token_broker.memory.delivery.zep_cloud import ZepCloudMemory
from token_broker.memory.drivers.database import Database
from token_broker.memory.types import OutboxStatus, Sink

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the store has no part in it

NOTHING = OutboxStatus(0, None, 0, 0)
ANN = owner(principal="ann")
PATHS = {"zep": "/memory", "zep_cloud": "/messages", "http": "/events"}  # that take turns
HOUR_DOWN = Fault("status", times=None, status=503)
FAULTS = {
    "overloaded": Fault("status", status=429, headers={"Retry-After": "30"}),
    "broken": Fault("status", status=500, times=3),
    "slow": Fault("hang"),
    "slow but accepted": Fault("hang", stored=True),
    "malformed": Fault("malformed", stored=True),
    "lost": Fault("reset"),
    "accepted but lost": Fault("reset", stored=True),
}


@dataclass
class Running:
    """A sink and its fake. `asked` counts requests, `arrived` names the turns as they came, without repetitions that
    the sink can tell."""

    sink: Sink
    fake: CanFail
    asked: Callable[[], int]
    arrived: Callable[[], list[str]]


@asynccontextmanager
async def running(name: str, database: Database, timeout_s: float = 5) -> AsyncIterator[Running]:
    random.seed(7)
    sink: Sink
    if name == "http":
        async with running_receiver() as receiver:
            sink = await HttpSink.open(receiver.url, SecretStr(SECRET), timeout_s=timeout_s)
            yield Running(sink, receiver, lambda: len(receiver.seen), lambda: receiver.turn_ids(SESSION))
            await sink.aclose()
    elif name == "zep":
        async with running_zep() as zep:
            sink = ZepMemory(SecretStr(KEY), zep.base_url, timeout_s=timeout_s)
            yield Running(sink, zep, lambda: len(zep.requests), lambda: zep.turn_ids(SESSION))
            await sink.aclose()
    else:
        async with running_zep_cloud() as cloud:
            sink = ZepCloudMemory(SecretStr(CLOUD_KEY), cloud.base_url, database, timeout_s=timeout_s)
            yield Running(sink, cloud, lambda: len(cloud.requests), lambda: cloud.turn_ids(processed=False))
            await sink.aclose()


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_turns_survive_a_fault(database: Database, name: str, fault: Fault) -> None:
    async with running(name, database, timeout_s=0.4 if fault.kind == "hang" else 5) as its:
        delivering = Delivering(database, its.sink, Clock(), max_attempts=4)
        its.fake.faults.append(replace(fault, path=PATHS[name], method="POST"))
        talk = a_talk(5, by=ANN)
        await delivering.queue(*talk[:3])
        await delivering.rounds()
        assert its.fake.faults == [] or fault.times == 3, "the fault came to pass"
        await delivering.queue(*talk[3:])
        await delivering.rounds(seconds=180, step_s=5)
        assert its.arrived() == [said.turn_id for said in talk]
        assert await delivering.read_status() == NOTHING


@pytest.mark.parametrize("name", PATHS)
async def test_turns_survive_an_hour_of_outage(database: Database, name: str) -> None:
    async with running(name, database) as its:
        delivering = Delivering(database, its.sink, Clock(), max_attempts=4)
        talk = a_talk(40, by=ANN)
        with its.fake.fails(HOUR_DOWN):
            await delivering.queue(*talk)
            await delivering.rounds(seconds=3600, step_s=60)
            assert its.asked() < 100, "it is asked less and less often"
        assert (await delivering.read_status()).queued == 40
        await delivering.rounds(seconds=600, step_s=30)
        assert its.arrived() == [said.turn_id for said in talk]
        assert await delivering.read_status() == NOTHING, "an outage uses up no attempts"


@pytest.mark.parametrize("name", PATHS)
async def test_duplicate_delivery_is_recognised(database: Database, name: str) -> None:
    class Killed(DeliveryWorker):
        async def _settle(self, *_: object) -> None:
            return  # what the sink has taken is not written down

    async with running(name, database) as its:
        delivering = Delivering(database, its.sink, Clock(), max_attempts=4)
        killed = Killed(database, its.sink, DeliveryPolicy(), clock=delivering.clock)
        talk = a_talk(4, by=ANN)
        await delivering.queue(*talk[:3])
        assert await killed.round() == 1
        await killed.idle()
        assert its.arrived() == [said.turn_id for said in talk[:3]]
        await delivering.queue(*talk[3:])
        await delivering.rounds(seconds=60, step_s=5)
        assert its.arrived() == [said.turn_id for said in talk]
        assert await delivering.read_status() == NOTHING
