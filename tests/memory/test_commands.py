"""`token-broker outbox` as an operator runs it: plain in a pipe, a bar on a terminal; and the shell's completion."""

import asyncio
import os
import pty
import re
import sqlite3
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from tests.memory.support.stores import MAKE_DEAD
from tests.memory.support.turns import SESSION, turn
from tests.support.broker import environment, run_command
from tests.support.databases import sqlite_url
from token_broker.cli.main import main
from token_broker.memory.service import Memory
from token_broker.settings import Settings

FEW, MANY = 3, 1100  # the second more than two transactions' worth


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """`token-broker` under its own name, as installing it makes one."""
    path = tmp_path / "bin" / "token-broker"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nfrom token_broker.cli.main import main\nmain(prog_name='token-broker')\n")
    path.chmod(0o755)
    return path


async def dead_letters(count: int, folder: Path) -> dict[str, str]:
    """A store with so many of them; the environment that names it."""
    url = sqlite_url(folder)
    settings = Settings.load(_env_file=None, database_url=SecretStr(url))
    async with Memory.open(settings) as memory:
        await memory.ready()
        await memory.append([turn(f"t{number}", sequence=number) for number in range(count)])
    with sqlite3.connect(folder / "memory.db") as connection:
        for statement in MAKE_DEAD:
            connection.execute(statement)
    connection.close()
    return environment(folder, None, BROKER_DATABASE_URL=url)


async def run_here(*arguments: str, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Result:
    """Runs `token-broker …` in this process: a second of CPU less than in one of its own."""
    monkeypatch.setattr("token_broker.cli.memory.configure_logging", lambda _settings: None)
    invoke = partial(CliRunner().invoke, main, arguments, env=env, catch_exceptions=False)
    return await asyncio.to_thread(invoke)  # a command runs an event loop of its own


async def on_a_terminal(script: Path, *arguments: str, env: dict[str, str]) -> str:
    """What the command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        script, *arguments, env={**env, "TERM": "xterm", "COLUMNS": "80"}, cwd=script.parent,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    written = bytearray()

    def read_to_the_end() -> None:
        try:
            while data := os.read(ours, 65_536):
                written.extend(data)
        except OSError:  # how Linux says that nobody writes any more
            pass

    async with asyncio.timeout(60):
        await asyncio.to_thread(read_to_the_end)
        assert await process.wait() == 0
    os.close(ours)
    return written.decode()


async def test_retry_in_pipe_writes_one_line(tmp_path: Path) -> None:
    env = await dead_letters(MANY, tmp_path)
    finished = await run_command("outbox", "retry", env=env, cwd=tmp_path)
    assert (finished.code, finished.out, finished.err) == (0, f"{MANY} queued again\n", "")
    listed = await run_command("outbox", "list", env=env, cwd=tmp_path)
    assert listed.out == f"{MANY} queued, 0 dead\nzep: {MANY} queued, 0 dead\n"


async def test_long_retry_on_terminal_shows_progress(tmp_path: Path, script: Path) -> None:
    env = await dead_letters(MANY, tmp_path)
    written = await on_a_terminal(script, "outbox", "retry", env=env)
    assert re.search(r"Queueing again.*\b45%", written)
    assert written.endswith(f"{MANY} queued again\r\n")


async def test_short_retry_on_terminal_shows_no_bar(tmp_path: Path, script: Path) -> None:
    env = await dead_letters(FEW, tmp_path)
    written = await on_a_terminal(script, "outbox", "retry", env=env)
    assert "Queueing" not in written
    assert written.endswith(f"{FEW} queued again\r\n")


async def test_retry_of_one_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = await dead_letters(FEW, tmp_path)
    run = partial(run_here, "outbox", "retry", "--session", env=env, monkeypatch=monkeypatch)
    assert (await run("another-session-01")).output == "0 queued again\n"
    assert (await run(SESSION)).output == f"{FEW} queued again\n"


async def test_empty_store_is_reported(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator in the wrong folder must not read that nothing waits, and nothing else."""
    env = environment(tmp_path, None, BROKER_DATABASE_URL=database_url, BROKER_SIGNING_KEY="k" * 40)
    first = await run_here("outbox", "list", env=env, monkeypatch=monkeypatch)
    where = tmp_path / "memory.db" if database_url.startswith("sqlite") else "the database"
    warning = f"BROKER_DATABASE_URL: {where} was empty; if a broker runs, this is not its store.\n"
    assert (first.exit_code, first.stdout, first.stderr) == (0, "0 queued, 0 dead\n", warning)
    second = await run_here("outbox", "list", env=env, monkeypatch=monkeypatch)
    assert (second.stdout, second.stderr) == (first.stdout, "")


async def test_forget_reports_unknown_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = await dead_letters(FEW, tmp_path)
    run = partial(run_here, "forget", "--session", env=env, monkeypatch=monkeypatch)
    unknown = await run("another-session-01")
    receipt = "files: done; backups of the database: not touched\n"
    assert (unknown.exit_code, unknown.stdout) == (0, f"0 turns forgotten\n{receipt}")
    assert "is the id right?" in unknown.stderr
    known = await run(SESSION)
    gone = "zep: cannot (not among BROKER_MEMORY_SINKS any more)\n"
    assert (known.exit_code, known.stdout, known.stderr) == (1, f"{FEW} turns forgotten\n{gone}{receipt}", "")


# --- the shell


async def shell(commands: str, script: Path, env: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash", "--norc", "-c", commands, stdout=asyncio.subprocess.PIPE,
        env={**env, "PATH": f"{script.parent}:{env['PATH']}"}, cwd=script.parent,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


COMPLETIONS = [
    ("do", ["doctor"]),
    ("outbox re", ["retry"]),
    ("outbox retry --s", ["--session", "--sink"]),
    ("simulate --kind d", ["direct"]),
]


async def test_bash_completion_from_readme(tmp_path: Path, script: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (line,) = re.findall(r"^eval .*_TOKEN_BROKER_COMPLETE=bash_source.*$", readme, re.MULTILINE)
    commands = [line]
    for typed, _ in COMPLETIONS:
        words = ["token-broker", *typed.split()]
        asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _token_broker_completion token-broker"
        commands += ["COMPREPLY=()", asked, 'echo "${COMPREPLY[@]}"']
    said = await shell("\n".join(commands), script, environment(tmp_path, None))
    assert [offered.split() for offered in said.splitlines()] == [offered for _, offered in COMPLETIONS]
