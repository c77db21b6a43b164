"""`token-broker resources`: the Azure resources with their health and load, and the switch of each."""

import json
import sys
from typing import Any

import click
import httpx

from token_broker.cli.memory import run_on_store
from token_broker.memory.maintenance import Maintenance
from token_broker.settings import Settings, SettingsError, load_settings

__all__ = ["resources"]

_ASK_S = 3.0
_WIDTH_IN_A_PIPE = 160
_MISCONFIGURED = 2


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
@click.option("--url", help="Ask the broker there; by default the one on HOST and PORT.")
@click.pass_context
def resources(context: click.Context, url: str | None, *, as_json: bool) -> None:
    """Show the Azure resources: health and load as a running broker sees them, and which are disabled."""
    if context.invoked_subcommand is not None:
        return
    settings = _settings()
    disabled = frozenset(run_on_store(lambda maintenance: maintenance.disabled_resources()))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # what listens on all addresses
    seen = _ask(settings, url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}")
    if seen is None:
        click.echo("No running broker answers with its full status: health and load are unknown.", err=True)
    rows = []
    for each in settings.resources:
        known = {key: (seen or {}).get(each.name, {}).get(key) for key in ("health", "why", "retry_in_s", "load")}
        rows.append({"name": each.name, "zone": each.entry.zone, "enabled": each.name not in disabled, **known})
    if as_json:
        click.echo(json.dumps({"resources": rows}, indent=2))
    else:
        _print(rows)


@resources.command()
@click.argument("name")
def disable(name: str) -> None:
    """Keep new talks away from a resource, at all replicas within two seconds; running talks go on."""
    _switch(name, enabled=False)


@resources.command()
@click.argument("name")
def enable(name: str) -> None:
    """Let new talks go to a resource again, at all replicas within two seconds."""
    _switch(name, enabled=True)


def _switch(name: str, *, enabled: bool) -> None:
    names = [each.name for each in _settings().resources]
    if name not in names:
        raise click.BadParameter(f"there is no such resource; the known ones are {', '.join(names)}", param_hint="NAME")

    async def work(maintenance: Maintenance) -> tuple[bool, list[str]]:
        return await maintenance.switch_resource(name, enabled=enabled), await maintenance.disabled_resources()

    switched, disabled = run_on_store(work)
    state = "enabled" if enabled else "disabled"
    click.echo(f"{name} {f'is {state}, everywhere within two seconds' if switched else f'was {state} already'}")
    if set(names) <= set(disabled):
        click.echo("No resource is enabled: every plan has a poor outlook.", err=True)


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        click.echo(str(error), err=True)
        sys.exit(_MISCONFIGURED)


def _ask(settings: Settings, url: str) -> dict[str, dict[str, Any]] | None:
    """The resources as the broker at `url` sees them, by name; None where it says nothing of them."""
    token = settings.metrics_token
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/status", headers=headers, timeout=_ASK_S, trust_env=False)
        return {each["name"]: each for each in answer.json()["resources"]}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return None


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("resource", "zone", "state", "health", "load", "why")
    for row in rows:
        load = ", ".join(f"{name} {share:.0%}" for name, share in (row["load"] or {}).items())
        state = "enabled" if row["enabled"] else "[yellow]disabled[/]"
        table.add_row(row["name"], row["zone"], state, row["health"] or "unknown", load, row["why"] or "")
    Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE, highlight=False).print(table)
