"""What a check finds: a mark, a figure, a sentence, the mend, and which of the runbook's known troubles it is."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Check", "Mark", "Report", "Trouble"]


class Mark(StrEnum):
    """How bad it is; only `failed` makes the exit code 1."""

    OK = "ok"
    NOTE = "note"  # so it is, and nothing is wrong with it
    WARNING = "warning"  # voice works, and something should be mended
    FAILED = "failed"


class Trouble(StrEnum):
    """The runbook's known troubles, by their headings there."""

    CONNECTION_HANG = "Connection Hang (No Response)"
    MODEL_NOT_FOUND = "404 Model Not Found"
    UNAUTHORIZED = "401 Unauthorized"
    PLATFORM_UNAUTHORIZED = "401 Unauthorized (Platform Level)"
    BAD_REQUEST = "400 Bad Request on Token Request"
    SERVER_ERROR = "500 External Server Error on Token Request"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. All of it is ours, and safe to show: no text of a peer's, no secret.

    `name` says what was looked at (`mint ga`, `tls x.openai.azure.com`); `figure` what was measured, with its unit.
    """

    name: str
    mark: Mark
    finding: str
    figure: str = ""
    mend: str = ""
    trouble: Trouble | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"trouble": None if self.trouble is None else self.trouble.value}


@dataclass(slots=True)
class Report:
    """Every check in the order it was made."""

    checks: list[Check] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not any(check.mark is Mark.FAILED for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        counts = {mark.value: sum(check.mark is mark for check in self.checks) for mark in Mark}
        return {"healthy": self.healthy, "counts": counts, "checks": [check.as_json() for check in self.checks]}
