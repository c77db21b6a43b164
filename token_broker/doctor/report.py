"""The report for people: one line a check, with symbols and colours on a terminal, plain in a pipe."""

from typing import TextIO

from rich.console import Console
from rich.text import Text

from token_broker.doctor.checks import Check, CheckStatus, Report

__all__ = ["ReportWriter"]

_STATUS_STYLES = {
    CheckStatus.OK: ("✓", "ok", "green"),
    CheckStatus.NOTE: ("·", "note", "cyan"),
    CheckStatus.WARNING: ("!", "WARN", "yellow"),
    CheckStatus.FAILED: ("✗", "FAIL", "bold red"),
}
_NAME_COLUMNS = 26
_WIDTH_IN_A_PIPE = 10_000  # rich would break lines at 80 columns; grep needs each check on one line


class ReportWriter:
    """Writes each check as it is made, and a summary at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._terminal = stream.isatty()
        self._last_remediation = ""
        self._console = Console(
            file=stream, highlight=False, soft_wrap=True, width=None if self._terminal else _WIDTH_IN_A_PIPE
        )

    def write(self, check: Check) -> None:
        """Writes status, name, value and finding; then the known issue and the remediation, where there are any."""
        symbol, word, style = _STATUS_STYLES[check.status]
        # Text, not markup: findings may hold brackets, which rich would take for its own.
        line = Text(symbol if self._terminal else f"{word:<4}", style)
        line.append(f" {check.name:<{_NAME_COLUMNS}} ", "bold")
        line.append(f"{check.value:>8}  ", "dim")
        line.append(check.finding, "")
        if check.known_issue is not None:
            line.append(f"  [{check.known_issue}]", style)
        if check.remediation:
            repeated = check.remediation == self._last_remediation
            line.append(f"  → {'as above' if repeated else check.remediation}", "italic")
            self._last_remediation = check.remediation
        self._console.print(line)

    def close(self, report: Report) -> None:
        """Writes the last line: whether all is well."""
        failed = sum(check.status is CheckStatus.FAILED for check in report.checks)
        warnings = sum(check.status is CheckStatus.WARNING for check in report.checks)
        summary = "all is well" if report.healthy else f"{failed} failed"
        if warnings:
            summary += f", {warnings} to look at"
        self._console.print(Text(summary, "green" if report.healthy else "bold red"))
