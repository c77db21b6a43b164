"""The command `token-broker doctor`. What it needs is imported when it runs: other commands know of it, too."""

import asyncio
import json
import sys
from urllib.parse import urlsplit

import click

from token_broker.doctor.checks import Check, CheckStatus, Report
from token_broker.settings import SettingsError, load_settings

__all__ = ["doctor_command"]

_FAILED = 1
_MISCONFIGURED = 2


def _check_url(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        usable = parts.port != 0 and parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable or parts.username or parts.query or parts.fragment:
        raise click.BadParameter("give the broker's address, such as https://voice.example.com")
    return value


@click.command("doctor")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON at the end, for machines.")
@click.option("--connect", is_flag=True, help="Hold a short, silent talk on each upstream as well.")
@click.option("--url", callback=_check_url, help="Look at a deployed broker from outside, too.")
def doctor_command(*, wants_json: bool, connect: bool, url: str | None) -> None:
    """Say why voice fails, and what to do about it: a line a check, in 30 seconds at most.

    The checks ask Azure exactly as the broker does, and change nothing. Exit code 0: no check failed; 1: one did;
    2: the configuration itself is wrong. No secret is printed, so the report can be shared.

    \b
    Examples:
      token-broker doctor
      token-broker doctor --connect
      token-broker doctor --url https://voice.example.com
      token-broker doctor --json | jq '.checks[] | select(.status == "failed")'
    """  # noqa: D301  # click's status for a paragraph that is not to be filled
    from token_broker.doctor.report import Lines
    from token_broker.doctor.run import run_doctor
    from token_broker.observability.logging import configure_logging
    from token_broker.sessions.agents import agents_secrets

    report = Report()
    lines = None if wants_json else Lines(sys.stdout)
    try:
        settings = load_settings()
    except SettingsError as error:
        report.checks += [Check("configuration", CheckStatus.FAILED, line) for line in error.lines]
        exit_code = _MISCONFIGURED
        if lines:
            for check in report.checks:
                lines.write(check)
    else:
        configure_logging(settings, secrets=agents_secrets(settings.agents_file))
        report = asyncio.run(run_doctor(settings, connect=connect, url=url, emit=lines.write if lines else _silently))
        exit_code = 0 if report.healthy else _FAILED
    if lines:
        lines.close(report)
    else:
        click.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    sys.exit(exit_code)


def _silently(_check: Check) -> None:
    """JSON is printed at the end."""
