"""What a check finds: a status, a value, a sentence, the remediation, and which of the runbook's known troubles it is."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Check", "CheckStatus", "Report", "KnownIssue"]


class CheckStatus(StrEnum):
    """How bad it is; only `failed` makes the exit code 1."""

    OK = "ok"
    NOTE = "note"  # so it is, and nothing is wrong with it
    WARNING = "warning"  # voice works, and something should be mended
    FAILED = "failed"


class KnownIssue(StrEnum):
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

    `name` says what was looked at (`mint ga`, `tls x.openai.azure.com`); `value` what was measured, with its unit.
    """

    name: str
    status: CheckStatus
    finding: str
    value: str = ""
    remediation: str = ""
    known_issue: KnownIssue | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"known_issue": None if self.known_issue is None else self.known_issue.value}


@dataclass(slots=True)
class Report:
    """Every check in the order it was made."""

    checks: list[Check] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not any(check.status is CheckStatus.FAILED for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        counts = {status.value: sum(check.status is status for check in self.checks) for status in CheckStatus}
        return {"healthy": self.healthy, "counts": counts, "checks": [check.as_json() for check in self.checks]}
