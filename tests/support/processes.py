"""Programs that a test runs to their end."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

__all__ = ["Finished", "run_program"]


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that has ended."""

    code: int
    out: str
    err: str


async def run_program(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = "", timeout_s: float = 60
) -> Finished:
    """Runs `command` to its end; without `env`, in this process's environment.

    Kills it, and raises TimeoutError, after `timeout_s`.
    """
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), timeout_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())
