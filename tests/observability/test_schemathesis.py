"""Schemathesis, told nothing but `/openapi.json`, finds nothing on a running broker."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.support.broker import environment, plain_client, run_process
from token_broker.simulator import RunningSimulator

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# `/openapi.json`'s examples are of this session, so that its token opens the memory's routes to the fuzzer.
SESSION = "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11"
# An offer of made-up SDP is Azure's to refuse, which is a 502 and described; elsewhere no 5xx is expected.
CALLS = "realtime/calls"
RUNS = {
    "strangers": ["--phases", "examples,fuzzing"],
    "owners of a session": ["--exclude-path-regex", CALLS],
    "callers": [
        "--phases",
        "examples,fuzzing",
        "--include-path-regex",
        CALLS,
        "--exclude-checks",
        "not_a_server_error",
    ],
}


@pytest.mark.parametrize("who", RUNS)
async def test_schemathesis_finds_nothing(who: str, azure: RunningSimulator, tmp_path: Path) -> None:
    # Deterministic, since a failure here should be the change's own.
    options = ["--checks", "all", "--max-examples", "5", "--seed", "1", "--generation-deterministic", *RUNS[who]]
    async with run_process("serve", environment(tmp_path, azure.base_url), tmp_path) as process:
        if who != "strangers":
            async with plain_client(process.base_url) as client:
                plan = (await client.post("/realtime/token", json={"session_id": SESSION})).json()
            options += ["--header", f"Authorization: Bearer {plan['session_token']}"]
        fuzzer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", "run", f"{process.base_url}/openapi.json", *options,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "NO_COLOR": "1"}, cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            out, _ = await asyncio.wait_for(fuzzer.communicate(), 180)
        finally:
            if fuzzer.returncode is None:
                fuzzer.kill()
                await fuzzer.wait()
        log = process.log
    assert fuzzer.returncode == 0, out.decode()
    assert "request_failed" not in log
