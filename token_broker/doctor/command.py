"""The command `token-broker doctor`.

Its imports are inside the function: every other command loads this module to list its commands.
"""

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


class _BrokerUrl(click.ParamType[str]):
    """The address of a broker: http or https, without user, query or fragment."""

    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.port != 0 and parts.scheme in {"http", "https"} and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable or parts.username or parts.query or parts.fragment:
            self.fail("give the broker's address, such as https://voice.example.com", param, ctx)
        return value


@click.command("doctor")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON at the end, for machines.")
@click.option("--connect", is_flag=True, help="Also hold a short, silent talk on each upstream.")
@click.option("--ping-hooks", "pings_hooks", is_flag=True, help="Also send each tool, guardrail and summary a ping.")
@click.option("--url", type=_BrokerUrl(), help="Also check a deployed broker from outside.")
def doctor_command(*, wants_json: bool, connect: bool, pings_hooks: bool, url: str | None) -> None:
    """Say why voice fails, and what to do about it: one line a check, in 30 seconds at most.

    The checks ask Azure exactly as the broker does, and change nothing. Exit code 0: no check failed; 1: one did;
    2: the configuration itself is wrong. No secret is printed, so the report can be shared.

    \b
    Examples:
      token-broker doctor
      token-broker doctor --connect
      token-broker doctor --ping-hooks
      token-broker doctor --url https://voice.example.com
      token-broker doctor --json | jq '.checks[] | select(.status == "failed")'
    """  # noqa: D301  # \b tells click not to fill the paragraph
    from token_broker.doctor.report import ReportWriter
    from token_broker.doctor.run import run_doctor
    from token_broker.observability.logging import configure_logging
    from token_broker.sessions.agents import agents_secrets

    report = Report()
    writer = None if wants_json else ReportWriter(sys.stdout)

    def emit(check: Check) -> None:
        if writer:
            writer.write(check)

    try:
        settings = load_settings()
    except SettingsError as error:
        report.checks += [Check("configuration", CheckStatus.FAILED, line) for line in error.lines]
        exit_code = _MISCONFIGURED
        for check in report.checks:
            emit(check)
    else:
        configure_logging(settings, secrets=agents_secrets(settings.agents_file))
        report = asyncio.run(run_doctor(settings, connect=connect, pings_hooks=pings_hooks, url=url, emit=emit))
        exit_code = 0 if report.healthy else _FAILED
    if writer:
        writer.close(report)
    else:
        click.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    sys.exit(exit_code)
