"""Schemathesis, told nothing but `/openapi.json`, finds nothing on a running broker."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.broker import BrokerProcess, environment, plain_client, run_process
from token_broker.simulator import serve

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# `/openapi.json`'s examples are of this session, so that its token opens the memory's routes to the fuzzer.
SESSION = "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11"
# An offer of made-up SDP is Azure's to refuse, which is a 502 and described; elsewhere no 5xx is expected.
CALLS = r"realtime/calls|/realtime(rtc)?$"
DEPLOYMENTS = "/deployments/"  # the same operations once more
RUNS = {
    # What they may do runs the same code for owners, and test_fuzz.py sends them any JSON.
    "strangers": ["--exclude-path-regex", DEPLOYMENTS, "--phases", "examples"],
    "owners of a session": ["--exclude-path-regex", f"{CALLS}|{DEPLOYMENTS}"],
    "callers": [
        "--phases",
        "examples,fuzzing",
        "--include-path-regex",
        CALLS,
        "--exclude-path-regex",
        DEPLOYMENTS,
        "--exclude-checks",
        "not_a_server_error",
    ],
}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[BrokerProcess, str]]:
    """One broker for all runs: each fuzzer takes long enough by itself."""
    folder = tmp_path_factory.mktemp("fuzzed")
    async with (
        serve() as azure,
        run_process("serve", environment(folder, azure.base_url), folder) as running,
        plain_client(running.base_url) as client,
    ):
        plan = (await client.post("/realtime/token", json={"session_id": SESSION})).json()
        yield running, plan["session_token"]


@pytest.mark.parametrize("who", RUNS)
async def test_schemathesis_finds_nothing(who: str, process: tuple[BrokerProcess, str], tmp_path: Path) -> None:
    broker, session_token = process
    # Deterministic, since a failure here should be the change's own.
    options = ["--checks", "all", "--max-examples", "5", "--seed", "1", "--generation-deterministic", *RUNS[who]]
    if who != "strangers":
        options += ["--header", f"Authorization: Bearer {session_token}"]
    fuzzer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "run", f"{broker.base_url}/openapi.json", *options,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "NO_COLOR": "1"}, cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(fuzzer.communicate(), 180)
    finally:
        if fuzzer.returncode is None:
            fuzzer.kill()
            await fuzzer.wait()
    assert fuzzer.returncode == 0, out.decode()
    assert "request_failed" not in broker.log
