"""A budget is never overdrawn, and nothing stays reserved; under a virtual time, and on real stores."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from sqlalchemy import Column, func, select, update

from tests.support.waiting import eventually
from tests.usage.support import DAY, Hands, created, done, make_owner
from token_broker.memory.drivers.database import Database
from token_broker.memory.store.tables import budget_reservations
from token_broker.memory.store_errors import StoreAwayError
from token_broker.usage.budget_rows import Reserved
from token_broker.usage.budgets import Budgets, HoldState
from token_broker.usage.ledger import UsageLedger
from token_broker.usage.talk_usage import TalkUsage
from token_broker.web.requests import Problem

MINUTE_MS = 60_000


class VirtualTime:
    """Moves the hands to the next time that anybody waits for, once everybody waits."""

    def __init__(self, hands: Hands) -> None:
        self.hands = hands
        self._waiting: list[tuple[float, asyncio.Event]] = []

    async def pause(self, event: asyncio.Event, timeout_s: float) -> None:
        self._waiting.append((self.hands.s + timeout_s, event))
        await event.wait()

    async def run(self, tasks: list["asyncio.Task[None]"]) -> None:
        while running := [task for task in tasks if not task.done()]:
            if len(self._waiting) < len(running):
                await asyncio.sleep(0.002)
                continue
            at_s = min(each[0] for each in self._waiting)
            self.hands.s = max(self.hands.s, at_s)
            due = [each for each in self._waiting if each[0] <= self.hands.s]
            self._waiting = [each for each in self._waiting if each[0] > self.hands.s]
            for _, event in due:
                event.set()
            await asyncio.sleep(0)


class Replica:
    """The budgets and the ledger of one process."""

    def __init__(self, database: Database, time: VirtualTime, *, minutes: int = 0, tokens: int = 0) -> None:
        self.time = time
        self.ledger = UsageLedger(None, clock=time.hands.clock)
        self.budgets = Budgets(
            database, minutes=minutes, tokens=tokens, secret=b"s" * 32, clock=time.hands.clock, pause=time.pause
        )

    def open(self, talk_id: str = "talk-1") -> TalkUsage:
        owner = make_owner(talk_id)
        usage = self.ledger.open(owner, agent_id="elena", transport="websocket_proxy", dialect="", seen=True)
        usage.went_live("one", "ga")
        return usage

    async def talk(self, usage: TalkUsage, told: list[tuple[str, float]] | None = None) -> None:
        """A talk that goes on until its budget ends, and then for as long as it may play out."""
        notes = [] if told is None else told

        left = []

        def end(left_s: float, when_quiet: bool) -> None:
            del when_quiet
            notes.append(("end", self.time.hands.s))
            left.append(left_s)

        await self.budgets.hold(usage, "ann", warn=lambda: notes.append(("warn", self.time.hands.s)), end=end)
        await self.time.pause(asyncio.Event(), left[0])


async def held(database: Database) -> int:
    return await database.read(lambda c: c.scalar(select(func.sum(budget_reservations.c.held_ms))) or 0)


async def used(database: Database, what: Column[int] = budget_reservations.c.used_ms) -> int:
    return await database.read(lambda c: int(c.scalar(select(func.sum(what))) or 0))


async def is_left(replica: Replica) -> str:
    try:
        await replica.budgets.ensure_left("ann")
    except Problem as problem:
        return problem.code
    return "left"


@pytest.mark.parametrize("minutes", [1, 10])
async def test_twenty_talks_never_overdraw(database: Database, minutes: int) -> None:
    time = VirtualTime(Hands())
    replicas = [Replica(database, time, minutes=minutes) for _ in range(2)]
    usages = [replicas[number % 2].open(f"talk-{number}") for number in range(20)]

    async def run(number: int) -> None:
        await replicas[number % 2].talk(usages[number])
        usages[number].end("budget")

    await time.run([asyncio.create_task(run(number)) for number in range(20)])
    for replica in replicas:
        await replica.budgets.settle()
    total_ms = sum(usage.spent(DAY)[0] for usage in usages)
    assert 0.9 * minutes * MINUTE_MS <= total_ms <= minutes * MINUTE_MS
    assert await held(database) == 0
    assert await used(database) == total_ms


async def test_warned_within_the_reservation(database: Database) -> None:
    time, told = VirtualTime(Hands()), list[tuple[str, float]]()
    replica, began_s = Replica(database, time, minutes=3), time.hands.s
    usage = replica.open()
    await time.run([asyncio.create_task(replica.talk(usage, told))])
    usage.end("budget")
    assert [(what, round(at_s - began_s)) for what, at_s in told] == [("warn", 150), ("end", 165)]
    assert usage.spent(DAY)[0] == 3 * MINUTE_MS
    await replica.budgets.settle()
    assert await is_left(replica) == "budget_used"


async def test_unused_time_returns_at_once(database: Database) -> None:
    time = VirtualTime(Hands())
    replica = Replica(database, time, minutes=1)
    usage = replica.open()
    holding = asyncio.create_task(replica.talk(usage))
    await eventually(lambda: held(database))
    assert await is_left(replica) == "budget_used"
    time.hands.move(7)
    holding.cancel()
    usage.end("hung_up")
    await replica.budgets.settle()
    assert await used(database) == 7000
    assert await is_left(replica) == "left"


async def test_unused_plans_hold_nothing(database: Database) -> None:
    """Plans reserve nothing: of any number, at two replicas at once, the first talk has all that is left."""
    time = VirtualTime(Hands())
    replicas = [Replica(database, time, minutes=1) for _ in range(2)]
    assert await asyncio.gather(*(is_left(replicas[number % 2]) for number in range(20))) == ["left"] * 20
    assert await held(database) == 0
    usage = replicas[0].open()
    await time.run([asyncio.create_task(replicas[0].talk(usage))])
    usage.end("budget")
    assert usage.spent(DAY)[0] == MINUTE_MS


async def test_killed_process_holds_for_a_minute(database: Database) -> None:
    time = VirtualTime(Hands())
    replica = Replica(database, time, minutes=1)
    holding = asyncio.create_task(replica.talk(replica.open()))
    await eventually(lambda: held(database))
    holding.cancel()  # and nothing is settled
    assert await is_left(replica) == "budget_used"
    earlier = update(budget_reservations).values(until_us=budget_reservations.c.until_us - 60_000_000)
    await database.write(lambda connection: connection.execute(earlier).rowcount)
    assert await is_left(replica) == "left"


async def test_plan_is_refused_until_midnight(database: Database) -> None:
    time = VirtualTime(Hands())
    replica = Replica(database, time, minutes=1)
    usage = replica.open()
    await time.run([asyncio.create_task(replica.talk(usage))])
    usage.end("budget")
    await replica.budgets.settle()
    with pytest.raises(Problem) as refused:
        await replica.budgets.ensure_left("ann")
    assert refused.value.status == 429
    assert 0 < int((refused.value.headers or {})["Retry-After"]) <= 86_400
    await replica.budgets.ensure_left("bob")


async def test_new_day_has_a_new_budget(database: Database) -> None:
    time, told = VirtualTime(Hands(before_s=40)), list[tuple[str, float]]()
    replica, began_s = Replica(database, time, minutes=1), time.hands.s
    usage = replica.open()
    await time.run([asyncio.create_task(replica.talk(usage, told))])
    usage.end("budget")
    await replica.budgets.settle()
    assert usage.spent(DAY)[0] == 40_000
    assert usage.spent(DAY + 1)[0] == MINUTE_MS
    assert [what for what, at_s in told if at_s > began_s + 40] == ["warn", "end"]


async def test_tokens_are_overdrawn_by_one_answer(database: Database) -> None:
    time, told = VirtualTime(Hands()), list[tuple[str, float]]()
    replica = Replica(database, time, tokens=20_000)
    usage = replica.open()
    talk = asyncio.create_task(replica.talk(usage, told))
    await eventually(lambda: held(database))
    moving = asyncio.create_task(time.run([talk]))

    async def is_noticed() -> bool:
        is_over = any(what == "end" for what, _ in told)
        return is_over or await used(database, budget_reservations.c.used_tokens) == usage.spent(DAY)[1]

    while not any(what == "end" for what, _ in told):
        answer = {"input_tokens": 3000, "output_tokens": 3000, "total_tokens": 6000}
        usage.azure_sent(done(f"r{usage.spent(DAY)[1]}", answer), resource="one", dialect="ga")
        await eventually(is_noticed)
    await asyncio.wait_for(moving, 20)
    usage.end("budget")
    assert [what for what, _ in told] == ["warn", "end"]
    assert usage.spent(DAY)[1] <= 20_000 + 6000


async def test_abandoned_answers_use_up_tokens(database: Database) -> None:
    time = VirtualTime(Hands())
    replica = Replica(database, time, tokens=10_000)
    for number in range(3):
        assert await is_left(replica) == ("left" if number < 2 else "budget_used")
        usage = replica.open(f"talk-{number}")
        holding = asyncio.create_task(replica.talk(usage))
        await asyncio.sleep(0.05)
        usage.azure_sent(created("r1"), resource="one", dialect="ga")
        holding.cancel()
        usage.end("hung_up")
        await replica.budgets.settle()


@contextlib.contextmanager
def silent(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def away(*_work: object, **_others: object) -> None:
        raise StoreAwayError("away")

    with monkeypatch.context() as patched:
        patched.setattr(database, "write", away)
        patched.setattr(database, "read", away)
        yield


async def test_silent_store_ends_a_minute_later(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    time, told = VirtualTime(Hands()), list[tuple[str, float]]()
    replica, began_s = Replica(database, time, minutes=60), time.hands.s
    usage = replica.open()
    talk = asyncio.create_task(replica.talk(usage, told))
    await eventually(lambda: held(database))
    with silent(database, monkeypatch):
        assert await is_left(replica) == "store_away"
        await time.run([talk])
    assert [(what, round(at_s - began_s)) for what, at_s in told] == [("warn", 90), ("end", 105)]


@pytest.mark.parametrize(
    ("reserved", "now_s", "expected"),
    [
        (Reserved(0, 60_000, True, None), 100.0, (False, False, 15.0)),
        (Reserved(0, 59_999, True, None), 100.0, (False, False, 5.0)),
        (Reserved(0, 32_000, True, None), 100.0, (False, False, 2.0)),
        (Reserved(0, 30_000, True, None), 100.0, (True, False, 5.0)),
        (Reserved(0, 15_000, True, None), 100.0, (True, True, 0.05)),
        (Reserved(0, 0, True, None), 100.0, (True, True, 0.05)),
        (Reserved(0, 60_000, True, 9000), 100.0, (False, False, 15.0)),
        (Reserved(0, 60_000, True, 4000), 100.0, (True, False, 5.0)),
        (Reserved(0, 60_000, False, -1), 100.0, (True, True, 0.05)),
        (None, 100.0, (False, False, 5.0)),
        (None, 145.0, (True, False, 5.0)),
        (None, 160.0, (True, True, 0.05)),
    ],
)
def test_steps_of_a_talk(reserved: Reserved | None, now_s: float, expected: tuple[bool, bool, float]) -> None:
    step = HoldState(until_s=110.0).step(reserved, 100.0, now_s, answer_tokens=4096)
    assert (step.warns, step.ends, step.wait_s) == expected


def test_warned_once_until_more_is_there() -> None:
    state = HoldState(0.0)
    little, much = Reserved(0, 20_000, True, None), Reserved(0, 60_000, True, None)
    warned = [state.step(each, 0.0, 0.0, answer_tokens=0).warns for each in (little, little, much, little)]
    assert warned == [True, False, False, True]
