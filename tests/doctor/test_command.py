"""The command: exit codes, one line a check in a pipe, JSON, and nothing else on stdout."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from token_broker.doctor.checks import Check, CheckStatus, KnownIssue, Report
from token_broker.doctor.command import doctor_command
from token_broker.doctor.report import ReportWriter
from token_broker.simulator import RunningSimulator, run_in_thread

PROGRAM = "from token_broker.doctor.command import doctor_command; doctor_command(prog_name='doctor')"


@pytest.fixture
def azure() -> Iterator[RunningSimulator]:
    with run_in_thread() as running:
        yield running


def doctor(folder: Path, azure: RunningSimulator, *arguments: str, key: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own: it sets logging up, and what it prints must be all there is."""
    ours = ("AZURE_", "BROKER_", "ZEP_", "HOST", "PORT")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "AZURE_VOICELIVE_ENDPOINT": azure.base_url,
        "AZURE_VOICELIVE_KEY": key,
        "AZURE_VOICELIVE_AUTH": "key",
        "AZURE_VOICELIVE_PROJECT_NAME": "demo",
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_success_exits_0_with_a_line_a_check(azure: RunningSimulator, tmp_path: Path) -> None:
    ran = doctor(tmp_path, azure, key="simulated-key")
    assert ran.returncode == 0, ran
    *lines, last = ran.stdout.splitlines()
    assert last == "all is well"
    assert all(line.startswith("ok  ") for line in lines)
    assert "\x1b" not in ran.stdout
    assert list(tmp_path.iterdir()) == []  # it changes nothing


def test_failure_exits_1_and_json_agrees(azure: RunningSimulator, tmp_path: Path) -> None:
    plain = doctor(tmp_path, azure, key="canary-key-5f1c")
    as_json = doctor(tmp_path, azure, "--json", key="canary-key-5f1c")
    assert (plain.returncode, as_json.returncode) == (1, 1)
    report = json.loads(as_json.stdout)
    assert report["healthy"] is False
    failed = [check["name"] for check in report["checks"] if check["status"] == "failed"]
    assert len(failed) == report["counts"]["failed"]
    shown = [line for line in plain.stdout.splitlines() if line.startswith("FAIL")]
    assert [line[5:31].rstrip() for line in shown] == failed
    assert all(f"[{KnownIssue.UNAUTHORIZED}]" in line for line in shown[:-1])
    for ran in (plain, as_json):
        assert "canary" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_wrong_configuration_exits_2(
    tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no .env
    ran = CliRunner().invoke(doctor_command, arguments, env={"BROKER_RETRY_ATTEMPTS": "0", "BROKER_TOKEN_TTL_S": "1"})
    assert ran.exit_code == 2
    assert "BROKER_RETRY_ATTEMPTS" in ran.stdout
    assert "BROKER_TOKEN_TTL_S" in ran.stdout
    if arguments:
        assert json.loads(ran.stdout)["counts"]["failed"] == 2


def test_value_in_quotes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(doctor_command, env={"AZURE_VOICELIVE_KEY": '"canary-0123456789"'})
    assert ran.exit_code == 2
    assert "AZURE_VOICELIVE_KEY: is in quotes, which `docker --env-file` passes on" in ran.stdout
    assert "canary" not in ran.stdout


@pytest.mark.parametrize(
    "url", ["voice.example", "ftp://voice.example", "https://user:pw@voice.example", "http://[::1", "http://x:99999"]
)
def test_bad_url_is_a_usage_error(url: str) -> None:
    ran = CliRunner().invoke(doctor_command, ["--url", url])
    assert ran.exit_code == 2
    assert "give the broker's address" in ran.stderr


def test_help_shows_examples() -> None:
    ran = CliRunner().invoke(doctor_command, ["--help"])
    assert ran.exit_code == 0
    assert "token-broker doctor --url https://voice.example.com\n" in ran.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


CHECK = Check("mint ga", CheckStatus.FAILED, "says [bold]no[/bold]", "HTTP 401", "repair [it]", KnownIssue.UNAUTHORIZED)


def test_terminal_lines_are_not_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    lines = ReportWriter(stream)
    lines.write(CHECK)
    lines.write(CHECK)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("\x1b[1;31m✗")
    assert "says [bold]no[/bold]" in first
    assert "→ repair [it]" in first
    assert "→ as above" in second


def test_json_has_every_field_of_a_check() -> None:
    (check,) = json.loads(json.dumps(Report([CHECK]).as_json()))["checks"]
    assert check == {
        "name": "mint ga",
        "status": "failed",
        "finding": "says [bold]no[/bold]",
        "value": "HTTP 401",
        "remediation": "repair [it]",
        "known_issue": "401 Unauthorized",
    }
