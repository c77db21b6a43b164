"""`token-broker outbox`, `forget`, `block` and `unblock`: an operator's work on the memory."""

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import click

from token_broker.memory.drivers.sqlite import sqlite_path
from token_broker.memory.maintenance import Maintenance, Progress, open_maintenance
from token_broker.memory.store_errors import BlocklistFullError, StoreError
from token_broker.memory.types import BlockKind, DeadLetter
from token_broker.observability.logging import configure_logging
from token_broker.security.tokens import ANONYMOUS
from token_broker.sessions.schemas import SESSION_ID_PATTERN
from token_broker.settings import SettingsError, load_settings

__all__ = ["block", "forget", "outbox", "run_on_store", "unblock"]

T = TypeVar("T")

_WIDTH_IN_A_PIPE = 200
_MAX_PRINCIPAL_CHARS = 1000
_session = click.option("--session", "session_id", help="Only this session's.")


@click.group()
def outbox() -> None:
    """Turns on their way to Zep, and the dead letters that it refused."""


@outbox.command("list")
@_session
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="So many at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def list_letters(session_id: str | None, limit: int, *, as_json: bool) -> None:
    """Show how many turns wait, and each dead letter with its reason."""

    async def look(maintenance: Maintenance) -> tuple[dict[str, Any], list[DeadLetter]]:
        status = await maintenance.outbox_status()
        letters = await maintenance.dead_letters(limit, session_id=session_id)
        return {"queued": status.queued, "dead": status.dead}, letters

    counts, letters = run_on_store(look)
    if as_json:
        click.echo(json.dumps({**counts, "dead_letters": [_shown(letter) for letter in letters]}, indent=2))
        return
    click.echo(f"{counts['queued']} queued, {counts['dead']} dead")
    if not letters:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("session", "turn", "role", "reason")
    for letter in letters:
        table.add_row(*(str(value) for value in _shown(letter).values()))
    Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE, highlight=False, markup=False).print(table)


@outbox.command()
@_session
def retry(session_id: str | None) -> None:
    """Queue dead letters again; the running broker delivers them."""
    with _bar("Queueing again") as tell:
        count = run_on_store(lambda maintenance: maintenance.retry_dead(session_id=session_id, tell=tell))
    click.echo(f"{count} queued again")


@outbox.command()
@_session
@click.confirmation_option("--yes", prompt="Dead letters are deleted for good. Go on?", help="Do not ask.")
def purge(session_id: str | None) -> None:
    """Delete dead letters for good."""
    click.echo(f"{run_on_store(lambda maintenance: maintenance.purge_dead(session_id=session_id))} deleted")


@click.command()
@click.option("--session", "session_id", help="The session to erase.")
@click.option("--user", help="The user to erase: a principal's id, or the label that was sent as user_id.")
def forget(session_id: str | None, user: str | None) -> None:
    """Erase a session, or all sessions of a user: here at once, and in Zep by the running broker."""
    if (session_id is None) == (user is None):
        raise click.UsageError("Name one: --session, or --user.")

    async def work(maintenance: Maintenance) -> int:
        if session_id is not None:
            return await maintenance.erase_session(session_id)
        return await maintenance.erase_user(user or "")

    erased = run_on_store(work)
    click.echo(f"{erased} turns forgotten")
    if not erased:
        click.echo(f"No turn of this {'session' if user is None else 'user'} was stored: is the id right?", err=True)


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
    return {"session_id": letter.session_id, "turn_id": turn.turn_id, "role": turn.role, "reason": letter.reason}


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
