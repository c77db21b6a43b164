"""Runs the client programs of `tests/clients/programs`, each in a process of its own, and holds them to silence."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

from tests.support.node import find_tool, installed_modules

__all__ = ["CLIENTS", "Finished", "node_command", "python_command", "run_client", "run_program"]

CLIENTS = Path(__file__).parents[1]
ROOT = CLIENTS.parents[1]
_LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that has ended."""

    code: int
    out: str
    err: str


def node_command() -> list[str]:
    """`node` as the clients want it: the flag is what newer ones have on, the runtime's own WebSocket."""
    installed_modules(CLIENTS)
    return [find_tool("node"), "--experimental-websocket"]


def python_command() -> list[str]:
    """This Python; what it would warn of fails."""
    return [sys.executable, "-W", "error"]


async def run_client(program: str, setup: Mapping[str, Any], authority: Path, *, may_log: bool = False) -> Any:
    """The report of a program: a module of `programs` (`….mjs`, else Python).

    Raises AssertionError where it fails, or says more on stderr, unless it `may_log`.
    """
    if program.endswith(".mjs"):
        command = [*node_command(), str(CLIENTS / "programs" / "run.mjs"), program.removesuffix(".mjs")]
    else:
        command = [*python_command(), "-m", f"tests.clients.programs.{program}"]
    finished = await run_program(command, environment(authority), json.dumps(setup))
    silent = may_log or not finished.err
    assert (finished.code, silent) == (0, True), f"{program} ended with {finished.code}:\n{finished.err}"
    return json.loads(finished.out)


def environment(authority: Path, **variables: str) -> dict[str, str]:
    """What a program sees: nothing of the developer's but the path, `authority` to trust, and loud loggers."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    ours = {"NODE_EXTRA_CA_CERTS": str(authority), "SSL_CERT_FILE": str(authority), "AZURE_LOG_LEVEL": "warning"}
    return {**inherited, **ours, **variables}


async def run_program(command: Sequence[str], env: Mapping[str, str], stdin: str = "", cwd: Path = ROOT) -> Finished:
    """Runs it to its end. Raises TimeoutError, and kills it, after a minute."""
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(_LIMIT_S):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, out.decode(), err.decode())
