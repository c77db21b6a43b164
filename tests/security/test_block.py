"""Blocking a principal or a session: its tokens open nothing, and other callers are not affected."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from click.testing import CliRunner

from tests.conftest import StartBroker
from tests.simulator.phone import Phone
from tests.support.broker import RunningBroker, environment, run_command
from tests.support.easyauth import signed_in
from tests.support.offers import OFFER
from tests.support.waiting import eventually
from token_broker.cli.main import main
from token_broker.memory.maintenance import open_maintenance
from token_broker.simulator import RunningSimulator

BLOCKED = (403, "blocked")
LET_IN = (502, "azure_refused")  # an offer that was handed to the simulated Azure, which wants a whole one
PROMISED_S, SLACK_S = 2, 8  # a slow machine reads late


def verdict(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code") if "json" in answer.headers["content-type"] else None


async def offer(
    broker: RunningBroker, plan: dict[str, Any], sdp: str = OFFER, path: str = "/realtime/calls"
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {plan['session_token']}", "Content-Type": "application/sdp"}
    return await broker.client.post(path, content=sdp, headers=headers)


async def resume(broker: RunningBroker, plan: dict[str, Any], **headers: str) -> httpx.Response:
    proof = {"X_Session_Token": plan["session_token"]}
    return (await broker.token({"session_id": plan["session_id"]}, **proof, **headers)).response


async def say(broker: RunningBroker, plan: dict[str, Any]) -> int:
    said = {"session_id": plan["session_id"], "agent_id": "elena", "role": "user", "content": "hello"}
    headers = {"Authorization": f"Bearer {plan['session_token']}"}
    return (await broker.client.post("/conversation/turn", json=said, headers=headers)).status_code


def answers(
    ask: Callable[[], Awaitable[httpx.Response]], wanted: tuple[int, str | None]
) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return verdict(await ask()) == wanted

    return holds


async def test_blocked_principal_gets_nothing(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, auth="easyauth")
    ann, bob = signed_in("ann"), signed_in("bob")
    plan = (await broker.token(**ann)).plan
    bobs = (await broker.token(**bob)).plan
    assert verdict(await offer(broker, plan)) == LET_IN
    async with open_maintenance(broker.settings) as admin:
        await admin.block("principal", "easyauth:aad:ann")
        await broker.memory.blocklist.refresh()
        mints = len(azure.requests)
        assert verdict((await broker.token(**ann)).response) == BLOCKED
        assert verdict(await resume(broker, plan, **ann)) == BLOCKED
        assert verdict(await offer(broker, plan)) == BLOCKED
        assert len(azure.requests) == mints, "Azure is asked for nothing"
        assert await say(broker, plan) == 403
        assert (await resume(broker, bobs, **bob)).status_code == 200
        assert verdict(await offer(broker, bobs)) == LET_IN
        await admin.unblock("principal", "easyauth:aad:ann")
        await broker.memory.blocklist.refresh()
        assert (await resume(broker, plan, **ann)).status_code == 200
        assert verdict(await offer(broker, plan)) == LET_IN


async def test_blocked_session_may_be_replaced(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    plan, other = await broker.plan(), await broker.plan()
    async with open_maintenance(broker.settings) as admin:
        await admin.block("session", plan["session_id"])
    await broker.memory.blocklist.refresh()
    assert verdict(await resume(broker, plan)) == BLOCKED
    assert verdict(await offer(broker, plan)) == BLOCKED
    assert (await resume(broker, other)).status_code == 200
    assert (await broker.plan())["session_id"] != plan["session_id"]


async def test_blocked_caller_is_rate_limited(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, auth="easyauth", rate_limit_per_minute=2)
    async with open_maintenance(broker.settings) as admin:
        await admin.block("principal", "easyauth:aad:ann")
    await broker.memory.blocklist.refresh()
    seen = [verdict((await broker.token(**signed_in("ann"))).response) for _ in range(3)]
    assert seen == [BLOCKED, BLOCKED, (429, "rate_limited")]


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("faults", [[], [{"match": "/hangup", "fault": "status", "code": 503, "times": 1}]])
async def test_blocking_hangs_up_own_calls_only(
    azure: RunningSimulator, start_broker: StartBroker, faults: list[dict[str, Any]]
) -> None:
    broker = await start_broker(azure)
    relayed, through_a_compat, others = [await broker.plan() for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for plan, path in (
            (relayed, "/realtime/calls"),
            (through_a_compat, "/v1/realtime/calls"),
            (others, "/realtime/calls"),
        ):
            phone = Phone(b"")
            stack.push_async_callback(phone.hang_up)
            assert (await offer(broker, plan, await phone.offer(), path)).status_code == 201
        assert (azure.calls, broker.talks.active) == (3, 3)
        azure.set_faults(*faults)
        async with open_maintenance(broker.settings) as admin:
            for plan in (relayed, through_a_compat):
                await admin.block("session", plan["session_id"])

        async def one_is_left() -> bool:
            return azure.calls == broker.talks.active == 1

        await eventually(one_is_left, within_s=2 * PROMISED_S + SLACK_S)
        async with open_maintenance(broker.settings) as admin:
            await admin.block("session", others["session_id"])

        async def none_is_left() -> bool:
            return azure.calls == broker.talks.active == 0

        await eventually(none_is_left, within_s=PROMISED_S + SLACK_S)


# --- the command


async def test_command_blocks_beside_running_broker(
    azure: RunningSimulator, start_broker: StartBroker, tmp_path: Path
) -> None:
    broker = await start_broker(azure)
    env = environment(tmp_path, None, BROKER_DATABASE_URL=broker.settings.database_url.get_secret_value())
    plan = await broker.plan()

    async def ask() -> httpx.Response:
        return await resume(broker, plan)

    async def stored() -> bool:  # the session's row is written beside the plan
        async with open_maintenance(broker.settings) as maintenance:
            return await maintenance.knows("session", plan["session_id"])

    await eventually(stored)
    session = ("--session", plan["session_id"])
    with structlog.testing.capture_logs() as logged:
        cut = await run_command("block", *session, env=env, cwd=tmp_path)
        said = f"session {plan['session_id']}"
        assert (cut.code, cut.out, cut.err) == (0, f"{said} is blocked, everywhere within two seconds\n", "")
        await eventually(answers(ask, BLOCKED), within_s=PROMISED_S + SLACK_S)
        again, listed = await asyncio.gather(
            run_command("block", *session, env=env, cwd=tmp_path),
            run_command("block", "--list", env=env, cwd=tmp_path),
        )
        assert (again.code, again.out) == (0, f"{said} was blocked already\n")
        assert listed.out.endswith(f"Z {said}\n")
        unblocked = await run_command("unblock", *session, env=env, cwd=tmp_path)
        assert (unblocked.code, unblocked.out) == (0, f"{said} is unblocked\n")
        await eventually(answers(ask, (200, None)), within_s=PROMISED_S + SLACK_S)
    told = [entry for entry in logged if entry["event"] == "blocklist_changed"]
    assert [entry["blocked"] for entry in told] == [[said], []]
    assert [entry["unblocked"] for entry in told] == [[], [said]]


async def test_command_warns_of_unknown_principal(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = await start_broker(None)
    env = environment(tmp_path, None, BROKER_DATABASE_URL=broker.settings.database_url.get_secret_value())
    cut, unblocked = await asyncio.gather(
        run_command("block", "--principal", "easyauth:aad:typo", env=env, cwd=tmp_path),
        run_command("unblock", "--principal", "ann", env=env, cwd=tmp_path),
    )
    assert (cut.code, cut.err) == (0, "No session of this principal is stored: is the id right?\n")
    assert unblocked.out == "principal ann was not blocked\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("block",), "Name one"),
        (("unblock",), "Name one"),
        (("block", "--list", "--principal", "ann"), "Name one"),
        (("block", "--principal", "ann", "--session", "0123456789abcdef"), "Name one"),
        (("unblock", "--principal", "ann", "--session", "0123456789abcdef"), "Name one"),
        (("block", "--principal", "anonymous"), "name the session"),
        (("block", "--principal", ""), "no principal"),
        (("block", "--session", "short"), "no session"),
        (("unblock", "--session", "short"), "no session"),
    ],
)
def test_command_refuses_bad_arguments(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    finished = CliRunner().invoke(main, arguments, env=environment(tmp_path, None))  # in this process: much cheaper
    assert (finished.exit_code, finished.stdout) == (2, "")
    assert said in finished.stderr
    assert not list(tmp_path.iterdir()), "the store is not touched"
