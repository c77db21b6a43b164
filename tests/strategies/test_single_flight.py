"""One task a key, however many wait for it, leave, or come after it failed."""

import asyncio
import gc
from typing import Any

import pytest

from strategies.single_flight import SingleFlight


class Work:
    """Work that can be counted, and that ends when it is told to."""

    def __init__(self) -> None:
        self.runs = 0
        self.error: Exception | None = None
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.runs += 1
        run = self.runs
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return run


@pytest.fixture
def flights() -> SingleFlight[str, int]:
    return SingleFlight("work")


async def waiters(flights: SingleFlight[str, int], work: Work, count: int) -> list["asyncio.Task[int]"]:
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_all_callers_share_one_task(flights: SingleFlight[str, int]) -> None:
    work = Work()
    tasks = await waiters(flights, work, 20)
    assert "a" in flights
    work.may_end.set()
    assert await asyncio.gather(*tasks) == [1] * 20
    assert "a" not in flights
    assert await flights.run("a", work) == 2


async def test_keys_run_side_by_side(flights: SingleFlight[str, int]) -> None:
    works = [Work(), Work()]
    tasks = [asyncio.create_task(flights.run(key, work)) for key, work in zip("ab", works, strict=True)]
    await asyncio.sleep(0)
    works[1].may_end.set()
    assert await tasks[1] == 1
    assert not tasks[0].done()
    works[0].may_end.set()
    await tasks[0]


async def test_cancelled_caller_leaves_others_waiting(flights: SingleFlight[str, int]) -> None:
    work = Work()
    first, second = await waiters(flights, work, 2)
    first.cancel()
    await asyncio.wait({first})
    work.may_end.set()
    assert await second == 1
    assert work.runs == 1


async def test_failure_reaches_all_and_is_not_kept(flights: SingleFlight[str, int]) -> None:
    work = Work()
    work.error = ValueError("no")
    tasks = await waiters(flights, work, 3)
    work.may_end.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError] * 3
    work.error = None
    assert await flights.run("a", work) == 2


async def test_unheard_failure_is_not_logged(flights: SingleFlight[str, int]) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    work = Work()
    work.error = ValueError("no")
    work.may_end.set()
    task = flights.start("a", work)
    await asyncio.wait({task})
    await asyncio.sleep(0)
    del task
    gc.collect()
    assert reports == []


async def test_closing_cancels_running_tasks(flights: SingleFlight[str, int]) -> None:
    task = flights.start("a", Work())
    await flights.aclose()
    assert task.cancelled()
    assert "a" not in flights
    await flights.aclose()
