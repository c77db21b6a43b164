"""Who holds a call: leases by the store's clock, epochs, takeovers and handovers, on both databases."""

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Update, select, update

from tests.strategies.clock import Clock
from tests.support.waiting import eventually
from token_broker.calls.call_row import DELIVERED, ENDED, MADE, CallName, CallRow, TakenCall
from token_broker.calls.lease_statements import release_calls
from token_broker.calls.leases import _EVERY_S, CallLeases, EngagedElsewhereError
from token_broker.memory.drivers.database import Database
from token_broker.memory.store.tables import calls, usage
from token_broker.memory.store_errors import StoreUnreachableError
from token_broker.security.tokens import Narrowing, Owner
from token_broker.usage.ledger import UsageLedger
from token_broker.usage.talk_usage import MOVED

OWNER = Owner("session-1", "alice", 7, "Alice", "talk-1")


def call_row(number: int = 1, *, owner: Owner = OWNER) -> CallRow:
    return CallRow(
        f"key-{number}", owner, "elena", "alice", "one", "https://azure.example", f"rtc_{number}", "compat", 600.0
    )


@dataclass
class Watcher:
    took: list[TakenCall] = field(default_factory=list)
    lost_calls: list[CallName] = field(default_factory=list)
    wanted: list[TakenCall] = field(default_factory=list)
    older: list[TakenCall] = field(default_factory=list)
    read: list[TakenCall] = field(default_factory=list)
    lasting: list[TakenCall] = field(default_factory=list)
    engaged: set[CallName] = field(default_factory=set)
    unheard: dict[CallName, float] = field(default_factory=dict)
    counted: bool = True

    def is_engaged(self, name: CallName) -> bool:
        return name in self.engaged

    def unheard_s(self, name: CallName) -> float | None:
        return self.unheard.get(name)

    def is_counted(self, name: CallName) -> bool:
        return self.counted

    def lasts(self, found: TakenCall) -> None:
        self.lasting.append(found)

    def read_elsewhere(self, found: TakenCall) -> None:
        self.read.append(found)

    def taken(self, found: TakenCall) -> None:
        self.took.append(found)

    def lost(self, name: CallName) -> None:
        self.lost_calls.append(name)

    def end_wanted(self, found: TakenCall) -> None:
        self.wanted.append(found)

    def replaced(self, found: TakenCall) -> None:
        self.older.append(found)


class Replica:
    """One replica's leases, with a clock of its own; it has been up for longer than a lease lasts."""

    def __init__(self, database: Database, name: str) -> None:
        self.clock, self.watcher = Clock(), Watcher()
        self.leases = CallLeases(database, name, clock=self.clock)
        self.leases.watcher = self.watcher

    async def start(self) -> "Replica":
        await self.leases.refresh()
        self.clock.now_s += 6
        self.leases._ticked_s = self.clock.now_s
        return self

    async def holds(self, row: CallRow) -> "Replica":
        self.leases.made(row)
        self.leases.delivered(row.name)
        await self.leases.refresh()
        return self

    def sleep(self, seconds: float) -> None:
        """It is stopped for so long: nothing ticks."""
        self.clock.now_s += seconds


async def age(database: Database, seconds: float) -> None:
    """The store's clock moves on."""
    us = round(seconds * 1_000_000)
    older = update(calls).values(
        lease_until_us=calls.c.lease_until_us - us,
        created_at_us=calls.c.created_at_us - us,
        expires_at_us=calls.c.expires_at_us - us,
        over_at_us=calls.c.over_at_us - us,
        unheard_since_us=calls.c.unheard_since_us - us,
    )
    await database.write(lambda connection: connection.execute(older).rowcount)


async def rows(database: Database) -> dict[str, tuple[int, str | None, int, str | None]]:
    """State, holder, epoch and wanted end by key."""
    found = await database.read(lambda connection: connection.execute(select(calls)).all())
    return {row.call_key: (row.state, row.holder, row.lease_epoch, row.ending) for row in found}


async def two(database: Database) -> tuple[Replica, Replica]:
    one, other = await Replica(database, "one").start(), await Replica(database, "other").start()
    other.leases._looks_at_s = one.leases._looks_at_s = 0  # on SQLite too
    other.leases._is_alone = one.leases._is_alone = False
    await other.leases.refresh()
    return one, other


async def test_dead_replicas_call_is_taken(database: Database) -> None:
    one, other = await two(database)
    await one.holds(call_row())
    await other.leases.refresh()
    assert other.watcher.took == [], "its holder lives"
    await age(database, 7)
    await other.leases.refresh()
    (found,) = other.watcher.took
    assert (found.row.owner, found.state, found.epoch, found.ending) == (OWNER, DELIVERED, 1, None)
    assert 580 < found.row.lasts_s < 594, "the limits go on with what remains"
    assert await rows(database) == {"key-1": (DELIVERED, "other", 1, None)}


async def test_dead_replicas_calls_are_held_within_10_s(database: Database) -> None:
    """In steps of the interval at which leases are renewed: by a replica that was there, and by one that just came."""
    for number, is_new in enumerate([False, True]):
        one, other = await two(database)
        if is_new:
            other = Replica(database, "new")
            other.leases._looks_at_s, other.leases._is_alone = 0, False
        row = call_row(number, owner=Owner(f"session-{number}", "alice", 1))
        await one.holds(row)
        waited_s = 0.0
        while not other.watcher.took:
            await other.leases.refresh()
            waited_s += _EVERY_S
            other.clock.now_s += _EVERY_S
            await age(database, _EVERY_S)
        assert waited_s + _EVERY_S < 10


async def test_given_up_call_is_taken_at_once(database: Database) -> None:
    one, other = await two(database)
    new = Replica(database, "new")
    new.leases._is_alone = False
    await one.holds(call_row(1))
    await other.holds(call_row(2, owner=Owner("session-2", "bob", 1)))
    await age(database, 7)
    await database.write(lambda connection: release_calls(connection, "one", [("key-1", 0)]))
    await new.leases.refresh()
    assert [found.row.key for found in new.watcher.took] == ["key-1"], "the other's may only be late"


async def test_bounded_talk_counts_on(database: Database) -> None:
    """`max_session_s` goes on over a new call of the talk at another replica."""
    one, other = await two(database)
    bounded = dataclasses.replace(OWNER, narrowed=Narrowing(max_session_s=600))
    await one.holds(call_row(1, owner=bounded))
    await age(database, 400)
    await other.holds(call_row(2, owner=bounded))
    assert 100 < other.watcher.lasting[-1].row.lasts_s <= 200


async def test_renewed_call_is_not_taken(database: Database) -> None:
    one, other = await two(database)
    await one.holds(call_row())
    for _ in range(3):
        await age(database, 4)
        await one.leases.refresh()
        await other.leases.refresh()
    assert other.watcher.took == []
    assert one.watcher.lost_calls == []


async def test_paused_replica_does_no_harm(database: Database) -> None:
    one, other = await two(database)
    row = call_row()
    await one.holds(row)
    await age(database, 7)
    await other.leases.refresh()
    one.sleep(7)
    assert not await one.leases.claim_end(row.name, "idle"), "it may not hang up"
    assert one.watcher.lost_calls == [row.name]
    assert (await rows(database))["key-1"] == (DELIVERED, "other", 1, None)


async def test_paused_replica_asks_before_it_goes_on(database: Database) -> None:
    one, other = await two(database)
    row = call_row()
    await one.holds(row)
    await one.leases.confirm()
    assert one.watcher.lost_calls == []
    await age(database, 7)
    await other.leases.refresh()
    one.sleep(7)
    await one.leases.confirm()
    assert one.watcher.lost_calls == [row.name]


async def test_pause_without_a_taker_costs_nothing(database: Database) -> None:
    one, _ = await two(database)
    row = call_row()
    await one.holds(row)
    await age(database, 60)
    one.sleep(60)
    await one.leases.confirm()
    assert one.watcher.lost_calls == []
    assert await one.leases.claim_end(row.name, "idle")


async def test_undelivered_call_of_the_dead_is_known(database: Database) -> None:
    """Its holder died after Azure's headers: who takes it has to hang it up."""
    one, other = await two(database)
    one.leases.made(call_row())
    await one.leases.refresh()
    await age(database, 7)
    await other.leases.refresh()
    assert [found.state for found in other.watcher.took] == [MADE]


async def test_wanted_end_outlives_the_holder(database: Database) -> None:
    one, other = await two(database)
    row = call_row()
    await one.holds(row)
    assert await one.leases.claim_end(row.name, "budget")
    await age(database, 7)
    await other.leases.refresh()
    assert [found.ending for found in other.watcher.took] == ["budget"]
    await one.leases.refresh()
    assert one.watcher.wanted == [], "its own"


async def test_end_is_wanted_at_any_replica(database: Database) -> None:
    one, other = await two(database)
    row = call_row()
    await one.holds(row)
    other.leases.want_end(row.name, "hung_up")
    await other.leases.refresh()
    await one.leases.refresh()
    await one.leases.refresh()
    assert [found.ending for found in one.watcher.wanted] == ["hung_up"], "told once"
    one.leases.over(row.name)
    await one.leases.refresh()
    assert (await rows(database))["key-1"][0] == ENDED
    await age(database, 60)
    await other.leases.refresh()
    assert other.watcher.took == []


async def test_call_is_held_until_its_use_is_written(database: Database) -> None:
    """Its holder may die in between: then another one writes it."""
    one, other = await two(database)
    row = call_row()
    await one.holds(row)
    one.watcher.counted = False
    one.leases.over(row.name)
    for _ in range(3):
        await age(database, 4)
        await one.leases.refresh()
        await other.leases.refresh()
    assert (await rows(database))["key-1"][:2] == (DELIVERED, "one")
    assert other.watcher.took == []
    one.watcher.counted = True
    await one.leases.refresh()
    assert (await rows(database))["key-1"][0] == ENDED
    assert (len(one.leases), one.watcher.lost_calls, one.watcher.wanted) == (0, [], [])


async def test_hung_up_elsewhere_counts_until_then(database: Database) -> None:
    """Its holder has died, and notes nothing: who takes the call knows when it was hung up."""
    one, other = await two(database)
    row = call_row()
    await one.holds(row)
    await age(database, 4)
    other.leases.over(row.name)
    slow = CallsMeanwhile(database, lambda: other.sleep(3))
    other.leases._database = slow  # type: ignore[assignment]
    await other.leases.refresh()
    other.leases._database = database
    assert (await rows(database))["key-1"] == (DELIVERED, "one", 0, "hung_up")
    await age(database, 8)
    await other.leases.refresh()
    (found,) = other.watcher.took
    assert found.ending == "hung_up"
    assert 11 <= found.lost_s < 12 <= found.age_s


@pytest.mark.parametrize(
    ("unheard_s", "lost_s"),
    [
        ([None], 10),  # until its last renewal
        ([1.0], 11),  # its sideband broke before that: it may have ended then
        ([1.0, 3.0], 11),
        ([1.0, None], 8),  # it was joined again
    ],
)
async def test_taker_knows_since_when_nobody_heard_a_call(
    database: Database, unheard_s: list[float | None], lost_s: int
) -> None:
    one, other = await two(database)
    await one.holds(row := call_row())
    for number, seconds in enumerate(unheard_s):
        await age(database, 2 * min(number, 1))
        one.watcher.unheard = {} if seconds is None else {row.name: seconds}
        await one.leases.refresh()
    await age(database, 10 - 2 * (len(unheard_s) - 1))
    await other.leases.refresh()
    (found,) = other.watcher.took
    assert lost_s <= found.lost_s < lost_s + 1


@pytest.mark.parametrize(
    ("heard", "others", "expected"),
    [(None, 0, (False, None)), (False, 0, (False, None)), (True, 0, (True, 2.0)), (True, 1, (False, 2.0))],
)
async def test_taker_knows_what_the_dead_replica_heard(
    database: Database, heard: bool | None, others: int, expected: tuple[bool, float | None]
) -> None:
    """A talk that was heard is the call that was heard, unless the talk had others."""
    one, other = await two(database)
    row = call_row()
    await one.holds(row)
    for number in range(others):
        await one.holds(call_row(2 + number))
        one.leases.over(call_row(2 + number).name)
    ledger = UsageLedger(database)
    if heard is not None:
        talk = ledger.open(OWNER, agent_id="elena", transport="compat", dialect="ga", seen=True)
        talk.expect("one", "ga")
        if heard:
            talk.went_live("one", "ga", by="rtc_1")
        await ledger.flush()
    await one.leases.refresh()
    await age(database, 10)
    earlier = update(usage).values(updated_at_us=usage.c.updated_at_us - 2_000_000)
    await database.write(lambda connection: connection.execute(earlier).rowcount)
    await other.leases.refresh()
    (found,) = other.watcher.took
    assert found.was_heard is expected[0]
    assert (found.unheard_s is None) is (expected[1] is None)
    assert found.unheard_s is None or 2 <= found.unheard_s < found.lost_s
    assert 10 <= found.lost_s <= found.age_s


@pytest.mark.parametrize(
    ("parts", "wanted", "expected"),
    [
        ([None], None, (False, 10.0)),
        ([None, None], None, (False, 20.0)),  # the second was killed, too
        ([None, "budget"], "budget", (True, 20.0)),  # it was killed before it noted that the call is over
        ([None, "lost"], None, (False, 20.0)),  # it went away, and the call may go on
        ([MOVED], None, (False, 10.0)),
        ([None, MOVED], None, (False, 20.0)),
    ],
)
async def test_taker_knows_until_when_time_is_written(
    database: Database, parts: list[str | None], wanted: str | None, expected: tuple[bool, float]
) -> None:
    """Of several holders one after another the latest counts: each has written until 10 s after the one before."""
    one, other = await two(database)
    await one.holds(row := call_row())
    began_us = 0
    for number, end in enumerate(parts, 1):
        ledger = UsageLedger(database)
        talk = ledger.open(OWNER, agent_id="elena", transport="compat", dialect="ga", seen=True)
        talk.went_live("one", "ga", by="rtc_1")
        await ledger.flush()
        began_us = began_us or talk.rows[0].started_us
        its_own = update(usage).where(usage.c.part == talk.part)
        await change(database, its_own.values(updated_at_us=began_us + number * 10_000_000))
        if end is not None:
            talk.end(end, by="rtc_1")
            await change(database, its_own.values(ended=end))
        if end == MOVED:
            await ledger.flush()  # which adds no time
    if wanted is not None:
        assert await one.leases.claim_end(row.name, wanted)
    await age(database, 10)
    await change(database, update(usage).values(updated_at_us=usage.c.updated_at_us - 100_000_000))
    await other.leases.refresh()
    (found,) = other.watcher.took
    assert found.unheard_s is not None
    assert (found.is_counted, round((100 - found.unheard_s) / 10) * 10) == expected


async def change(database: Database, statement: Update) -> None:
    await database.write(lambda connection: connection.execute(statement).rowcount)


async def test_older_calls_of_a_talk_are_replaced(database: Database) -> None:
    one, other = await two(database)
    await one.holds(call_row(1))
    await one.holds(call_row(2, owner=Owner("session-1", "alice", 7, None, "talk-2")))
    await age(database, 1)
    await other.holds(call_row(3))
    assert [found.row.key for found in other.watcher.older] == ["key-1"]
    assert one.watcher.older == []


class SilentAtTimes:
    """A store that can be made silent."""

    def __init__(self, database: Database) -> None:
        self.dialect, self._database, self.is_silent = database.dialect, database, False

    async def write(self, work: object, **options: object) -> object:
        if self.is_silent:
            raise StoreUnreachableError("silence")
        return await self._database.write(work, **options)  # type: ignore[arg-type]


class CallsMeanwhile:
    """A store at which something happens while leases are renewed."""

    def __init__(self, database: Database, meanwhile: Callable[[], None]) -> None:
        self.dialect, self._database, self._meanwhile = database.dialect, database, meanwhile

    async def write(self, work: object, **options: object) -> object:
        self._meanwhile()
        return await self._database.write(work, **options)  # type: ignore[arg-type]


async def test_call_that_comes_while_leases_are_renewed_stays(database: Database) -> None:
    """A page's call is stored before it is held, so the answer to an earlier question says nothing of it."""
    one, other = await two(database)
    row = call_row()
    await other.holds(row)
    await database.write(lambda connection: connection.execute(update(calls).values(holder="one")).rowcount)
    meanwhile = CallsMeanwhile(database, lambda: one.leases.adopt(row))
    one.leases._database = meanwhile  # type: ignore[assignment]
    await one.leases.refresh()
    assert (one.watcher.lost_calls, one.leases.holds(row.name)) == ([], True)
    one.leases._database = database
    await one.leases.refresh()
    assert one.watcher.lost_calls == []


async def test_client_waits_until_its_call_is_stored(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever kills its process from then on leaves a call that another one takes. A silent store holds nobody up."""
    monkeypatch.setattr("token_broker.calls.leases._STORED_S", 300)
    store = SilentAtTimes(database)
    one, _ = await two(database)
    one.leases._database = store  # type: ignore[assignment]
    first, second, third = (call_row(number).name for number in (1, 2, 3))
    async with asyncio.timeout(30):
        one.leases.made(call_row(1))
        waiting = asyncio.create_task(one.leases.stored(first))
        await asyncio.sleep(0)
        assert not waiting.done()
        await one.leases.refresh()
        await waiting
        assert (await rows(database))["key-1"][0] == MADE
        store.is_silent = True
        one.leases.made(call_row(2))
        waiting = asyncio.create_task(one.leases.stored(second))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnreachableError):
            await one.leases.refresh()
        await waiting
        one.leases.made(call_row(3))
        await one.leases.stored(third)
    assert set(await rows(database)) == {"key-1"}


async def test_silent_store_leaves_calls_with_their_process(database: Database) -> None:
    store = SilentAtTimes(database)
    one, other = await two(database)
    one.leases._database = other.leases._database = store  # type: ignore[assignment]
    row, late = call_row(1), call_row(2, owner=Owner("session-2", "bob", 1))
    await one.holds(row)
    store.is_silent = True
    one.leases.made(late)
    one.leases.delivered(late.name)
    for replica in (one, other):
        try:
            await replica.leases.refresh()
        except StoreUnreachableError:
            continue
        raise AssertionError
    assert await one.leases.claim_end(row.name, "idle"), "nobody else can have taken it"
    store.is_silent = False
    await age(database, 60)
    await other.leases.refresh()
    assert other.watcher.took == [], "the others renew theirs first"
    await one.leases.refresh()
    assert {key: row[:2] for key, row in (await rows(database)).items()} == {
        "key-1": (DELIVERED, "one"),
        "key-2": (DELIVERED, "one"),
    }, "its row follows"


async def test_call_with_a_client_stays_with_it(database: Database) -> None:
    """Clients of one call at two replicas would have it go to and fro. A replica that dies keeps nothing."""
    one, other = await two(database)
    row = call_row()
    await one.holds(row)
    one.leases._is_alone = other.leases._is_alone = False
    page = (row.owner.session_id, row.call_id)
    one.watcher.engaged.add(row.name)
    await one.leases.refresh()
    with pytest.raises(EngagedElsewhereError):
        await other.leases.take(page)
    assert other.watcher.took == []
    one.watcher.engaged.clear()
    await one.leases.refresh()
    assert await other.leases.take(page)
    other.watcher.engaged.add(row.name)
    await other.leases.refresh()
    await one.leases.refresh()
    assert one.watcher.lost_calls == [row.name]
    with pytest.raises(EngagedElsewhereError):
        await one.leases.take(page)
    await database.write(lambda connection: connection.execute(update(calls).values(lease_until_us=1)).rowcount)
    await one.leases.refresh()
    assert len(one.watcher.took) == 1


async def test_leaving_replica_hands_over(database: Database) -> None:
    one, other = await two(database)
    given = [call_row(number, owner=Owner(f"session-{number}", "alice", 1)) for number in range(3)]
    for row in given:
        await one.holds(row)

    async def take() -> None:
        while len(other.watcher.took) < 3:
            await other.leases.refresh()
            await asyncio.sleep(0.05)

    await asyncio.wait_for(asyncio.gather(one.leases.hand_over(), take()), 30)
    assert sorted(one.watcher.lost_calls) == sorted(row.name for row in given)
    assert {holder for _, holder, _, _ in (await rows(database)).values()} == {"other"}


async def test_call_that_nobody_takes_stays(database: Database) -> None:
    one, _ = await two(database)
    row = call_row()
    await one.holds(row)
    one.leases._is_alone = True
    await one.leases.hand_over()
    assert one.watcher.lost_calls == [], "there is nobody else"
    one.leases._is_alone = False
    handing = asyncio.create_task(one.leases.hand_over())

    async def given_up() -> bool:
        return (await rows(database))["key-1"][1] is None

    await eventually(given_up)
    one.sleep(10)
    await asyncio.wait_for(handing, 20)
    await one.leases.refresh()
    assert one.watcher.lost_calls == []
    assert (await rows(database))["key-1"][:2] == (DELIVERED, "one")
