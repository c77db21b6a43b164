"""The sink for today's Zep Cloud against a fake of its package's own types: one user, one thread, tasks followed."""

import random
from collections.abc import AsyncIterator
from functools import partial

import pytest
from pydantic import SecretStr

from tests.memory.support.delivering import Clock, Delivering, a_talk
from tests.memory.support.faults import Fault
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep_cloud import KEY, ZepCloud, running_zep_cloud
from token_broker.memory.delivery.zep_cloud import ZepCloudMemory, facts_of
from token_broker.memory.drivers.database import Database
from token_broker.memory.maintenance import Maintenance
from token_broker.memory.store.dead_letters import list_dead
from token_broker.memory.types import OutboxStatus

NOTHING = OutboxStatus(0, None, 0, 0)
ANN = owner(principal="ann")


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what the store has no part in: tests/memory/test_delivery.py and the others here deliver from PostgreSQL, too."""


@pytest.fixture
async def zep_cloud() -> AsyncIterator[ZepCloud]:
    async with running_zep_cloud() as running:
        yield running


@pytest.fixture
async def delivering(database: Database, zep_cloud: ZepCloud) -> AsyncIterator[Delivering]:
    random.seed(7)
    sink = ZepCloudMemory(SecretStr(KEY), zep_cloud.base_url, database, timeout_s=5)
    yield Delivering(database, sink, Clock(), max_attempts=4)
    await sink.aclose()


def another(delivering: Delivering, zep_cloud: ZepCloud) -> ZepCloudMemory:
    """A sink of a process that knows nothing but what is stored."""
    return ZepCloudMemory(SecretStr(KEY), zep_cloud.base_url, delivering.database, timeout_s=5)


async def test_talk_arrives_once_its_tasks_end(delivering: Delivering, zep_cloud: ZepCloud) -> None:
    zep_cloud.working = 3
    await delivering.queue(*a_talk(40, by=ANN))
    await delivering.rounds()
    assert zep_cloud.turn_ids() == []
    assert (await delivering.read_status()).queued == 40, "accepted is not delivered"
    await delivering.rounds(seconds=60)
    assert zep_cloud.turn_ids() == [f"t{number:03}" for number in range(1, 41)]
    assert await delivering.read_status() == NOTHING
    assert (len(zep_cloud.users), len(zep_cloud.threads)) == (1, 1)


async def test_failed_task_is_a_failed_delivery(delivering: Delivering, zep_cloud: ZepCloud) -> None:
    zep_cloud.ends = ["failed"]
    await delivering.queue(*a_talk(3, by=ANN))
    await delivering.rounds(seconds=10)
    assert delivering.worker.last_failure == "zep_cloud: its task ended as failed"
    await delivering.rounds(seconds=60)
    assert zep_cloud.turn_ids() == ["t001", "t002", "t003"], "each once among those that Zep has worked on"
    assert await delivering.read_status() == NOTHING


@on_sqlite
async def test_turn_whose_tasks_all_fail_is_dead(delivering: Delivering, zep_cloud: ZepCloud) -> None:
    zep_cloud.ends = ["failed"] * 4
    await delivering.queue(*a_talk(1, by=ANN))
    await delivering.rounds(seconds=600, step_s=10)
    (letter,) = await delivering.database.read(partial(list_dead, limit=9))
    assert (letter.turn.turn_id, letter.sink) == ("t001", "zep_cloud")
    await delivering.queue(turn("t002", by=ANN, sequence=2))
    await delivering.rounds(seconds=60)
    assert zep_cloud.turn_ids() == ["t002"]


@pytest.mark.parametrize("path", ["/users", "/threads", "/messages"])
async def test_kill_between_answer_and_store(delivering: Delivering, zep_cloud: ZepCloud, path: str) -> None:
    """The answer is lost, as where the process is killed before it has stored what it says."""
    zep_cloud.faults.append(Fault("reset", path, "POST", stored=True))
    await delivering.queue(*a_talk(2, by=ANN))
    await delivering.rounds(seconds=120, step_s=5)
    assert (len(zep_cloud.users), len(zep_cloud.threads)) == (1, 1)
    assert zep_cloud.turn_ids(processed=False) == ["t001", "t002"]
    assert zep_cloud.turn_ids() == ["t001", "t002"]


async def test_user_without_kept_key_is_looked_up(delivering: Delivering, zep_cloud: ZepCloud) -> None:
    """Zep may have forgotten the idempotency key by the time the process is back."""
    zep_cloud.faults.append(Fault("reset", "/users", "POST", stored=True))
    await delivering.queue(*a_talk(1, by=ANN))
    await delivering.rounds()
    zep_cloud.keys.clear()
    zep_cloud.faults.append(Fault("status", "/lookup"))
    await delivering.rounds(seconds=60, step_s=5)
    assert zep_cloud.faults == [], "a lookup that fails is repeated"
    assert len(zep_cloud.users) == 1
    assert zep_cloud.turn_ids() == ["t001"]


async def test_thread_and_user_lost_at_zep(delivering: Delivering, zep_cloud: ZepCloud) -> None:
    await delivering.queue(*a_talk(1, by=ANN))
    await delivering.rounds(seconds=20)
    for table in (zep_cloud.users, zep_cloud.threads, zep_cloud.messages):
        table.clear()
    await delivering.queue(turn("t002", by=ANN, sequence=2))
    await delivering.rounds(seconds=60, step_s=5)
    assert zep_cloud.turn_ids() == ["t002"]
    assert (len(zep_cloud.users), len(zep_cloud.threads)) == (1, 1)


@on_sqlite
async def test_long_turns_are_split(delivering: Delivering, zep_cloud: ZepCloud) -> None:
    await delivering.queue(turn("t001", "word " * 2_000, by=ANN, sequence=1), turn("t002", by=ANN, sequence=2))
    await delivering.rounds(seconds=30)
    assert list(dict.fromkeys(zep_cloud.turn_ids())) == ["t001", "t002"]


async def test_erased_user_and_their_return(delivering: Delivering, zep_cloud: ZepCloud) -> None:
    await delivering.queue(*a_talk(2, by=ANN))
    await delivering.rounds(seconds=20)
    maintenance = Maintenance(
        delivering.database, sinks=["zep_cloud"], lease_s=30, session_token_s=7200, clock=delivering.clock
    )
    zep_cloud.working, zep_cloud.ends = 3, ["failed", "succeeded"]
    assert await maintenance.erase_user("ann") == 2
    await delivering.rounds()
    (receipt,) = await maintenance.receipt(user="ann")
    assert receipt.state == "accepted"
    await delivering.rounds(seconds=120, step_s=2)
    (receipt,) = await maintenance.receipt(user="ann")
    assert receipt.state == "done"
    assert (zep_cloud.users, zep_cloud.threads, zep_cloud.messages) == ({}, {}, {})
    later = owner("a-later-session-1", principal="ann", epoch=int(delivering.clock() * 1000) + 1)
    await delivering.queue(turn("t1", by=later, sequence=1))
    await delivering.rounds(seconds=20)
    assert zep_cloud.turn_ids() == ["t1"]


@on_sqlite
async def test_facts_of_session_or_newest_thread(delivering: Delivering, zep_cloud: ZepCloud) -> None:
    await delivering.queue(*a_talk(1, by=ANN))
    await delivering.rounds(seconds=20)
    zep_cloud.context = "# About\n<FACTS>\n- likes tea (2026-01-01)\n- lives in Köln\n</FACTS>\n"
    sink = another(delivering, zep_cloud)
    try:
        assert await sink.facts(ANN, of_session=True) == ["likes tea (2026-01-01)", "lives in Köln"]
        elsewhere = owner("another-session-01", principal="ann")
        assert await sink.facts(elsewhere, of_session=False) == ["likes tea (2026-01-01)", "lives in Köln"]
        assert await sink.facts(owner(SESSION, principal="bob"), of_session=False) == []
        assert await sink.facts(owner(SESSION), of_session=False) == []
    finally:
        await sink.aclose()


def test_facts_of_plain_context() -> None:
    assert facts_of("<USER>\nAnn is a pilot.\n</USER>\n\nShe likes tea.") == ["Ann is a pilot.", "She likes tea."]
    assert facts_of("") == []
