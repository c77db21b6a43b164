"""Runs the client programs of `tests/clients/programs`, many in one process.

A program that writes to stderr fails: a client that is used correctly has nothing to warn of.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

from tests.support.node import find_tool, installed_modules
from tests.support.python_env import installed_python

__all__ = ["CLIENTS", "ClientRunner", "node_command", "python_command", "run_clients"]

CLIENTS = Path(__file__).parents[1]
ROOT = CLIENTS.parents[1]
_OF_THEIR_OWN = frozenset({"agents_tools_python"})
"""Python programs whose packages do not go with ours."""
_LIMIT_S = 60
_CLOSE_S = 10


def node_command() -> list[str]:
    """`node` with its own WebSocket, which newer versions have without the flag."""
    installed_modules(CLIENTS)
    return [find_tool("node"), "--experimental-websocket"]


def python_command(*, own: bool = False) -> list[str]:
    """This Python, or the clients' `own`, with warnings as errors."""
    return [str(installed_python(CLIENTS / "python" / "agents.lock")) if own else sys.executable, "-W", "error"]


def environment(authority: Path, **variables: str) -> dict[str, str]:
    """A program's environment: of the developer's only the paths. It trusts `authority`; Azure's SDKs log warnings."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    ours = {"NODE_EXTRA_CA_CERTS": str(authority), "SSL_CERT_FILE": str(authority), "AZURE_LOG_LEVEL": "warning"}
    return {**inherited, **ours, **variables}


class _Runner:
    """`programs/run.mjs` or `programs/run.py` in a process: importing a client takes longer than a talk with it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._read_chars = 0
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=PIPE, stdout=PIPE, stderr=stderr)

    def ask(self, request: str) -> tuple[str, str]:
        """The report, empty where the process has ended, and what it wrote to stderr meanwhile. Blocks."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        report = self._process.stdout.readline().decode()
        return report, self.new_log()

    def new_log(self) -> str:
        log = self._log.read_text(encoding="utf-8")
        new, self._read_chars = log[self._read_chars :], len(log)
        return new

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> int:
        """The exit code. Raises TimeoutExpired, and kills, where something that a client left open keeps it running."""
        with self._process:  # closes its pipes
            try:
                self._process.communicate(timeout=_CLOSE_S)
            finally:
                self._process.kill()
        return self._process.returncode


class ClientRunner:
    """Runs client programs one after another, in a process for each runtime that starts with the first of them."""

    def __init__(self, authority: Path, folder: Path) -> None:
        self._env = environment(authority)
        self._folder = folder
        self._runners: dict[tuple[str, bool], _Runner] = {}

    async def run(self, program: str, setup: Mapping[str, Any], *, may_log: bool = False) -> Any:
        """The report of a program: a module of `programs` (`….mjs`, else Python).

        Raises AssertionError where it fails, or writes to stderr, unless it `may_log`.
        """
        # A refused client may log after its report: apart, so that its log is not taken for another client's.
        python = "python of its own" if program in _OF_THEIR_OWN else "python"
        key = ("node" if program.endswith(".mjs") else python, may_log)
        runner = self._runners.get(key) or self._start(*key)
        request = json.dumps({"program": program, "setup": setup})
        asking = asyncio.create_task(asyncio.to_thread(runner.ask, request))
        try:
            report, log = await asyncio.wait_for(asyncio.shield(asking), _LIMIT_S)
        except TimeoutError:
            runner.kill()
            report, log = await asking
        if not report:
            self._runners.pop(key).close()
        assert report, f"{program} ended without a report:\n{log}"
        assert may_log or not log, f"{program} wrote to stderr:\n{log}"
        return json.loads(report)

    def close(self) -> None:
        """Ends the processes. Raises AssertionError where one does not end by itself, and in silence."""
        for (runtime, may_log), runner in self._runners.items():
            code = runner.close()
            log = runner.new_log()
            assert (code, may_log or not log) == (0, True), f"{runtime} ended with {code}:\n{log}"

    def _start(self, runtime: str, may_log: bool) -> _Runner:
        programs = CLIENTS / "programs"
        if runtime == "node":
            command = [*node_command(), str(programs / "run.mjs")]
        else:
            command = [*python_command(own=runtime != "python"), "-m", "tests.clients.programs.run"]
        log = self._folder / f"{runtime}-{'refused' if may_log else 'silent'}-{len(self._runners)}.log"
        runner = self._runners[runtime, may_log] = _Runner(command, self._env, log)
        return runner


@contextlib.contextmanager
def run_clients(authority: Path, folder: Path) -> Iterator[ClientRunner]:
    """A runner whose programs trust `authority`, and write their logs into `folder`, until the block ends."""
    runner = ClientRunner(authority, folder)
    with contextlib.closing(runner):
        yield runner
