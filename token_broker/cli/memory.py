"""`token-broker outbox`, `export`, `forget`, `block` and `unblock`: an operator's work on the memory."""

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from token_broker.memory.delivery.erase_now import erase_now
from token_broker.memory.drivers.sqlite import sqlite_path
from token_broker.memory.maintenance import Maintenance, Progress, SinkReceipt, open_maintenance
from token_broker.memory.store_errors import BlocklistFullError, StoreError
from token_broker.memory.types import SINK_BITS, BlockKind, DeadLetter
from token_broker.observability.logging import configure_logging
from token_broker.security.tokens import ANONYMOUS
from token_broker.sessions.schemas import SESSION_ID_PATTERN
from token_broker.settings import SettingsError, SinkName, load_settings

__all__ = ["block", "export", "forget", "outbox", "run_on_store", "unblock"]

T = TypeVar("T")

_WIDTH_IN_A_PIPE = 200
_MAX_PRINCIPAL_CHARS = 1000
_session = click.option("--session", "session_id", help="Only this session's.")
_sink = click.option("--sink", type=click.Choice(list(SINK_BITS)), help="Only this sink's.")


@click.group()
def outbox() -> None:
    """Turns on their way to the sinks, and the dead letters that these refused."""


@outbox.command("list")
@_session
@_sink
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="So many at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def list_letters(session_id: str | None, sink: SinkName | None, limit: int, *, as_json: bool) -> None:
    """Show how many turns wait for each sink, and each dead letter with its reason."""

    async def look(maintenance: Maintenance) -> tuple[dict[str, Any], list[DeadLetter]]:
        status = await maintenance.outbox_status()
        letters = await maintenance.dead_letters(limit, session_id=session_id, sink=sink)
        by_sink = {
            name: {"queued": one.queued, "dead": one.dead, "pending_erasures": one.erasures}
            for name, one in status.by_sink.items()
        }
        return {"queued": status.queued, "dead": status.dead, "sinks": by_sink}, letters

    counts, letters = run_on_store(look)
    if as_json:
        click.echo(json.dumps({**counts, "dead_letters": [_shown(letter) for letter in letters]}, indent=2))
        return
    click.echo(f"{counts['queued']} queued, {counts['dead']} dead")
    for name, one in counts["sinks"].items():
        erasures = f", {one['pending_erasures']} to erase" if one["pending_erasures"] else ""
        click.echo(f"{name}: {one['queued']} queued, {one['dead']} dead{erasures}")
    if not letters:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("sink", "session", "turn", "role", "reason")
    for letter in letters:
        table.add_row(*(str(value) for value in _shown(letter).values()))
    Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE, highlight=False, markup=False).print(table)


@outbox.command()
@_session
@_sink
def retry(session_id: str | None, sink: SinkName | None) -> None:
    """Queue dead letters again; the running broker delivers them."""
    with _bar("Queueing again") as tell:
        count = run_on_store(lambda maintenance: maintenance.retry_dead(session_id=session_id, sink=sink, tell=tell))
    click.echo(f"{count} queued again")


@outbox.command()
@_session
@_sink
@click.confirmation_option("--yes", prompt="Dead letters are deleted for good. Go on?", help="Do not ask.")
def purge(session_id: str | None, sink: SinkName | None) -> None:
    """Delete dead letters for good."""
    deleted = run_on_store(lambda maintenance: maintenance.purge_dead(session_id=session_id, sink=sink))
    click.echo(f"{deleted} deleted")


@click.command()
@click.option("--session", "session_id", help="The session to erase.")
@click.option("--user", help="The user to erase: a principal's id, or the label that was sent as user_id.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3600),
    default=60,
    show_default=True,
    help="Seconds to wait for the sinks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
def forget(session_id: str | None, user: str | None, wait_s: float, *, as_json: bool) -> None:
    """Erase a session, or all that a user has said until now, here and in every sink; print a receipt.

    Exit code 0 only if all is done. Repeat it to go on, and to see how far it has come.
    """
    named = _one_of(session_id, user)

    async def work(maintenance: Maintenance) -> tuple[int, bool, list[SinkReceipt], bool | None]:
        goes_on = any(one.state != "done" for one in await maintenance.receipt(**named))
        if session_id is not None:
            erased = await maintenance.erase_session(session_id)
        else:
            erased = await maintenance.erase_user(user or "")
        await maintenance.finish_erasures()  # what an earlier attempt has left
        scrubbed = await maintenance.scrub_files()

        settings = load_settings()

        async def is_over() -> bool:
            receipts = await maintenance.receipt(**named)
            return all(one.state == "done" for one in receipts if one.sink in settings.sinks)

        await erase_now(maintenance.database, settings, is_over, wait_s=wait_s)
        return erased, goes_on, await maintenance.receipt(**named), scrubbed

    erased, goes_on, receipts, scrubbed = run_on_store(work)
    files = {True: "done", False: "cannot", None: "accepted"}[scrubbed]
    why = {
        "done": "",
        "cannot": "somebody reads the database all the time; repeat it",
        "accepted": "PostgreSQL overwrites deleted rows with its next vacuum",
    }[files]
    done = files != "cannot" and all(receipt.state == "done" for receipt in receipts)
    if as_json:
        parts = [{"part": "store", "state": "done", "detail": f"{erased} turns"}]
        parts += [{"part": one.sink, "state": one.state, "detail": one.detail} for one in receipts]
        parts += [{"part": "files", "state": files, "detail": why}]
        parts += [{"part": "backups", "state": "cannot", "detail": "delete those of the database yourself"}]
        click.echo(json.dumps({"turns": erased, "done": done, "receipt": parts}, indent=2))
    else:
        click.echo(f"{erased} turns forgotten")
        for one in receipts:
            click.echo(f"{one.sink}: {one.state}{f' ({one.detail})' if one.detail else ''}")
        click.echo(f"files: {files}{f' ({why})' if why else ''}; backups of the database: not touched")
    if not erased and not goes_on:
        said = f"No turn of this {'session' if user is None else 'user'} was stored: is the id right?"
        click.echo(said, err=True)
    if not done:
        sys.exit(1)


@click.command()
@click.option("--session", "session_id", help="The session to export.")
@click.option("--user", help="The user to export: a principal's id, or the label that was sent as user_id.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A new file to write to; else stdout.")
def export(session_id: str | None, user: str | None, out: Path | None) -> None:
    """Write all that is stored of a session, or of a user, as JSON Lines: sessions, turns, and what belongs to them."""
    named = _one_of(session_id, user)

    async def work(maintenance: Maintenance) -> int:
        written = 0
        target: Any = contextlib.nullcontext(sys.stdout)
        if out is not None:  # a new file, which nobody else may read
            file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            target = os.fdopen(file, "w", encoding="utf-8")
        with target as lines:
            async for line in maintenance.export(**named):
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                written += 1
        return written

    try:
        written = run_on_store(work)
    except BrokenPipeError:  # whoever reads has seen enough
        sys.stderr.close()
        sys.exit(1)
    except FileExistsError:
        raise click.BadParameter("exists already; an export does not overwrite.", param_hint="--out") from None
    except OSError as error:
        raise click.ClickException(f"--out: {error.strerror}") from None
    if not written:
        click.echo(f"No session of this {'id' if user is None else 'user'} is stored: is it right?", err=True)


def _one_of(session_id: str | None, user: str | None) -> dict[str, str]:
    """The one that is named, by its keyword."""
    if session_id is not None and user is None:
        return {"session_id": session_id}
    if user and session_id is None:
        return {"user": user}
    raise click.UsageError("Name one: --session, or --user.")


@click.command()
@click.option("--principal", help="The principal to block, as in the audit log.")
@click.option("--session", "session_id", help="The session to block.")
@click.option("--list", "show", is_flag=True, help="Show what is blocked, and since when.")
def block(principal: str | None, session_id: str | None, *, show: bool) -> None:
    """Block a principal or a session: within two seconds their tokens open nothing, at any replica."""
    if show + (principal is not None) + (session_id is not None) != 1:
        raise click.UsageError("Name one: --principal, --session, or --list.")
    if show:
        for one in run_on_store(lambda maintenance: maintenance.blocked()):
            click.echo(f"{one.since:%Y-%m-%dT%H:%M:%SZ} {one.kind} {one.id}")
        return
    kind, name = _named(principal, session_id)

    async def work(maintenance: Maintenance) -> tuple[bool, bool]:
        try:
            return await maintenance.block(kind, name), await maintenance.knows(kind, name)
        except BlocklistFullError as error:
            raise click.ClickException(str(error)) from None

    is_new, known = run_on_store(work)
    click.echo(f"{kind} {name} {'is blocked, everywhere within two seconds' if is_new else 'was blocked already'}")
    if not known:
        click.echo(f"No session of this {kind} is stored: is the id right?", err=True)


@click.command()
@click.option("--principal", help="The principal to unblock.")
@click.option("--session", "session_id", help="The session to unblock.")
def unblock(principal: str | None, session_id: str | None) -> None:
    """Unblock a principal or a session: tokens that have not expired work again."""
    if (principal is not None) + (session_id is not None) != 1:
        raise click.UsageError("Name one: --principal, or --session.")
    kind, name = _named(principal, session_id)
    unblocked = run_on_store(lambda maintenance: maintenance.unblock(kind, name))
    click.echo(f"{kind} {name} {'is unblocked' if unblocked else 'was not blocked'}")


def _named(principal: str | None, session_id: str | None) -> tuple[BlockKind, str]:
    """The principal or session that the options name. Raises UsageError for one that nobody, or everybody, has."""
    if session_id is not None:
        if re.fullmatch(SESSION_ID_PATTERN, session_id) is None:
            raise click.BadParameter("no session has such an id.", param_hint="--session")
        return "session", session_id
    name = principal or ""
    if name == ANONYMOUS:
        everybody = "is everybody without authentication: name the session, with --session."
        raise click.BadParameter(f"{ANONYMOUS} {everybody}", param_hint="--principal")
    if not 0 < len(name) <= _MAX_PRINCIPAL_CHARS or not name.isprintable():
        raise click.BadParameter("no principal has such an id.", param_hint="--principal")
    return "principal", name


def run_on_store(work: Callable[[Maintenance], Awaitable[T]]) -> T:
    """Does `work` on the configured store. Exit code 2: the configuration is wrong; 1: the store is away."""
    try:
        settings = load_settings()
    except SettingsError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    configure_logging(settings)

    def warn_of_empty() -> None:
        # In the wrong folder a command finds another store than the broker's, and would report that nothing waits.
        url = settings.database_url.get_secret_value()
        where = str(sqlite_path(url).absolute()) if url.startswith("sqlite") else "the database"
        click.echo(f"BROKER_DATABASE_URL: {where} was empty; if a broker runs, this is not its store.", err=True)

    async def main() -> T:
        async with open_maintenance(settings, tell_of_empty=warn_of_empty) as maintenance:
            return await work(maintenance)

    try:
        return asyncio.run(main())
    except StoreError as error:
        click.echo(f"BROKER_DATABASE_URL: the store cannot be used: {error}", err=True)
        sys.exit(1)


def _shown(letter: DeadLetter) -> dict[str, Any]:
    turn = letter.turn
    return {
        "sink": letter.sink,
        "session_id": letter.session_id,
        "turn_id": turn.turn_id,
        "role": turn.role,
        "reason": letter.reason,
    }


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """A progress bar on a terminal, from the first part until the last; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task(what, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=done < total, refresh=True)
