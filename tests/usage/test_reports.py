"""What was used, as the command, the route and an erasure show it."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr
from sqlalchemy import select
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.memory.support.stores import opened
from tests.support.broker import RunningBroker
from tests.support.resources import run_resources
from tests.support.waiting import eventually
from tests.usage.support import DAY, Hands, done, make_owner
from token_broker.cli.main import main
from token_broker.memory.drivers.connect import connect as connect_store
from token_broker.memory.drivers.database import Database
from token_broker.memory.maintenance import Maintenance
from token_broker.memory.store.sessions import claim_session
from token_broker.memory.store.tables import usage
from token_broker.usage.days import StoreClock
from token_broker.usage.ledger import UsageLedger
from token_broker.usage.reports import since_day


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with run_resources(tmp_path, "one") as several:
        yield several.broker


async def fill(database: Database, *talks: tuple[str, str, str], clock: StoreClock | None = None) -> None:
    """Writes a talk of three seconds for each talk id, principal and session."""
    hands = Hands()
    ledger = UsageLedger(database, clock=clock or hands.clock)
    for talk_id, principal, session_id in talks:
        owner = make_owner(talk_id, principal, session_id)
        talk = ledger.open(owner, agent_id="elena", transport="websocket_proxy", dialect="", seen=True)
        talk.went_live("one", "ga")
        hands.move(3)
        talk.azure_sent(done("r1"), resource="one", dialect="ga")
        talk.end("hung_up")
    await ledger.flush()


async def rows(database: Database) -> list[tuple[str, str, str]]:
    wanted = select(usage.c.talk_id, usage.c.principal, usage.c.session_id).order_by(usage.c.talk_id, usage.c.day)
    return await database.read(lambda connection: [tuple(row) for row in connection.execute(wanted)])


async def test_proxied_talk_is_shown_to_its_caller(broker: RunningBroker) -> None:
    plan = await broker.plan()
    other = await broker.plan()
    proxy = plan["connections"][-1]
    protocols = [Subprotocol(name) for name in proxy["protocols"]]
    async with connect(proxy["url"], subprotocols=protocols, proxy=None, compression=None) as socket:
        event = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
        await socket.send(json.dumps({"type": "conversation.item.create", "item": event}))
        await socket.send(json.dumps({"type": "response.create"}))
        async with asyncio.timeout(20):
            while (answer := json.loads(await socket.recv()))["type"] != "response.done":
                pass
    billed = answer["response"]["usage"]

    async def asked(token: str, **query: str) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {token}"}
        found = await broker.client.get("/api/v1/usage", params=query, headers=headers)
        assert found.status_code == 200, found.text
        shown: list[dict[str, Any]] = found.json()["usage"]
        return shown

    async def is_complete() -> list[dict[str, Any]]:
        return [entry for entry in await asked(plan["session_token"]) if entry["complete"]]

    (entry,) = await eventually(is_complete)
    assert (entry["input_tokens"], entry["output_tokens"]) == (billed["input_tokens"], billed["output_tokens"])
    assert entry["input_text_tokens"] == billed["input_token_details"]["text_tokens"]
    assert (entry["resource"], entry["transport"], entry["end"]) == ("one", "websocket_proxy", "hung_up")
    assert entry["seconds"] is not None
    assert (entry["responses"], entry["unmeasured"], entry["seen"]) == (1, 0, True)
    assert [each["talks"] for each in await asked(plan["session_token"], by="day", since="1d")] == [1]
    foreign = await eventually(lambda: asked(other["session_token"]))
    assert [(each["session_id"], each["seconds"]) for each in foreign] == [(other["session_id"], None)], "not used"
    assert await asked(plan["session_token"], since="2100-01-01") == []


@pytest.mark.parametrize("query", [{"by": "principal"}, {"by": "x"}, {"since": "yesterday"}, {"since": ""}])
async def test_bad_questions_are_refused(broker: RunningBroker, query: dict[str, str]) -> None:
    plan = await broker.plan()
    headers = {"Authorization": f"Bearer {plan['session_token']}"}
    assert (await broker.client.get("/api/v1/usage", params=query, headers=headers)).status_code == 422
    assert (await broker.client.get("/api/v1/usage")).status_code == 401


@pytest.mark.parametrize(
    ("text", "day"), [("1970-01-02", 1), ("2024-10-04", DAY), ("0d", DAY), ("7d", DAY - 7), ("9999d", DAY - 9999)]
)
def test_days_are_read(text: str, day: int) -> None:
    assert since_day(text, now=datetime(2024, 10, 4, 23, tzinfo=UTC)) == day


@pytest.mark.parametrize("text", ["", "d", "-1d", "yesterday", "2024-13-01", "99999d"])
def test_no_days_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no date"):
        since_day(text)


class TestCommand:
    @pytest.fixture
    async def env(self, tmp_path: Path) -> dict[str, str]:
        url = f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}"
        async with opened(connect_store(SecretStr(url), timeout_s=10, patience_s=5)) as database:
            await fill(database, ("t1", "ann", "session-of-ann-0001"), ("t2", "=1+1", "session-of-bob-0001"))
        return {"BROKER_DATABASE_URL": url}

    async def run(self, env: dict[str, str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
        monkeypatch.setattr("token_broker.cli.memory.configure_logging", lambda _settings: None)
        invoke = partial(CliRunner().invoke, main, ["usage", *arguments], env=env, catch_exceptions=False)
        return await asyncio.to_thread(invoke)

    async def test_sums_are_printed(self, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        shown = await self.run(env, monkeypatch, "--by", "principal")
        assert shown.exit_code == 0
        assert "ann" in shown.output
        report = json.loads((await self.run(env, monkeypatch, "--by", "agent", "--json")).output)
        assert [(each["agent_id"], each["talks"], each["seconds"]) for each in report["usage"]] == [("elena", 2, 6.0)]
        assert json.loads((await self.run(env, monkeypatch, "--since", "2100-01-01", "--json")).output)["usage"] == []

    async def test_csv_has_all_and_no_formulas(self, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        found = list(csv.DictReader(io.StringIO((await self.run(env, monkeypatch, "--csv")).output)))
        assert [each["principal"] for each in found] == ["ann", "'=1+1"]
        assert {(each["day"], each["seconds"], each["input_tokens"]) for each in found} == {("2024-10-04", "3.0", "13")}
        assert found[0]["transcription_seconds"] == "", "unknown"

    @pytest.mark.parametrize("arguments", [["--json", "--csv"], ["--since", "soon"], ["--by", "colour"]])
    async def test_wrong_usage_is_2(
        self, env: dict[str, str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
    ) -> None:
        assert (await self.run(env, monkeypatch, *arguments)).exit_code == 2


async def test_erased_users_usage_is_anonymous(database: Database) -> None:
    old, new = Hands().clock, StoreClock()  # a day that has ended, and today
    first, second, bobs = "session-of-ann-0001", "session-of-ann-0002", "session-of-bob-0001"
    await fill(database, ("t1", "ann", first), ("t3", "bob", bobs), clock=old)
    await fill(database, ("t2", "ann", second), clock=new)
    for session_id, principal in ((first, "ann"), (second, "ann"), (bobs, "bob")):
        owner = make_owner("", principal, session_id)
        await database.write(partial(claim_session, owner=owner, agent_id="elena", now_s=1.0))
    maintenance = Maintenance(database, sinks=(), lease_s=1, session_token_s=60)
    await maintenance.erase_user("ann")
    await fill(database, ("t4", "ann", first), clock=new)  # the last of a talk that the erasure has ended
    await maintenance.sweep(0)
    found = {talk: (principal, session) for talk, principal, session in await rows(database)}
    assert found["t1"] == ("", "")
    assert found["t3"] == ("bob", bobs)
    for today in ("t2", "t4"):
        principal, session = found[today]
        assert principal.startswith("erased:")
        assert session == ""
    assert "ann" not in str(found)


async def test_writing_again_does_not_undo_it(database: Database) -> None:
    hands = Hands()
    ledger = UsageLedger(database, clock=hands.clock)
    owner = make_owner("t1", "ann")
    talk = ledger.open(owner, agent_id="elena", transport="websocket_proxy", dialect="", seen=True)
    talk.went_live("one", "ga")
    await ledger.flush()
    await Maintenance(database, sinks=(), lease_s=1, session_token_s=60).mark_erased(owner.session_id)
    hands.move(2)
    talk.end("erased")
    await ledger.flush()
    ((_, principal, session),) = await rows(database)
    assert principal.startswith("erased:")
    assert session == ""


async def test_export_has_a_sessions_usage(database: Database) -> None:
    await fill(database, ("t1", "ann", "session-of-ann-0001"), ("t2", "bob", "session-of-bob-0001"))
    owner = make_owner("t1", "ann", "session-of-ann-0001")
    await database.write(partial(claim_session, owner=owner, agent_id="elena", now_s=1.0))
    maintenance = Maintenance(database, sinks=(), lease_s=1, session_token_s=60)
    lines = [line async for line in maintenance.export(user="ann")]
    assert [(line["type"], line.get("talk_id")) for line in lines][1:] == [("usage", "t1")]
