"""`token-broker usage`: what talks have used, from the ledger in the store."""

import csv
import sys

import click

from token_broker.cli.memory import run_on_store
from token_broker.usage.reports import UsageEntry, UsageReport, read_usage, since_day

__all__ = ["usage"]

_WIDTH_IN_A_PIPE = 200
_GROUPS = ("principal", "agent", "resource", "day", "session")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SHOWN = ("talks", "seconds", "responses", "input_tokens", "output_tokens", "transcription_seconds", "tools_run")


@click.command()
@click.option("--by", type=click.Choice(_GROUPS), help="Sum by this; else each talk by resource and day.")
@click.option("--since", help="The first UTC day: a date such as 2026-11-29, or so many days ago, as 7d.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with all columns.")
def usage(by: str | None, since: str | None, *, as_json: bool, as_csv: bool) -> None:
    """Show what talks have used: time, tokens, transcription, tools. What is unknown is empty."""
    if as_json and as_csv:
        raise click.UsageError("Name one: --json, or --csv.")
    try:
        day = None if since is None else since_day(since)
    except ValueError:
        message = f"'{since}' is no date such as 2026-11-29, and no number of days such as 7d."
        raise click.BadParameter(message, param_hint="--since") from None
    report = run_on_store(lambda maintenance: read_usage(maintenance.database, by=by, since=day))
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(UsageEntry.model_fields)
        for entry in report.usage:
            # No cell that a spreadsheet takes for a formula: a principal's name is not ours to choose.
            cells = entry.model_dump(mode="json").values()
            writer.writerow([f"'{cell}" if str(cell).startswith(_FORMULA) else cell for cell in cells])
    else:
        _print(report)


def _print(report: UsageReport) -> None:
    from rich.console import Console
    from rich.table import Table

    keys = {"agent": ("agent_id",), "session": ("session_id",), None: ("day", "talk_id", "principal", "resource")}
    columns = (*keys.get(report.by, (report.by or "",)), *_SHOWN, "seen", "complete")
    table = Table(*columns)
    for entry in report.usage:
        values = (getattr(entry, column) for column in columns)
        table.add_row(*("" if value is None else str(value) for value in values))
    Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE, highlight=False, markup=False).print(table)
