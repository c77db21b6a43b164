"""The report for people: lines as they come, with marks and colours on a terminal, plain in a pipe."""

from typing import TextIO

from rich.console import Console
from rich.text import Text

from token_broker.doctor.checks import Check, Mark, Report

__all__ = ["Lines"]

_MARKS = {
    Mark.OK: ("✓", "ok", "green"),
    Mark.NOTE: ("·", "note", "cyan"),
    Mark.WARNING: ("!", "WARN", "yellow"),
    Mark.FAILED: ("✗", "FAIL", "bold red"),
}
_NAME_COLUMNS = 26
_WIDTH_IN_A_PIPE = 10_000  # one line a check, however long: a pipe's reader is grep


class Lines:
    """Writes a line a check."""

    def __init__(self, stream: TextIO) -> None:
        self._terminal = stream.isatty()
        self._last_mend = ""
        self._console = Console(
            file=stream, highlight=False, soft_wrap=True, width=None if self._terminal else _WIDTH_IN_A_PIPE
        )

    def write(self, check: Check) -> None:
        """Mark, name, figure, finding, and where there are any the known trouble's name and the mend."""
        symbol, word, style = _MARKS[check.mark]
        line = Text(symbol if self._terminal else f"{word:<4}", style)
        line.append(f" {check.name:<{_NAME_COLUMNS}} ", "bold")
        line.append(f"{check.figure:>8}  ", "dim")
        line.append(check.finding, "")
        if check.trouble is not None:
            line.append(f"  [{check.trouble}]", style)
        if check.mend:
            line.append(f"  → {'as above' if check.mend == self._last_mend else check.mend}", "italic")
            self._last_mend = check.mend
        self._console.print(line)

    def close(self, report: Report) -> None:
        """The last line: whether all is well."""
        failed = sum(check.mark is Mark.FAILED for check in report.checks)
        warnings = sum(check.mark is Mark.WARNING for check in report.checks)
        said = "all is well" if report.healthy else f"{failed} failed"
        self._console.print(
            Text(f"{said}{f', {warnings} to look at' if warnings else ''}", "green" if report.healthy else "bold red")
        )
