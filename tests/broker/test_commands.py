"""The command line as processes: what is printed, where, and the exit codes 0, 1 and 2."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from tests.support.broker import environment, plain_client, run_command, run_process
from tests.support.plans import MINT_PATHS
from tests.support.sockets import listening_socket, refused_port
from token_broker.simulator import RunningSimulator


async def test_token_shows_a_masked_plan(azure: RunningSimulator, tmp_path: Path) -> None:
    azure.set_faults({"match": MINT_PATHS["ga"], "fault": "status", "code": 404})
    env = environment(tmp_path, azure.base_url)
    plain, as_json = await asyncio.gather(
        run_command("token", "--agent", "marcus", env=env, cwd=tmp_path),
        run_command("token", "--json", env=env, cwd=tmp_path, fresh=True),
    )
    assert (plain.code, as_json.code) == (0, 0)
    for outcome in ("permanent", "minted", "direct_deployment", "404", "the resource lacks this route"):
        assert outcome in plain.out
    report = json.loads(as_json.out)
    assert (report["plan"]["strategy"], report["plan"]["agent_id"]) == ("direct_deployment", "elena")
    assert [(attempt["strategy"], attempt["outcome"]) for attempt in report["attempts"]] == [
        ("ga", "permanent"),
        ("direct_deployment", "minted"),
    ]
    for command in (plain, as_json):
        assert "ek_simulated" not in command.out + command.err
        assert "eyJ" not in command.out, "our own tokens are masked as well"
        assert "masked, fingerprint" in command.out
    assert "\x1b[" not in plain.out, "plain text in a pipe"


async def test_token_fails_without_any_grant(tmp_path: Path) -> None:
    with refused_port() as port:
        endpoint = f"http://127.0.0.1:{port}"
        degraded, nothing = await asyncio.gather(
            run_command("token", "--json", env=environment(tmp_path, endpoint), cwd=tmp_path),
            run_command(
                "token", "--json", env=environment(tmp_path, endpoint, BROKER_TOKEN_STRATEGIES="ga"), cwd=tmp_path
            ),
        )
    assert degraded.code == 0
    assert json.loads(degraded.out)["plan"]["degraded"]
    assert nothing.code == 1
    report = json.loads(nothing.out)
    assert (report["plan"], report["attempts"][0]["tries"]) == (None, 2)
    assert "refused" in report["attempts"][0]["why"]


async def test_token_for_unknown_agent_names_known_ones(tmp_path: Path) -> None:
    env = environment(tmp_path, "http://127.0.0.1:9")
    finished = await run_command("token", "--agent", "hal", env=env, cwd=tmp_path)
    assert finished.code == 2
    assert all(name in finished.err for name in ("elena", "marcus", "sage"))
    assert finished.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("token", "--what"),
        ("simulate", "--kind", "gcp"),
        ("simulate", "--resources", "East US"),
        ("simulate", "--resources", "a,a"),
        ("simulate", "--resources", "a", "--deployment", "b=gpt-realtime"),
    ],
)
async def test_wrong_usage_exits_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    finished = await run_command(*arguments, env=environment(tmp_path, None), cwd=tmp_path)
    assert finished.code == 2
    assert "Usage:" in finished.err
    assert "Traceback" not in finished.err


NO_SUCH_DIRECTORY = "sqlite+aiosqlite:////proc/none/broker.db"


@pytest.mark.parametrize(
    ("command", "variables", "named"),
    [
        ("serve", {"BROKER_AUTH": "basic", "BROKER_TOKEN_TTL_S": "1"}, "BROKER_TOKEN_TTL_S"),
        ("serve", {"HOST": "0.0.0.0", "AZURE_VOICELIVE_ENDPOINT": "https://x.openai.azure.com"}, "BROKER_AUTH"),
        ("serve", {"BROKER_AGENTS_FILE": "none.toml"}, "none.toml"),
        ("serve", {"BROKER_DATABASE_URL": NO_SUCH_DIRECTORY}, "BROKER_DATABASE_URL"),
        ("token", {"BROKER_AGENTS_FILE": "none.toml"}, "none.toml"),
        ("token", {"BROKER_DATABASE_URL": NO_SUCH_DIRECTORY}, "BROKER_DATABASE_URL"),
    ],
)
async def test_wrong_setting_stops_the_start(
    command: str, variables: dict[str, str], named: str, tmp_path: Path
) -> None:
    with refused_port() as port:
        env = environment(tmp_path, f"http://127.0.0.1:{port}") | variables
        finished = await run_command(command, env=env, cwd=tmp_path)
    assert finished.code == 2, finished.err
    lines = [line for line in finished.err.splitlines() if not line.startswith("{")]  # the log's own
    assert any(line.startswith(named) or named in line for line in lines)
    assert "Traceback" not in finished.err
    assert "\\n" not in "".join(lines)


async def test_taken_port_stops_the_start(tmp_path: Path) -> None:
    with listening_socket() as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        finished = await run_command("serve", env=environment(tmp_path, None, PORT=port), cwd=tmp_path)
    assert finished.code == 2
    assert finished.err.splitlines()[-1].startswith("PORT")
    assert "Traceback" not in finished.err


async def test_serve_exits_0_on_sigterm(azure: RunningSimulator, tmp_path: Path) -> None:
    env = environment(tmp_path, azure.base_url, BROKER_DRAIN_S="1")
    serving = run_process("serve", env, tmp_path, fresh=True)
    async with serving as process, plain_client(process.base_url) as client:
        assert (await client.post("/realtime/token", json={})).json()["strategy"] == "ga"
        process.process.terminate()
        assert await asyncio.wait_for(process.process.wait(), 10) == 0
    events = [json.loads(line) for line in process.log.splitlines() if line.startswith("{")]
    assert "credential_issued" in {event["event"] for event in events}
    assert not [event for event in events if event["level"] == "error"]


async def test_misspelt_variable_is_reported(azure: RunningSimulator, tmp_path: Path) -> None:
    env = environment(tmp_path, azure.base_url, BROKER_TOKEN_BUGDET_S="1")
    finished = await run_command("token", "--json", env=env, cwd=tmp_path)
    assert finished.code == 0
    assert "BROKER_TOKEN_BUDGET_S is meant" in finished.err
    assert json.loads(finished.out)["plan"]


async def test_demo_always_simulates_azure(tmp_path: Path) -> None:
    with listening_socket() as free:
        port = str(free.getsockname()[1])
    env = environment(tmp_path, "https://real.openai.azure.com", SIMULATOR_PORT=port)
    async with run_process("demo", env, tmp_path) as process, plain_client(process.base_url) as client:
        plan = (await client.post("/realtime/token", json={"agent_id": "elena"})).json()
    assert (plan["strategy"], plan["endpoint"][:17]) == ("ga", "http://127.0.0.1:")
    assert f"eastus2 at http://127.0.0.1:{port}" in process.log
    assert "SIMULATED" in process.log


async def test_demo_goes_on_with_one_of_two(tmp_path: Path) -> None:
    env = environment(tmp_path, None, SIMULATOR_PORT="0", BROKER_DRAIN_S="1")
    async with run_process("demo", env, tmp_path) as demo, plain_client() as client:
        urls = dict(re.findall(r"(eastus2|swedencentral) at (http://[\d.:]+)", demo.log))
        assert len(urls) == 2
        # Set by the other's control routes: what refuses connections has none of its own.
        faults = f"{urls['swedencentral']}/_simulator/resources/eastus2/faults"
        await client.put(faults, json=[{"match": "/", "fault": "refuse"}])
        for _ in range(4):
            plan = (await client.post(f"{demo.base_url}/realtime/token", json={})).json()
            assert plan["endpoint"] != urls["eastus2"]
        # The page has the same routes at its own origin, where no other page may use them.
        own = f"{demo.base_url}/_simulator/resources/eastus2/faults"
        foreign = await client.delete(own, headers={"Origin": "https://elsewhere.example"})
        assert (foreign.status_code, len((await client.get(own)).json())) == (403, 1)
        assert (await client.delete(own, headers={"Origin": demo.base_url})).status_code == 204
        assert (await client.get(own)).json() == []
