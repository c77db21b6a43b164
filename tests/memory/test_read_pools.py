"""Read pools: neither recall nor pages delay owners, tickets or turns."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection

from tests.memory.conftest import MakeSettings
from tests.memory.support.app import TURNS, bearer, make_app
from tests.memory.support.turns import SESSION, owner, turn
from tests.support.machine import retry_if_host_busy
from tests.support.waiting import eventually
from token_broker.memory.drivers.database import READ_POOLS, PoolName
from token_broker.memory.service import Memory
from token_broker.memory.types import Outcome

RECALLS = 60


class Slow:
    """Work on a connection that takes very long, until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self._go_on = threading.Event()

    def __call__(self, connection: Connection, *_arguments: Any, **_more: Any) -> None:
        self.begun += 1
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_sleep(20)")
        else:
            self._go_on.wait(20)

    def let_go(self) -> None:
        self._go_on.set()


@pytest.fixture
def slow() -> Iterator[Slow]:
    work = Slow()
    yield work
    work.let_go()


async def begun(slow: Slow, pool: PoolName) -> None:
    """All that the pool can do at once is under way."""

    async def is_so() -> bool:
        return slow.begun >= READ_POOLS[pool].at_once

    await eventually(is_so)


async def stop(tasks: list["asyncio.Task[Any]"], slow: Slow) -> None:
    slow.let_go()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_recalls_delay_nothing_else(
    make_settings: MakeSettings, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_broker.memory.store.turn_reads.last_turns_of", slow)
    async with Memory.open(make_settings(store_patience_s=3, recall_budget_s=5)) as memory:
        await memory.append([turn("t1")])
        recalls = [asyncio.create_task(memory.recall.block(owner())) for _ in range(RECALLS)]
        await begun(slow, "recall")
        memory.sessions.evict(SESSION)
        assert await memory.sessions.find(SESSION) is not None
        assert [await memory.tickets.spend("ticket", time.time() + 60) for _ in range(2)] == [True, False]
        assert await memory.append([turn("t2")]) == [Outcome.STORED]
        assert len(await memory.turns(SESSION, principal="anonymous", limit=9) or []) == 2
        await memory.blocklist.refresh()
        status = memory.status()
        assert (status.sessions_unanswered, status.tickets_spent_locally) == (0, 0)
        assert not any(recall.done() for recall in recalls)
        await stop(recalls, slow)


@retry_if_host_busy()
async def test_recall_with_full_pool_is_late(make_settings: MakeSettings, slow: Slow) -> None:
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn("t1")])
        most = READ_POOLS["recall"].total
        reads = [asyncio.create_task(memory._database.read(slow, pool="recall")) for _ in range(most)]
        await begun(slow, "recall")
        began_s = time.monotonic()
        assert await memory.recall.block(owner()) == ""
        assert time.monotonic() - began_s < 4
        counts = memory.recall.counts
        assert (counts.late > 0, counts.failed) == (True, 0)
        await stop(reads, slow)

        async def told() -> bool:
            return "hello" in await memory.recall.block(owner())

        await eventually(told)


async def test_page_with_full_pool_is_refused(make_settings: MakeSettings, slow: Slow) -> None:
    settings = make_settings(recall_budget_s=5)  # not the machine's haste is tested
    async with Memory.open(settings) as memory:
        await memory.append([turn("t1")])
        transport = httpx.ASGITransport(make_app(settings, memory))
        headers, path = bearer(settings, owner()), TURNS.format(session_id=SESSION)
        async with httpx.AsyncClient(transport=transport, base_url="http://broker", headers=headers) as http:
            most = READ_POOLS["bulk"].total
            reads = [asyncio.create_task(memory._database.read(slow, pool="bulk")) for _ in range(most)]
            await begun(slow, "bulk")
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "store_busy")
            assert int(answer.headers["retry-after"]) > 0
            assert "hello" in await memory.recall.block(owner())
            await stop(reads, slow)

            async def read() -> bool:
                return (await http.get(path)).status_code == 200

            await eventually(read)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_cancelled_read_is_skipped(make_settings: MakeSettings, slow: Slow) -> None:
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        blocking = [asyncio.create_task(memory._database.read(slow, pool="recall")) for _ in range(2)]
        await begun(slow, "recall")
        asked: list[int] = []
        work: Callable[[Connection], None] = lambda _connection: asked.append(1)  # noqa: E731  # a row of them
        waiting = [asyncio.create_task(memory._database.read(work, pool="recall")) for _ in range(20)]
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        slow.let_go()
        await asyncio.gather(*blocking)
        most = READ_POOLS["recall"].total
        await asyncio.gather(*(memory._database.read(work, pool="recall") for _ in range(most)))
        assert len(asked) == most
