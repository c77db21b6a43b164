"""The report for people: lines as they come, with statuses and colours on a terminal, plain in a pipe."""

from typing import TextIO

from rich.console import Console
from rich.text import Text

from token_broker.doctor.checks import Check, CheckStatus, Report

__all__ = ["Lines"]

_STATUS_STYLES = {
    CheckStatus.OK: ("✓", "ok", "green"),
    CheckStatus.NOTE: ("·", "note", "cyan"),
    CheckStatus.WARNING: ("!", "WARN", "yellow"),
    CheckStatus.FAILED: ("✗", "FAIL", "bold red"),
}
_NAME_COLUMNS = 26
_WIDTH_IN_A_PIPE = 10_000  # one line a check, however long: a pipe's reader is grep


class Lines:
    """Writes a line a check."""

    def __init__(self, stream: TextIO) -> None:
        self._terminal = stream.isatty()
        self._last_remediation = ""
        self._console = Console(
            file=stream, highlight=False, soft_wrap=True, width=None if self._terminal else _WIDTH_IN_A_PIPE
        )

    def write(self, check: Check) -> None:
        """CheckStatus, name, value, finding, and where there are any the known known_issue's name and the remediation."""
        symbol, word, style = _STATUS_STYLES[check.status]
        line = Text(symbol if self._terminal else f"{word:<4}", style)
        line.append(f" {check.name:<{_NAME_COLUMNS}} ", "bold")
        line.append(f"{check.value:>8}  ", "dim")
        line.append(check.finding, "")
        if check.known_issue is not None:
            line.append(f"  [{check.known_issue}]", style)
        if check.remediation:
            line.append(
                f"  → {'as above' if check.remediation == self._last_remediation else check.remediation}", "italic"
            )
            self._last_remediation = check.remediation
        self._console.print(line)

    def close(self, report: Report) -> None:
        """The last line: whether all is well."""
        failed = sum(check.status is CheckStatus.FAILED for check in report.checks)
        warnings = sum(check.status is CheckStatus.WARNING for check in report.checks)
        said = "all is well" if report.healthy else f"{failed} failed"
        self._console.print(
            Text(f"{said}{f', {warnings} to look at' if warnings else ''}", "green" if report.healthy else "bold red")
        )
