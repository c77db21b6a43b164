"""Erasure as a whole: nowhere afterwards, nowhere later, whatever waits, with a receipt that says how far it is."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr
from sqlalchemy import Connection, text

from tests.memory.conftest import MakeSettings
from tests.memory.support.faults import Fault
from tests.memory.support.receiver import SECRET, Receiver, running_receiver
from tests.memory.support.stores import make_dead
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep import Zep
from tests.support.broker import environment
from tests.support.waiting import eventually
from token_broker.cli.main import main
from token_broker.memory.maintenance import open_maintenance
from token_broker.memory.service import Memory
from token_broker.memory.store.outbox import read_status
from token_broker.memory.store.summaries import claim_summaries, request_summary, save_summary
from token_broker.memory.tool_claims import CallId, ToolClaims
from token_broker.memory.types import Outcome
from token_broker.security.tokens import Owner
from token_broker.settings import Settings

WORD = "marmaladeword"
ANN = owner(principal="ann")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


@pytest.fixture
def both(zep_settings: MakeSettings, receiver: Receiver) -> MakeSettings:
    """Settings with two sinks."""

    def make(**fields: Any) -> Settings:
        http = {"memory_http_url": receiver.url, "memory_http_secret": SecretStr(SECRET)}
        return zep_settings(**(http | {"memory_sinks": ("zep", "http"), "delivery_timeout_s": 1.0} | fields))

    return make


def texts(connection: Connection) -> str:
    """Everything that is stored, as text."""
    tables = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
        "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
    }
    names = connection.scalars(text(tables[connection.dialect.name])).all()
    return "\n".join(str(tuple(row)) for name in names for row in connection.execute(text(f"SELECT * FROM {name}")))  # noqa: S608


@pytest.mark.slow
async def test_erased_user_is_nowhere(both: MakeSettings, zep: Zep, receiver: Receiver) -> None:
    """One sink is down, a turn is dead, a summary and an output of a tool are kept, a talk goes on elsewhere."""
    settings = both()
    ended: list[Owner] = []
    async with Memory.open(settings) as memory:
        memory.watch_lost_sessions(ended.append)
        await memory.append([turn(f"t{n}", f"{WORD} {n}", by=ANN, sequence=n) for n in (1, 2, 3)])
        await memory.append([turn("t1", "kept", by=owner("session-of-bob-001", principal="bob"))])
        await zep.has(4)
        await receiver.has(2)
        await make_dead(memory._database, "t2")
        receiver.faults.append(Fault("status", times=None, status=503))
        await _summed_up_and_looked_up(memory)
        async with open_maintenance(settings) as admin:
            assert await admin.erase_user("ann") == 3

            async def one_is_done() -> bool:
                return {one.sink: one.state for one in await admin.receipt(user="ann")}["zep"] == "done"

            await eventually(one_is_done)
            (open_one,) = [one for one in await admin.receipt(user="ann") if one.sink == "http"]
            assert open_one.state in {"accepted", "cannot"}
            assert WORD not in await memory._database.read(texts)
            assert list(zep.messages) == ["session-of-bob-001"]
            late = owner("a-session-of-before", principal="ann", epoch=1)
            assert await memory.append([turn("t9", WORD, by=late)]) == [Outcome.ERASED], "what waited elsewhere"
            assert await memory.append([turn("t4", WORD, by=ANN)]) == [Outcome.ERASED]
            after = owner("a-session-of-after", principal="ann", epoch=round(memory._clock() * 1000) + 1)
            assert await memory.append([turn("t1", "later", by=after)]) == [Outcome.STORED]
            await eventually(lambda: _is_true(ANN.session_id in {each.session_id for each in ended}))
            receiver.faults.clear()

            async def all_are_done() -> bool:
                return all(one.state == "done" for one in await admin.receipt(user="ann"))

            await eventually(all_are_done, within_s=60)
        assert receiver.of("user.erased")
        assert all(WORD not in event.body.decode() for event in receiver.of("session.summary"))
        assert WORD not in await memory._database.read(texts)


async def _summed_up_and_looked_up(memory: Memory) -> None:
    """The talk's summary, of which `http` is to be told, and the output of a tool in it: both have the word."""
    store, talk = memory._database, owner(principal="ann", talk_id="talk-1")
    claims, call = ToolClaims(store), CallId(SESSION, "talk-1", "sess_1", "call_1")
    holder = await claims.claim(call, timeout_s=8)
    assert isinstance(holder, str)
    await claims.finish(call, holder, WORD, ok=True)
    now_us = round(memory._clock() * 1_000_000)
    await store.write(partial(request_summary, owner=talk, agent_id="elena", due_at_us=now_us))
    (due,) = await store.write(partial(claim_summaries, now_us=now_us, lease_us=1, limit=9))
    assert await store.write(partial(save_summary, due=due, summary=WORD, now_us=now_us, sinks=["http"]))


async def _nothing_waits(memory: Memory) -> bool:
    return (await memory._database.read(read_status)).queued == 0


async def _is_true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_erased_word_leaves_the_files(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory:
        await memory.append([turn(f"t{n}", f"{WORD} {n} " + "x" * 3000) for n in range(20)])
        assert _in_files(tmp_path)
        await memory.erase_session(SESSION, principal="anonymous")

        async def is_gone() -> bool:
            return not await asyncio.to_thread(_in_files, tmp_path)

        await eventually(is_gone)


def _in_files(folder: Path) -> bool:
    return any(f"{WORD} 7".encode() in path.read_bytes() for path in folder.glob("memory.db*"))


async def run(*arguments: str, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr("token_broker.cli.memory.configure_logging", lambda _settings: None)
    variables = {
        "BROKER_DATABASE_URL": settings.database_url.get_secret_value(),
        "BROKER_SIGNING_KEY": "k" * 40,
        "BROKER_MEMORY_SINKS": ",".join(settings.sinks),
        "BROKER_DELIVERY_TIMEOUT_S": "1",
    }
    if settings.sinks:
        assert settings.zep_api_key
        variables |= {
            "ZEP_API_KEY": settings.zep_api_key.get_secret_value(),
            "ZEP_API_URL": settings.zep_api_url or "",
            "BROKER_MEMORY_HTTP_URL": settings.memory_http_url or "",
            "BROKER_MEMORY_HTTP_SECRET": SECRET,
        }
    env = environment(folder, None, **variables)
    return await asyncio.to_thread(CliRunner().invoke, main, arguments, env=env, catch_exceptions=False)


@pytest.mark.slow
async def test_forget_asks_sinks_without_broker(
    both: MakeSettings, zep: Zep, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = both()
    async with Memory.open(settings) as memory:
        await memory.append([turn("t1", WORD, by=ANN)])
        await zep.has(1)
        await receiver.has(1)
    forget = partial(run, settings=settings, folder=tmp_path, monkeypatch=monkeypatch)
    receiver.faults.append(Fault("status", times=None, status=400))
    first = await forget("forget", "--user", "ann", "--wait", "2", "--json")
    receiver.faults.clear()
    receipt = json.loads(first.stdout)
    parts = {one["part"]: one for one in receipt["receipt"]}
    assert (first.exit_code, receipt["done"], parts["http"]["state"]) == (1, False, "cannot")
    assert parts["http"]["detail"].startswith("http: 400")
    again = await forget("forget", "--user", "ann", "--wait", "30")
    assert (again.exit_code, "http: done" in again.stdout, "zep: done" in again.stdout) == (0, True, True)
    assert zep.users == {}
    assert [event.data["session_id"] for event in receiver.of("session.erased")] == [SESSION]
    assert {event.data["user_id"] for event in receiver.of("user.erased")} == {"ann"}


@pytest.mark.parametrize("waits", [True, False], ids=["a turn waits", "all is delivered"])
async def test_sink_that_was_taken_out_is_named(
    both: MakeSettings, zep: Zep, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    async with Memory.open(both()) as memory:
        await memory.append([turn("t1", WORD, by=ANN)])
        await zep.has(1)
        await receiver.has(1)
        if waits:
            receiver.faults.append(Fault("status", times=None, status=503))
            await memory.append([turn("t2", WORD, by=ANN)])
            await zep.has(2)
        else:
            await eventually(partial(_nothing_waits, memory))
    forget = partial(run, "forget", "--user", folder=tmp_path, monkeypatch=monkeypatch)
    async with asyncio.timeout(300):  # nobody waits for a sink that is not asked
        first = await forget("ann", "--wait", "3600", settings=both(memory_sinks=("zep",)))
    assert (first.exit_code, "zep: done" in first.stdout) == (1, True)
    assert "http: cannot (not among BROKER_MEMORY_SINKS any more)" in first.stdout
    stranger = await forget("bob", "--wait", "30", settings=both(memory_sinks=("zep",)))
    assert (stranger.exit_code, "http" in stranger.stdout) == (0, False), "of whom it has nothing"
    receiver.faults.clear()
    again = await forget("ann", "--wait", "30", settings=both())
    assert (again.exit_code, "http: done" in again.stdout, "is the id right" in again.stderr) == (0, True, False)
    assert [event.data["session_id"] for event in receiver.of("session.erased")] == [SESSION]
    assert {event.data["user_id"] for event in receiver.of("user.erased")} == {"ann"}


async def test_export_has_all_of_a_user(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    mine = [owner(f"session-of-ann-{n:03}", principal="ann", user_id="Änn") for n in range(3)]
    async with Memory.open(settings) as memory:
        for by in mine:
            await memory.append([turn(f"t{n:03}", f"grüße {n}", by=by, sequence=n) for n in range(250)])
        await memory.append([turn("t1", "bob's", by=owner("session-of-bob-001", principal="bob"))])
        await make_dead(memory._database, "t007")
    export = partial(run, settings=settings, folder=tmp_path, monkeypatch=monkeypatch)
    out = tmp_path / "ann.jsonl"
    done = await export("export", "--user", "ann", "--out", str(out))
    assert (done.exit_code, done.output) == (0, "")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    sessions = [line["session_id"] for line in lines if line["type"] == "session"]
    assert sorted(sessions) == [by.session_id for by in mine]
    for session_id in sessions:
        said = [line for line in lines if line["type"] == "turn" and line["session_id"] == session_id]
        assert [line["turn_id"] for line in said] == [f"t{n:03}" for n in range(250)]
        assert said[7]["delivery"] == "dead"
        assert said[7]["content"] == "grüße 7"
    assert len([line for line in lines if line["type"] == "dead_letters"]) == 3
    assert (await export("export", "--user", "ann", "--out", str(out))).exit_code == 2
    one = await export("export", "--session", mine[0].session_id)
    assert len(one.stdout.splitlines()) == 252
    nobody = await export("export", "--session", "nobodys-session-1")
    assert (nobody.stdout, "is it right?" in nobody.stderr) == ("", True)
    assert (await export("export")).exit_code == 2
