"""The sink `http` against a receiver that verifies what it gets: order, repetitions, refusals, pauses, erasures."""

import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from tests.memory.conftest import MakeSettings
from tests.memory.support.delivering import Clock, Delivering, a_talk
from tests.memory.support.faults import Fault
from tests.memory.support.receiver import SECRET, Receiver, running_receiver
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep import KEY, running_zep
from tests.support.node import installed_modules, run_node
from tests.support.serving import serve_app
from token_broker.hooks.secrets import parse_webhook_secrets
from token_broker.hooks.sender import HookAnswer, HookSender, hook_client
from token_broker.memory.delivery.http import HttpSink, event_id, http_failure
from token_broker.memory.delivery.open_sinks import policy_of
from token_broker.memory.delivery.zep import ZepMemory
from token_broker.memory.drivers.database import Database
from token_broker.memory.maintenance import Maintenance
from token_broker.memory.store.dead_letters import list_dead
from token_broker.memory.store.turn_writes import mark_interrupted, queue_notice
from token_broker.memory.types import Failure, Interruption, OutboxStatus, arrival_at

NOTHING = OutboxStatus(0, None, 0, 0)
ANN = owner(principal="ann")
OTHER = f"{SECRET[:-4]}AAA="


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what the store has no part in: tests/memory/test_delivery.py and the others here deliver from PostgreSQL, too."""


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


@pytest.fixture
async def delivering(database: Database, receiver: Receiver, make_settings: MakeSettings) -> AsyncIterator[Delivering]:
    random.seed(7)
    sink = await HttpSink.open(receiver.url, SecretStr(SECRET), timeout_s=5)
    backlog_per_s = policy_of("http", make_settings()).backlog_per_s
    assert backlog_per_s is not None
    yield Delivering(database, sink, Clock(), max_attempts=4, backlog_per_s=backlog_per_s)
    await sink.aclose()


@on_sqlite
async def test_turns_come_in_order_with_their_ids(delivering: Delivering, receiver: Receiver) -> None:
    talk = a_talk(60, by=ANN)
    await delivering.queue(*talk[40:], *talk[:40])
    await delivering.rounds()
    assert receiver.turn_ids(SESSION) == [said.turn_id for said in talk]
    assert [len(event.turn_ids) for event in receiver.events] == [50, 10]
    event = receiver.events[0]
    assert event.json["type"] == "turns.stored"
    assert {key: event.data[key] for key in ("session_id", "user_id", "agent_id")} == {
        "session_id": SESSION,
        "user_id": "ann",
        "agent_id": "elena",
    }
    assert event.data["turns"][0] == {
        "turn_id": "t001",
        "sequence": 1,
        "agent_id": "elena",
        "role": "user",
        "content": "hello",
        "created_at": "2026-11-23T12:00:00Z",
        "interrupted": False,
        "source": "browser",
        "channel": None,
    }
    assert await delivering.read_status() == NOTHING


@on_sqlite
async def test_event_has_64_kib_at_most(delivering: Delivering, receiver: Receiver) -> None:
    await delivering.queue(*(turn(f"t{n}", "ü" * 10_000, by=ANN, sequence=n) for n in range(1, 9)))
    await delivering.rounds()
    assert receiver.turn_ids(SESSION) == [f"t{n}" for n in range(1, 9)]
    assert max(len(event.body) for event in receiver.events) <= 65_536


async def test_repetition_has_id_and_turns_of_first(
    database: Database, receiver: Receiver, delivering: Delivering
) -> None:
    """New turns that come meanwhile go behind; timestamp and signature are of each attempt."""
    async with signing_by(delivering.clock, receiver) as sink:
        again = Delivering(database, sink, delivering.clock)
        receiver.faults.append(Fault("reset", stored=True, times=2))
        talk = a_talk(5, by=ANN)
        await again.queue(*talk[:3])
        await again.rounds()
        await again.queue(*talk[3:])
        await again.rounds(seconds=3600, step_s=60)
    first, second, third, last = receiver.seen
    assert first.id == second.id == third.id != last.id
    assert first.body == second.body == third.body
    assert first.timestamp < second.timestamp < third.timestamp
    for event in receiver.seen:
        at = datetime.fromtimestamp(event.timestamp, UTC)
        assert event.headers["webhook-signature"] == Webhook(SECRET).sign(event.id, at, event.body.decode())
    assert len({event.headers["webhook-signature"] for event in receiver.seen}) == 4
    assert last.turn_ids == ["t004", "t005"]


@asynccontextmanager
async def signing_by(clock: Clock, receiver: Receiver) -> AsyncIterator[HttpSink]:
    """A sink whose signatures are of the test's own time, which the receiver can't judge."""
    receiver.verifies = False
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(hook_client())
        secrets = parse_webhook_secrets(SecretStr(SECRET))
        sender = HookSender(client, secrets, now=lambda: datetime.fromtimestamp(clock(), UTC))
        yield HttpSink(sender, receiver.url, timeout_s=5, stack=stack)


@on_sqlite
async def test_sessions_with_same_item_ids(delivering: Delivering, receiver: Receiver) -> None:
    one, two = owner("session-number-001"), owner("session-number-002")
    odd = ["msg_001", "item.with.stops", "größe-ü", 'a"b\\c', "a,b"]
    for by in (one, two):
        await delivering.queue(*(turn(name, by=by, sequence=n) for n, name in enumerate(odd, start=1)))
    await delivering.rounds()
    assert receiver.unverified == 0
    assert receiver.turn_ids(one.session_id) == receiver.turn_ids(two.session_id) == odd
    assert len({event.id for event in receiver.events}) == len(receiver.events)
    assert all(event.id.replace("_", "").isalnum() for event in receiver.events)


@on_sqlite
async def test_refused_turn_dies_and_is_named(delivering: Delivering, receiver: Receiver) -> None:
    other = owner("another-session-01")
    receiver.faults.append(Fault("status", times=None, status=400, turn='turn_id":"t003'))
    await delivering.queue(*a_talk(5, by=ANN), *a_talk(2, by=other))
    await delivering.rounds()
    assert receiver.turn_ids(other.session_id) == ["t001", "t002"], "others do not wait for it"
    await delivering.rounds(seconds=600, step_s=10)
    assert receiver.turn_ids(SESSION) == ["t001", "t002", "t004", "t005"]
    (letter,) = await delivering.database.read(partial(list_dead, limit=9))
    assert (letter.turn.turn_id, letter.sink, letter.reason) == ("t003", "http", "http: 400")
    last = [event for event in receiver.of("turns.stored") if "t005" in event.turn_ids][-1]
    assert last.data["missing"] == ["t003"]
    assert len([event for event in receiver.seen if event.turn_ids == ["t003"]]) >= 2


@on_sqlite
async def test_gone_receiver_rests(delivering: Delivering, receiver: Receiver) -> None:
    receiver.faults.append(Fault("status", status=410))
    await delivering.queue(*a_talk(2, by=ANN), *a_talk(2, by=owner("another-session-01")))
    await delivering.rounds(seconds=599)
    assert len(receiver.seen) == 1
    assert delivering.worker.pause_s > 0
    await delivering.rounds(seconds=60)
    assert receiver.turn_ids(SESSION) == ["t001", "t002"]
    assert await delivering.read_status() == NOTHING


async def test_retry_after_holds_for_all_replicas(
    delivering: Delivering, receiver: Receiver, database: Database
) -> None:
    receiver.faults.append(Fault("status", status=429, headers={"Retry-After": "120"}))
    await delivering.queue(*a_talk(2, by=ANN))
    await delivering.rounds()
    replica = Delivering(database, delivering.sink, delivering.clock)
    await delivering.queue(*a_talk(2, by=owner("another-session-01")))
    for _ in range(11):
        await delivering.rounds()
        await replica.rounds()
        delivering.clock.now_s += 10
    assert len(receiver.seen) == 1
    delivering.clock.now_s += 15
    await replica.rounds(seconds=5)
    assert len(receiver.turn_ids(SESSION)) == 2


@on_sqlite
async def test_redirect_is_not_followed(delivering: Delivering, receiver: Receiver) -> None:
    receiver.faults.append(Fault("status", status=302, headers={"Location": receiver.url}))
    await delivering.queue(*a_talk(1, by=ANN))
    await delivering.rounds()
    assert (len(receiver.seen), receiver.events) == (1, [])
    assert delivering.worker.last_failure == "http: 302, a redirect, which is not followed"
    await delivering.rounds(seconds=5)
    assert receiver.turn_ids(SESSION) == ["t001"]


@on_sqlite
async def test_backlog_of_an_hour_does_not_rush(delivering: Delivering, receiver: Receiver) -> None:
    talks = [a_talk(2, by=owner(f"session-number-{number:03}")) for number in range(30)]
    with receiver.fails(Fault("status", times=None, status=503)):
        await delivering.queue(*(said for talk in talks for said in talk))
        await delivering.rounds(seconds=3600, step_s=60)
    asked = len(receiver.seen)
    assert asked < 300
    receiver.times_s.clear()
    await delivering.rounds(seconds=1800, step_s=30)
    assert all(receiver.turn_ids(talk[0].owner.session_id) == ["t001", "t002"] for talk in talks)
    times = receiver.times_s
    within = [sum(start <= at < start + 1 for at in times) for start in times]
    assert max(within) <= 21, "20 a second, and one at the edge"


async def test_interruption_follows_its_turn(delivering: Delivering, receiver: Receiver) -> None:
    await delivering.queue(*a_talk(2, by=ANN))
    mark = partial(
        mark_interrupted, interruptions=[Interruption(ANN, "t002")], told=["http"], now_s=delivering.clock() + 1
    )
    await delivering.database.write(mark)
    await delivering.database.write(mark)  # the second changes nothing
    await delivering.rounds(seconds=1)
    assert [event.kind for event in receiver.events] == ["turns.stored", "turn.interrupted"]
    data = receiver.events[1].data
    assert (data["turn_id"], data["content"], data["session_id"]) == ("t002", "hello", SESSION)
    assert await delivering.read_status() == NOTHING


async def test_refused_notice_does_not_stop_turns(delivering: Delivering, receiver: Receiver) -> None:
    await delivering.queue(*a_talk(1, by=ANN))
    await delivering.rounds()
    notice = partial(
        queue_notice, sinks=["http"], session_id=SESSION, kind="session.summary", body=json.dumps({"summary": "tea"})
    )
    await delivering.database.write(partial(notice, arrival=arrival_at(delivering.clock())))
    await delivering.queue(turn("t002", by=ANN, sequence=2))
    receiver.faults.append(Fault("status", times=4, status=400, turn="session.summary"))
    await delivering.rounds(seconds=120, step_s=5)
    assert receiver.turn_ids(SESSION) == ["t001", "t002"]
    assert delivering.worker.counts.dropped_notices == 1
    await delivering.database.write(partial(notice, arrival=arrival_at(delivering.clock())))
    await delivering.rounds()
    (event,) = receiver.of("session.summary")
    assert event.data["summary"] == "tea"


async def test_erasure_is_told(delivering: Delivering, receiver: Receiver) -> None:
    clock = delivering.clock
    await delivering.queue(*a_talk(1, by=ANN), *a_talk(1, by=owner("session-of-ann-002", principal="ann")))
    await delivering.rounds()
    maintenance = Maintenance(delivering.database, sinks=["http"], lease_s=30, session_token_s=7200, clock=clock)
    receiver.faults.append(Fault("status", status=500, times=2))
    await maintenance.erase_user("ann")
    await delivering.rounds(seconds=60, step_s=5)
    erased = receiver.of("session.erased")
    assert sorted(event.data["session_id"] for event in erased) == [SESSION, "session-of-ann-002"]
    assert all((event.data["user_id"], event.data["agent_id"]) == ("ann", "elena") for event in erased)
    (last,) = receiver.of("user.erased")
    assert (last.data["user_id"], last.data["before"][:4]) == ("ann", "2001")
    assert (await delivering.read_status()).erasures == 0


@on_sqlite
async def test_silent_sink_holds_up_no_other(delivering: Delivering, receiver: Receiver, database: Database) -> None:
    """Each turn is queued for both; one sink hangs and fails all the time."""
    async with running_zep() as zep:
        other = Delivering(
            database, ZepMemory(SecretStr(KEY), zep.base_url, timeout_s=5), delivering.clock, sinks=["zep", "http"]
        )
        receiver.faults.append(Fault("status", times=None, status=503))
        await other.queue(*a_talk(60, by=ANN))
        await delivering.rounds()
        await other.rounds()
        assert zep.turn_ids(SESSION) == [f"t{number:03}" for number in range(1, 61)]
        by_sink = (await other.read_status()).by_sink
        assert {name: one.queued for name, one in by_sink.items()} == {"http": 60}
        receiver.faults.clear()
        await delivering.rounds(seconds=60, step_s=5)
        assert receiver.turn_ids(SESSION) == zep.turn_ids(SESSION)
        assert await other.read_status() == NOTHING
        await other.sink.aclose()


@on_sqlite
@pytest.mark.slow
async def test_npm_package_verifies_events(delivering: Delivering, receiver: Receiver) -> None:
    """The package of the specification's authors for Node, over the bytes that were sent."""
    folder = Path(__file__).parents[1] / "hooks"
    installed_modules(folder)
    await delivering.queue(turn("größe.1", 'so "ü" \u2028 said', by=ANN, sequence=1))
    await delivering.rounds()
    (event,) = receiver.events
    asked = json.dumps({"secret": SECRET, "headers": event.headers, "body": event.body.decode()})
    assert json.loads(await run_node("verify.mjs", cwd=folder, stdin=asked)) == event.json


@on_sqlite
async def test_receiver_of_the_page_takes_each_event_once(
    delivering: Delivering, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/memory.md").read_text()
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    monkeypatch.setenv("MEMORY_SECRET", SECRET)
    program: dict[str, Any] = {}
    exec(compile(found[1], "docs/memory.md", "exec"), program)  # noqa: S102  # the page's own program
    kept: list[Any] = []
    program["store"] = lambda kind, data: kept.append((kind, [each["turn_id"] for each in data["turns"]]))
    async with serve_app(program["app"]) as base_url:
        sink = await HttpSink.open(f"{base_url}/events", SecretStr(SECRET), timeout_s=5)
        other = Delivering(delivering.database, sink, delivering.clock, max_attempts=4)
        await other.queue(*a_talk(2, by=ANN))
        program["webhook"], right = Webhook(OTHER), program["webhook"]
        await other.rounds(seconds=300, step_s=30)
        assert other.worker.last_failure == "http: 401"
        program["webhook"] = right
        await other.rounds(seconds=600, step_s=30)
        assert kept == [("turns.stored", ["t001", "t002"])]
        assert await other.read_status() == NOTHING, "a wrong secret has cost no turn"
        await sink.aclose()


def test_event_ids_never_coincide() -> None:
    keys = [("a", "b"), ("ab",), ("a", "b", ""), ("a.b",), ("a", "", "b"), ('a", "b',)]
    ids = {event_id("turns.stored", *key) for key in keys} | {event_id("turn.interrupted", "a", "b")}
    assert len(ids) == len(keys) + 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (HookAnswer(204, sent=True), None),
        (HookAnswer(200, failure="too_large", sent=True), None),
        (HookAnswer(202, failure="broken", sent=True), None),
        (HookAnswer(400, sent=True), Failure("http: 400", counts=True, refused=True)),
        (HookAnswer(413, sent=True), Failure("http: 413", counts=True, refused=True)),
        (HookAnswer(401, sent=True), Failure("http: 401")),
        (HookAnswer(404, sent=True), Failure("http: 404")),
        (HookAnswer(410, sent=True), Failure("http: 410, gone", retry_after_s=600)),
        (HookAnswer(429, sent=True, retry_after_s=7), Failure("http: 429", retry_after_s=7)),
        (HookAnswer(500, sent=True), Failure("http: 500", counts=True, uncertain=True)),
        (HookAnswer(501, sent=True), Failure("http: 501", counts=True)),
        (HookAnswer(503, sent=True), Failure("http: 503")),
        (HookAnswer(504, sent=True), Failure("http: 504", uncertain=True)),
        (
            HookAnswer(307, failure="redirect", sent=True),
            Failure("http: 307, a redirect, which is not followed"),
        ),
        (HookAnswer(failure="timeout", sent=True), Failure("http: timeout", uncertain=True)),
        (HookAnswer(failure="timeout"), Failure("http: timeout")),
        (HookAnswer(failure="unreachable"), Failure("http: unreachable")),
        (HookAnswer(failure="broken", sent=True), Failure("http: broken", uncertain=True)),
        (HookAnswer(failure="refused"), Failure("http: refused")),
    ],
)
def test_answers_are_mapped(answer: HookAnswer, expected: Failure | None) -> None:
    assert http_failure(answer) == expected
