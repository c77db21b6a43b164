"""The ledger is exact to the second and the token; what is unknown is said to be."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from tests.support.waiting import eventually
from tests.usage.support import DAY, Hands, created, done, make_owner, tokens, transcribed
from token_broker.calls.call_row import DELIVERED, CallRow
from token_broker.calls.lease_statements import insert_calls, take_call
from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreAwayError
from token_broker.usage.billed import answer_counts
from token_broker.usage.ledger import GivenSecret, UsageLedger
from token_broker.usage.rows import sum_usage
from token_broker.usage.talk_usage import MOVED, TalkUsage


def open_talk(ledger: UsageLedger, talk_id: str = "talk-1", **others: Any) -> TalkUsage:
    fields: dict[str, Any] = {
        "agent_id": "elena",
        "transport": "websocket_proxy",
        "dialect": "ga",
        "seen": True,
    } | others
    return ledger.open(make_owner(talk_id), **fields)


def tell(usage: TalkUsage, *events: dict[str, Any], resource: str = "one") -> None:
    for event in events:
        usage.azure_sent(event, resource=resource, dialect="ga")


async def read(database: Database, **wanted: Any) -> list[dict[str, Any]]:
    return await database.read(lambda connection: sum_usage(connection, **wanted))


async def test_talk_is_counted_exactly(database: Database) -> None:
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock)
    usage = open_talk(ledger)
    usage.went_live("one", "ga")
    hands.move(61)
    tell(usage, created("r1"), done("r1"), created("r2"), done("r2"), transcribed("i1", {"seconds": 1.5}))
    tell(usage, transcribed("i2", {"type": "tokens", "input_tokens": 13, "output_tokens": 9}))
    usage.tool_ran()
    usage.end("hung_up")
    await ledger.flush()
    (row,) = await read(database)
    assert row["live_ms"] == 61_000
    assert (row["responses"], row["unmeasured"], row["tools_run"]) == (2, 0, 1)
    assert (row["input_tokens"], row["output_tokens"]) == (26, 44)
    assert (row["input_audio_tokens"], row["cached_audio_tokens"], row["output_text_tokens"]) == (20, 8, 4)
    assert (row["input_image_tokens"], row["cached_image_tokens"]) == (0, 0)
    assert (row["transcription_ms"], row["transcription_input_tokens"]) == (1500, 13)
    assert (row["seen"], row["complete"], row["ended"]) == (1, 1, "hung_up")
    assert ledger.waiting == 0


async def test_midnight_divides_a_talk(database: Database) -> None:
    hands = Hands(before_s=10)
    ledger = UsageLedger(database, clock=hands.clock)
    usage = open_talk(ledger)
    usage.went_live("one", "ga")
    tell(usage, done("r1"))
    hands.move(25)
    tell(usage, done("r2"), done("r3"))
    usage.end("hung_up")
    await ledger.flush()
    found = await read(database)
    assert [(row["day"], row["live_ms"], row["responses"]) for row in found] == [(DAY, 10_000, 1), (DAY + 1, 15_000, 2)]
    assert [row["live_ms"] for row in await read(database, since_day=DAY + 1)] == [15_000]


def test_two_observers_count_once() -> None:
    hands = Hands()
    ledger = UsageLedger(None, clock=hands.clock)
    first, second = open_talk(ledger), open_talk(ledger)
    for observer in (first, second):
        observer.went_live("one", "ga")
        tell(observer, created("r1"), done("r1"), transcribed("i1", {"seconds": 1}))
    hands.move(5)
    first.end("hung_up")
    hands.move(2)
    assert not second.values(second.rows[0])["complete"]
    second.end("sideband closed")
    (row,) = second.rows
    values = second.values(row)
    assert (values["responses"], values["live_ms"], values["transcription_ms"]) == (1, 7000, 1000)
    assert (values["complete"], values["ended"]) == (True, "hung_up")


@pytest.mark.parametrize(
    "usage", [None, {}, [], "much", {"input_tokens": True}, {"input_tokens": -1}, {"total_tokens": 3}]
)
def test_unknown_usage_is_not_zero(usage: object) -> None:
    talk = open_talk(UsageLedger(None, clock=Hands().clock))
    talk.went_live("one", "ga")
    tell(talk, {"type": "response.done", "response": {"id": "r1", "usage": usage}})
    talk.end("hung_up")
    values = talk.values(talk.rows[0])
    assert (values["responses"], values["unmeasured"], values["complete"]) == (1, 1, False)
    assert (values["input_tokens"], values["output_audio_tokens"]) == (None, None)
    assert talk.spent(DAY)[1] == 4096, "and not free"


@pytest.mark.parametrize("event", [{}, {"response": None}, {"response": []}, {"response": {"id": 3}}])
def test_broken_events_do_no_harm(event: dict[str, Any]) -> None:
    talk = open_talk(UsageLedger(None, clock=Hands().clock))
    for kind in ("response.created", "response.done", "conversation.item.input_audio_transcription.completed"):
        tell(talk, {"type": kind} | event)
    assert sum(row.unmeasured for row in talk.rows) == 1


def test_abandoned_answers_are_unmeasured() -> None:
    ledger = UsageLedger(None, clock=Hands().clock)
    spent = []
    for number in range(50):
        talk = open_talk(ledger, f"talk-{number}")
        talk.went_live("one", "ga")
        tell(talk, created("r1"))
        talk.end("hung_up")
        spent.append(talk.spent(DAY)[1])
        assert not talk.values(talk.rows[0])["complete"]
    assert spent == [4096] * 50


def test_moved_talk_has_a_row_each() -> None:
    hands = Hands()
    talk = open_talk(UsageLedger(None, clock=hands.clock))
    talk.went_live("one", "ga")
    tell(talk, created("r1"))
    hands.move(30)
    talk.went_live("two", "preview")
    tell(talk, done("r2"), resource="two")
    hands.move(4)
    talk.end("hung_up")
    rows = [talk.values(row) for row in talk.rows]
    assert [(row["resource"], row["live_ms"], row["unmeasured"]) for row in rows] == [
        ("one", 30_000, 1),
        ("two", 4000, 0),
    ]


async def test_each_agent_has_its_own(database: Database) -> None:
    """What an agent began is its own, even if it ends after the handoff; and back again."""
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock)
    talk = open_talk(ledger)
    talk.went_live("one", "ga")
    hands.move(10)
    tell(talk, created("r1"))
    talk.handed_over("marcus")
    tell(talk, done("r1"), created("r2"), done("r2"), created("r3"))
    talk.tool_ran()
    hands.move(5)
    await ledger.flush()
    talk.handed_over("elena")
    hands.move(2)
    talk.end("hung_up")
    await ledger.flush()
    by_agent = {row["agent_id"]: row for row in await read(database, by="agent")}
    assert {agent: (row["live_ms"], row["responses"], row["unmeasured"]) for agent, row in by_agent.items()} == {
        "elena": (12_000, 1, 0),
        "marcus": (5000, 2, 1),
    }
    assert (by_agent["marcus"]["tools_run"], by_agent["elena"]["tools_run"]) == (1, 0)
    assert [row["talks"] for row in await read(database, by="day")] == [1]


def call_on(ledger: UsageLedger) -> TalkUsage:
    talk = open_talk(ledger, transport="webrtc_relay")
    talk.expect("one", "ga")
    return talk


async def test_two_replicas_count_an_answer_once(database: Database) -> None:
    """A call moves: for a moment both hear it. What the leaving one has heard begin is the other's to count."""
    hands = Hands()
    ledgers = [UsageLedger(database, clock=hands.clock) for _ in range(2)]
    leaving, taking = (call_on(ledger) for ledger in ledgers)
    leaving.went_live("one", "ga")
    tell(leaving, created("r1"), created("r2"), created("r3"))
    hands.move(20)
    taking.went_live("one", "ga", unheard_s=0.0)
    for each in (leaving, taking):
        tell(each, done("r1"), transcribed("i1", {"seconds": 2}))
    tell(leaving, done("r2", {}))
    tell(taking, done("r2", {}), done("r3"))
    leaving.end(MOVED)
    await ledgers[0].flush()
    await ledgers[1].flush()
    hands.move(7)
    taking.end("hung_up")
    await ledgers[1].flush()
    (row,) = await read(database)
    assert (row["responses"], row["unmeasured"], row["input_tokens"]) == (3, 1, 26)
    assert (row["transcription_ms"], row["live_ms"]) == (2000, 27_000)
    assert (row["ended"], row["seen"]) == ("hung_up", 1)
    assert [ledger.counts.repeated for ledger in ledgers] == [0, 3]


async def test_dead_replicas_time_is_made_up_for(database: Database) -> None:
    hands = Hands()
    ledgers = [UsageLedger(database, clock=hands.clock) for _ in range(2)]
    killed = call_on(ledgers[0])
    killed.went_live("one", "ga")
    hands.move(15)
    tell(killed, created("r1"))
    await ledgers[0].flush()
    hands.move(9)  # of which nothing was written
    tell(killed, done("r0"))
    taken = call_on(ledgers[1])
    taken.went_live("one", "ga", unheard_s=9.0)
    hands.move(1)
    taken.went_live("one", "ga")  # joined
    tell(taken, done("r1"))
    hands.move(5)
    taken.end("hung_up")
    await ledgers[1].flush()
    (row,) = await read(database)
    assert (row["live_ms"], row["responses"], row["unmeasured"]) == (30_000, 1, 0)
    assert (row["complete"], row["ended"]) == (0, "hung_up"), "answers of the nine seconds may be missing"


@pytest.mark.parametrize(("lost_s", "complete"), [(0.0, 1), (0.5, 0)], ids=["leaving", "paused"])
async def test_moved_calls_time_counts_once(database: Database, lost_s: float, complete: int) -> None:
    """Who takes a call counts from the last row on: what its former holder counted since is not counted again.

    A replica that leaves has heard all until the call is taken; one that was paused has not.
    """
    hands = Hands()
    ledgers = [UsageLedger(database, clock=hands.clock) for _ in range(2)]
    leaving = call_on(ledgers[0])
    leaving.went_live("one", "ga")
    hands.move(15)
    await ledgers[0].flush()
    hands.move(9)
    taken = call_on(ledgers[1])
    taken.went_live("one", "ga", by="rtc_1", unheard_s=9.0, lost_s=lost_s)
    taken.went_live("one", "ga", by="rtc_1")  # joined
    hands.move(1)
    leaving.end(MOVED)
    await ledgers[0].flush()
    taken.end("hung_up")
    await ledgers[1].flush()
    (row,) = await read(database)
    assert (row["live_ms"], row["complete"]) == (25_000, complete)
    assert leaving.spent(DAY)[0] + taken.spent(DAY)[0] == 25_000


def billed(talk: TalkUsage, *seconds: float, session: str = "sess_1") -> None:
    for each in seconds:
        talk.azure_billed(session, each, resource="one", dialect="live")


def live_call(ledger: UsageLedger) -> TalkUsage:
    talk = open_talk(ledger, transport="webrtc_relay", dialect="live")
    talk.expect("one", "live")
    talk.went_live("one", "live", by="sess_1")
    return talk


@pytest.mark.parametrize("first", [0, 1], ids=["leaving", "taking"])
async def test_azures_seconds_of_a_moved_session_count_once(database: Database, *, first: int) -> None:
    """They are cumulative, and each holder hears a part of the reports. It does not matter who writes first."""
    ledgers = [UsageLedger(database, clock=Hands().clock) for _ in range(2)]
    leaving, taking = (live_call(ledger) for ledger in ledgers)
    billed(leaving, 10)
    await ledgers[0].flush()
    billed(leaving, 20, 30)
    billed(taking, 30, 45)
    leaving.end(MOVED, by="sess_1")
    for number in (first, 1 - first):
        await ledgers[number].flush()
    assert sum(row["live_ms"] for row in await read(database)) == 45_000
    billed(taking, 44.5, 60)
    taking.end("hung_up", by="sess_1")
    await ledgers[1].flush()
    (row,) = await read(database)
    assert (row["live_ms"], row["ended"]) == (60_000, "hung_up")


async def test_azures_seconds_of_each_session_and_day_are_added(database: Database) -> None:
    hands = Hands(before_s=10)
    ledger = UsageLedger(database, clock=hands.clock)
    talk = open_talk(ledger, dialect="live")
    talk.went_live("one", "live")
    await ledger.flush()
    assert [row["live_ms"] for row in await read(database)] == [None]
    billed(talk, 0)
    await ledger.flush()
    assert [row["live_ms"] for row in await read(database)] == [0]
    billed(talk, 8)
    billed(talk, 4, session="sess_2")
    hands.move(20)
    billed(talk, 20, session="sess_2")
    await ledger.flush()
    await ledger.flush()
    assert [(row["day"], row["live_ms"]) for row in await read(database)] == [(DAY, 12_000), (DAY + 1, 16_000)]


async def test_seconds_written_twice_count_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store commits, and its answer is lost."""
    ledger = UsageLedger(database, clock=Hands().clock)
    talk = live_call(ledger)
    billed(talk, 7)
    write = database.write

    async def unanswered(work: Callable[[Connection], Any]) -> None:
        await write(work)
        raise StoreAwayError("away")

    with monkeypatch.context() as patched:
        patched.setattr(database, "write", unanswered)
        with pytest.raises(StoreAwayError):
            await ledger.flush()
    await ledger.flush()
    billed(talk, 9)
    await ledger.flush()
    assert [row["live_ms"] for row in await read(database)] == [9000]


async def held_call(database: Database, hands: Hands) -> tuple[UsageLedger, TalkUsage]:
    """A call that is live and whose lease is in the store: the ledger of its holder, and what it uses."""
    ledger = UsageLedger(database, clock=hands.clock)
    row = CallRow("key-1", make_owner(), "elena", "ann", "one", "https://one", "rtc_1", "webrtc_relay", 3600.0)
    await database.write(lambda connection: insert_calls(connection, [(row, DELIVERED, None)], "one", 6_000_000))
    usage = call_on(ledger)
    usage.went_live("one", "ga", by="rtc_1")
    return ledger, usage


async def test_former_holders_time_ends_where_the_new_ones_begins(database: Database) -> None:
    """A holder that does not know yet that its call was taken goes on counting, and writing."""
    hands = Hands()
    ledger, former = await held_call(database, hands)
    hands.move(15)
    await ledger.flush()
    page = ("session-0000000000", "rtc_1")
    taken = await database.write(lambda connection: take_call(connection, "other", 6_000_000, page))
    assert taken is not None
    assert [(each.unheard_s is not None, each.was_heard) for each in taken] == [(True, True)]
    hands.move(9)
    tell(former, done("r1"))
    await ledger.flush()
    hands.move(1)
    former.end(MOVED, by="rtc_1")
    await ledger.flush()
    (told,) = await read(database)
    assert (told["live_ms"], told["responses"], told["ended"]) == (15_000, 1, None)


async def test_taker_counts_from_what_is_written(database: Database) -> None:
    """The time without a sideband was not, whenever the row was written; and the store may be slow to write it."""
    hands = Hands()
    ledger, killed = await held_call(database, hands)
    hands.move(15)
    killed.out_of_sight("rtc_1")
    hands.move(7)
    await ledger.flush()
    page = ("session-0000000000", "rtc_1")
    taken = await database.write(lambda connection: take_call(connection, "other", 6_000_000, page))
    assert taken is not None
    assert taken[0].unheard_s is not None
    assert taken[0].unheard_s >= 7


def test_time_without_a_sideband_counts_once_it_is_heard_again() -> None:
    """It broke, and was joined again: the call went on. It broke, and Azure knows the call no more: it ended then."""
    hands = Hands(before_s=14)
    talk = call_on(UsageLedger(None, clock=hands.clock))
    talk.went_live("one", "ga", by="rtc_1")
    hands.move(10)
    talk.out_of_sight("rtc_1")
    hands.move(5)
    talk.look()
    assert [row.live_us for row in talk.rows] == [10_000_000]
    assert talk.spent(DAY)[0] == 15_000, "unknown is not free"
    talk.went_live("one", "ga", by="rtc_1")
    talk.look()
    assert [row.live_us for row in talk.rows] == [14_000_000, 1_000_000]
    hands.move(5)
    talk.out_of_sight("rtc_1")
    hands.move(4)
    tell(talk, done("r1"))
    assert talk.spent(DAY + 1)[0] == 6000
    talk.look()
    assert talk.spent(DAY + 1)[0] == 10_000
    talk.end("lost", by="rtc_1")
    assert [row.live_us for row in talk.rows] == [14_000_000, 6_000_000]
    assert (talk.rows[1].responses, talk.spent(DAY + 1)[0]) == (1, 6000)


def test_hung_up_without_a_sideband_counts_to_the_end() -> None:
    hands = Hands()
    talk = call_on(UsageLedger(None, clock=hands.clock))
    talk.went_live("one", "ga", by="rtc_1")
    hands.move(10)
    talk.out_of_sight("rtc_1")
    hands.move(30)
    talk.went_on("rtc_1")
    talk.end("hung_up", by="rtc_1")
    assert talk.rows[0].live_us == 40_000_000


def test_newer_call_goes_on_without_the_older() -> None:
    """The page was reloaded: one talk, whose older call breaks off before or after the newer one is heard."""
    hands = Hands()
    ledger = UsageLedger(None, clock=hands.clock)
    talk, again = call_on(ledger), call_on(ledger)
    assert talk is again
    talk.went_live("one", "ga", by="rtc_1")
    hands.move(10)
    talk.out_of_sight("rtc_1")
    hands.move(3)
    talk.went_live("one", "ga", by="rtc_2")
    hands.move(10)
    talk.end("lost", by="rtc_1")
    hands.move(10)
    talk.out_of_sight("rtc_2")
    hands.move(2)
    talk.end("hung_up", by="rtc_2")
    assert talk.rows[0].live_us == 30_000_000


@pytest.mark.parametrize(("joined", "live_ms"), [(True, 31_000), (False, 21_000)])
async def test_call_that_ended_unheard_is_not_counted_on(database: Database, *, joined: bool, live_ms: int) -> None:
    """Its holder was killed six seconds after it last wrote, and was missed four seconds later."""
    hands = Hands()
    ledgers = [UsageLedger(database, clock=hands.clock) for _ in range(2)]
    killed = call_on(ledgers[0])
    killed.went_live("one", "ga", by="rtc_1")
    hands.move(15)
    await ledgers[0].flush()
    hands.move(10)
    taken = call_on(ledgers[1])
    taken.went_live("one", "ga", by="rtc_1", unheard_s=10.0, lost_s=4.0)
    hands.move(4)
    if joined:
        taken.went_live("one", "ga", by="rtc_1")
    hands.move(2)
    taken.end("lost", by="rtc_1")
    await ledgers[1].flush()
    (row,) = await read(database)
    assert (row["live_ms"], row["complete"]) == (live_ms, 0)


async def test_nothing_is_written_of_calls_that_were_lost(database: Database) -> None:
    """A process that was stopped for a while writes nothing of a call before it knows whether it still holds it."""
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock)
    talk = call_on(ledger)
    talk.went_live("one", "ga")
    hands.move(15)
    await ledger.flush()

    async def find_lost() -> None:
        talk.end(MOVED)

    hands.move(60)
    ledger.confirm = find_lost
    await ledger.flush()
    (row,) = await read(database)
    assert row["live_ms"] == 15_000


async def test_call_that_is_never_heard_has_a_row(database: Database) -> None:
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock)
    talk, heard = call_on(ledger), open_talk(ledger, "talk-2", transport="webrtc_relay")
    heard.expect("one", "ga")
    await ledger.flush()  # a killed process leaves it so
    hands.move(60)
    talk.look()
    assert talk.spent(DAY) == (60_000, 0), "unknown is not free"
    heard.went_live("one", "ga")
    hands.move(3)
    for each in (talk, heard):
        each.end("lost")
    assert (talk.spent(DAY)[0], heard.spent(DAY)[0]) == (63_000, 3000)
    await ledger.flush()
    rows = {row["talk_id"]: row for row in await read(database)}
    unheard = rows["talk-1"]
    assert (unheard["seen"], unheard["complete"], unheard["ended"]) == (0, 0, "lost")
    assert (unheard["live_ms"], unheard["responses"], unheard["input_tokens"]) == (None, None, None)
    assert (rows["talk-2"]["seen"], rows["talk-2"]["live_ms"]) == (1, 3000)


async def test_unseen_talk_is_unknown(database: Database) -> None:
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock)
    talk = open_talk(ledger, transport="webrtc_relay", seen=False)
    talk.went_live("one", "ga")
    hands.move(60)
    talk.end("hung_up")
    await ledger.flush()
    (row,) = await read(database)
    assert (row["seen"], row["complete"], row["live_ms"], row["responses"]) == (0, 0, None, None)


async def test_secret_of_azures_counts_until_the_talk_is_seen(database: Database) -> None:
    """A plan that is asked for again is the same talk's; the talk that is seen is so at another replica."""
    hands = Hands(before_s=10)
    ledgers = [UsageLedger(database, clock=hands.clock) for _ in range(2)]
    for _ in range(2):
        for talk_id in ("talk-1", "talk-2"):
            ledgers[0].give(GivenSecret(make_owner(talk_id), "elena", "webrtc", "one", "ga"))
        await ledgers[0].flush()
        hands.move(20)
    rows = await read(database)
    assert [(row["talk_id"], row["day"]) for row in rows] == [(f"talk-{n}", DAY + d) for d in (0, 1) for n in (1, 2)]
    unknown = {name for row in rows for name in ("live_ms", "responses", "input_tokens", "ended") if row[name] is None}
    assert unknown == {"live_ms", "responses", "input_tokens", "ended"}
    assert {(row["seen"], row["complete"], row["transport"]) for row in rows} == {(0, 0, "webrtc")}
    talk = open_talk(ledgers[1], "talk-1")
    talk.went_live("one", "ga")
    talk.end("hung_up")
    await ledgers[1].flush()
    by_talk = {row["talk_id"]: row["seen"] for row in await read(database)}
    assert by_talk == {"talk-1": 1, "talk-2": 0}
    (both,) = await read(database, by="principal")
    assert (both["talks"], both["seen"]) == (2, 0)


async def test_killed_process_leaves_incomplete(database: Database) -> None:
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock)
    talk = open_talk(ledger)
    talk.went_live("one", "ga")
    hands.move(15)
    await ledger.flush()
    hands.move(14)  # and nothing more is written
    again = UsageLedger(database, clock=hands.clock)
    other = open_talk(again)  # the same talk goes on elsewhere
    other.went_live("one", "ga")
    hands.move(3)
    other.end("hung_up")
    await again.flush()
    (row,) = await read(database)
    assert (row["talks"], row["live_ms"], row["complete"]) == (1, 18_000, 0)


async def test_calls_answers_are_written_at_once(database: Database) -> None:
    """A call goes on where its process is killed: who takes it does not know what that one has heard."""
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock)
    ledger.start()
    try:
        call, other = call_on(ledger), open_talk(ledger, "talk-2")
        for each in (call, other):
            each.went_live("one", "ga")
        await ledger.flush()
        hands.move(5)
        tell(call, done("r1"))

        async def is_written() -> bool:
            rows = {row["talk_id"]: (row["live_ms"], row["responses"]) for row in await read(database)}
            return rows == {"talk-1": (5000, 1), "talk-2": (0, 0)}

        await eventually(is_written)
    finally:
        await ledger.aclose()


async def test_silent_store_loses_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock, most_closed=3)

    async def away(_work: object) -> None:
        raise StoreAwayError("away")

    with monkeypatch.context() as patched:
        patched.setattr(database, "write", away)
        for number in range(3):
            talk = open_talk(ledger, f"talk-{number}")
            talk.went_live("one", "ga")
            talk.end("hung_up")
            with pytest.raises(StoreAwayError):
                await ledger.flush()
    assert (ledger.waiting, ledger.counts.lost) == (3, 0)
    await ledger.flush()
    assert [row["complete"] for row in await read(database)] == [1, 1, 1]


def test_too_many_waiting_are_counted() -> None:
    ledger = UsageLedger(None, clock=Hands().clock, most_closed=2)
    for number in range(5):
        talk = open_talk(ledger, f"talk-{number}")
        talk.went_live("one", "ga")
        talk.end("hung_up")
    assert (ledger.waiting, ledger.counts.lost) == (2, 3)


async def test_too_many_secrets_are_counted(database: Database) -> None:
    ledger = UsageLedger(database, clock=Hands().clock, most_closed=2)
    for number in range(5):
        ledger.give(GivenSecret(make_owner(f"talk-{number}"), "elena", "webrtc", "one", "ga"))
    assert ledger.counts.lost == 3
    await ledger.flush()
    assert [row["talk_id"] for row in await read(database)] == ["talk-3", "talk-4"]


async def test_rows_are_written_by_themselves(database: Database) -> None:
    ledger = UsageLedger(database)
    ledger.start()
    try:
        talk = open_talk(ledger)
        talk.went_live("one", "ga")
        await eventually(lambda: read_is(database, 0))
        talk.end("hung_up")
        await eventually(lambda: read_is(database, 1))
    finally:
        await ledger.aclose()


async def read_is(database: Database, complete: int) -> bool:
    return [row["complete"] for row in await read(database)] == [complete]


@pytest.mark.parametrize(("by", "keys"), [("principal", ["ann"]), ("agent", ["elena"]), ("resource", ["one", "two"])])
async def test_sums_by_group(database: Database, by: Any, keys: list[str]) -> None:
    ledger = UsageLedger(database, clock=Hands().clock)
    for number in range(4):
        talk = open_talk(ledger, f"talk-{number}")
        talk.went_live("two" if number == 3 else "one", "ga")
        tell(talk, done("r1"), resource="two" if number == 3 else "one")
        talk.end("hung_up")
    await ledger.flush()
    column = {"agent": "agent_id"}.get(by, by)
    found = await read(database, by=by)
    assert [row[column] for row in found] == keys
    assert sum(row["talks"] for row in found) == 4
    assert sum(row["output_tokens"] for row in found) == 88
    assert await read(database, by=by, principal="bob") == []


def test_absent_kinds_are_zero_if_it_adds_up() -> None:
    counts = answer_counts(tokens())
    assert counts is not None
    assert counts["input_image_tokens"] == 0
    part = answer_counts({"input_tokens": 10, "output_tokens": 5, "input_token_details": {"text_tokens": 4}})
    assert part is not None
    assert (part["input_text_tokens"], part["input_audio_tokens"], part["output_text_tokens"]) == (4, None, None)
