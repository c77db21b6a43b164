"""Summaries: asked of a hook once a talk, kept, told to the next talk first, and erased with the session."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.memory.conftest import MakeSettings
from tests.memory.support.turns import SESSION, owner, turn
from token_broker.hooks.sender import HookAnswer
from token_broker.memory.service import Memory
from token_broker.memory.talk_summaries import MAX_SUMMARY_BYTES, Summaries, summary_of
from token_broker.security.tokens import Owner

ANN = owner(principal="ann", user_id="Ann", talk_id="talk-1")
URL = "https://sums.example.com/up"


class Hook:
    """Stands in for `HookSender`: notes what is posted, and answers as a test says."""

    def __init__(self, *answers: HookAnswer) -> None:
        self.answers = list(answers)
        self.posted: list[tuple[str, str, Mapping[str, Any]]] = []

    async def post(self, url: str, payload: Mapping[str, Any], *, webhook_id: str, **_: Any) -> HookAnswer:
        self.posted.append((url, webhook_id, payload))
        await asyncio.sleep(0)
        return self.answers.pop(0) if self.answers else summed("They want to rent a boat.")


def summed(text: object) -> HookAnswer:
    return HookAnswer(200, json.dumps({"summary": text}), sent=True)


def summaries(memory: Memory, hook: Hook, *, clock: Any = lambda: 1_000.0) -> Summaries:
    url_of = {"elena": URL}.get
    return Summaries(memory._database, hook, url_of, clock=clock, sinks=["http"])  # type: ignore[arg-type]


async def ended(work: Summaries, by: Owner = ANN, agent_id: str = "elena") -> None:
    work.ended(by, agent_id)
    await asyncio.gather(*work._noting)


async def test_summary_is_made_once_and_told_first(make_settings: MakeSettings) -> None:
    now_s = time.time()  # the running memory gives up what has waited for a sink for days
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(content="I want to rent a boat", by=ANN, sequence=1)])
        hook = Hook()
        replicas = [summaries(memory, hook, clock=lambda: now_s) for _ in range(2)]
        await ended(replicas[0])
        assert await replicas[0].make_due() == 0, "not before a minute has passed"
        now_s += 61
        made = await asyncio.gather(*(replica.make_due() for replica in replicas))
        assert sorted(made) == [0, 1]
        await ended(replicas[1])
        now_s += 3_600
        assert [await replica.make_due() for replica in replicas] == [0, 0], "once a talk"
        ((url, webhook_id, asked),) = hook.posted
        assert (url, webhook_id) == (URL, "summary_talk-1")
        assert {name: asked[name] for name in ("type", "session_id", "user_id", "agent_id")} == {
            "type": "summary.request",
            "session_id": SESSION,
            "user_id": "Ann",
            "agent_id": "elena",
        }
        assert [(each["role"], each["content"]) for each in asked["turns"]] == [("user", "I want to rent a boat")]
        queued = "SELECT kind, body FROM notices WHERE sink = 'http'"
        (notice,) = await memory._database.read(lambda c: c.exec_driver_sql(queued).all())
        assert tuple(notice) == ("session.summary", json.dumps({"summary": "They want to rent a boat."}))
        later = owner("session-of-ann-002", principal="ann", epoch=2)
        lines = (await memory.recall.block(later)).split("\n")[2:-1]
        assert lines[0] == "summary: They want to rent a boat."
        assert "boat" not in await memory.recall.block(owner("session-of-bob-001", principal="bob"))
        assert (await memory.erase_session(SESSION, principal="ann"))[0] == 1
        assert "boat" not in await memory.recall.block(later)


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_failed_hook_is_asked_again_a_few_times(make_settings: MakeSettings, status: int) -> None:
    now_s = 1_000.0
    async with Memory.open(make_settings()) as memory:
        await memory.append([turn(by=ANN)])
        hook = Hook(*[HookAnswer(status, sent=True), HookAnswer(failure="timeout", sent=True)] * 2)
        work = summaries(memory, hook, clock=lambda: now_s)
        await ended(work)
        for _ in range(6):
            now_s += 200
            await work.make_due()
        assert [webhook_id for _, webhook_id, _ in hook.posted] == ["summary_talk-1"] * 3


async def test_talk_that_goes_on_is_summed_up_after_its_end(make_settings: MakeSettings) -> None:
    now_s = 1_000.0
    async with Memory.open(make_settings()) as memory:
        await memory.append([turn(by=ANN)])
        hook = Hook()
        work = summaries(memory, hook, clock=lambda: now_s)
        await ended(work)
        now_s += 50
        await ended(work)  # it has gone on meanwhile
        now_s += 50
        assert await work.make_due() == 0
        now_s += 11
        assert await work.make_due() == 1
        assert len(hook.posted) == 1


async def test_newest_summary_of_a_session_is_the_one(make_settings: MakeSettings) -> None:
    now_s = 1_000.0
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:
        await memory.append([turn(by=ANN)])
        work = summaries(memory, Hook(summed("They want a boat.")), clock=lambda: now_s)
        await ended(work)
        now_s += 61
        await work.make_due()
        work = summaries(memory, Hook(summed("They want a car.")), clock=lambda: now_s)
        await ended(work, replace(ANN, talk_id="talk-2"))
        now_s += 61
        await work.make_due()
        kept = "SELECT summary FROM summaries WHERE summary IS NOT NULL"
        assert await memory._database.read(lambda c: list(c.exec_driver_sql(kept).scalars())) == ["They want a car."]
        assert "summary: They want a car." in await memory.recall.block(owner("session-2-of-ann", principal="ann"))


async def test_hook_that_hangs_as_the_process_ends_is_asked_by_the_next(make_settings: MakeSettings) -> None:
    now_s = 1_000.0
    began, for_ever = asyncio.Event(), asyncio.Event()

    class Hanging(Hook):
        async def post(self, url: str, payload: Mapping[str, Any], *, webhook_id: str, **more: Any) -> HookAnswer:
            found = await super().post(url, payload, webhook_id=webhook_id, **more)
            began.set()
            await for_ever.wait()
            return found

    async with Memory.open(make_settings()) as memory:
        await memory.append([turn(by=ANN)])
        hanging, hook = Hanging(), Hook()
        leaving, next_one = (summaries(memory, each, clock=lambda: now_s) for each in (hanging, hook))
        await ended(leaving)
        now_s += 61
        running = asyncio.create_task(leaving.run())
        await asyncio.wait_for(began.wait(), 60)
        await leaving.aclose()
        running.cancel()
        await asyncio.wait((running,))
        assert await next_one.make_due() == 0, "for as long as another replica may be asking"
        now_s += 121
        assert await next_one.make_due() == 1
        assert [posted[1] for posted in (*hanging.posted, *hook.posted)] == ["summary_talk-1"] * 2


async def test_session_erased_while_it_is_summed_up(make_settings: MakeSettings) -> None:
    now_s = 1_000.0
    async with Memory.open(make_settings(recall_budget_s=5)) as memory:

        class Erasing(Hook):
            async def post(self, url: str, payload: Mapping[str, Any], *, webhook_id: str, **more: Any) -> HookAnswer:
                await memory.erase_session(SESSION, principal="ann")
                return await super().post(url, payload, webhook_id=webhook_id, **more)

        await memory.append([turn(by=ANN)])
        hook = Erasing()
        work = summaries(memory, hook, clock=lambda: now_s)
        await ended(work)
        now_s += 61
        assert await work.make_due() == 1
        assert len(hook.posted) == 1
        kept = "SELECT count(*) FROM summaries UNION ALL SELECT count(*) FROM notices"
        assert await memory._database.read(lambda c: list(c.exec_driver_sql(kept).scalars())) == [0, 0]


@pytest.mark.parametrize("by", [ANN, owner("never-stored-0001")], ids=["other-agent", "no-session"])
async def test_nothing_to_sum_up(make_settings: MakeSettings, by: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.memory.talk_summaries._BETWEEN_S", 0)
    now_s = 1_000.0
    async with Memory.open(make_settings()) as memory:
        await memory.append([turn(by=ANN)])
        hook = Hook()
        work = summaries(memory, hook, clock=lambda: now_s)
        await ended(work, by, "elena" if by is not ANN else "without-a-hook")
        now_s += 100
        assert await work.make_due() == 0
        assert hook.posted == []


@pytest.mark.parametrize(
    ("answer", "summary"),
    [
        (summed(" They want a boat. "), "They want a boat."),
        (summed("船" * 5_000), "船" * (MAX_SUMMARY_BYTES // 3)),
        (summed(""), None),
        (summed(7), None),
        (HookAnswer(200, "[]", sent=True), None),
        (HookAnswer(200, "no JSON", sent=True), None),
        (HookAnswer(404, sent=True), None),
        (HookAnswer(failure="too_large", sent=True), None),
    ],
)
def test_summary_of_an_answer(answer: HookAnswer, summary: str | None) -> None:
    assert summary_of(answer) == summary
