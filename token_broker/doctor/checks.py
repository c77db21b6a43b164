"""The result of a check: its status, what was found, what was measured, how to repair it, and the known issue it is."""

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from token_broker.settings import ResourceSettings

__all__ = ["Check", "CheckStatus", "KnownIssue", "Report", "about_resource"]


class CheckStatus(StrEnum):
    """How bad a finding is. Only `failed` makes the exit code 1."""

    OK = "ok"
    NOTE = "note"  # worth knowing; nothing is wrong
    WARNING = "warning"  # voice works, but something should be repaired
    FAILED = "failed"


class KnownIssue(StrEnum):
    """The issues that the runbook describes, by their headings there."""

    CONNECTION_HANG = "Connection Hang (No Response)"
    MODEL_NOT_FOUND = "404 Model Not Found"
    UNAUTHORIZED = "401 Unauthorized"
    PLATFORM_UNAUTHORIZED = "401 Unauthorized (Platform Level)"
    BAD_REQUEST = "400 Bad Request on Token Request"
    SERVER_ERROR = "500 External Server Error on Token Request"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. It holds no text of a peer's and no secret, so that reports can be shared.

    `name` says what was checked (`mint ga`, `tls x.openai.azure.com`); `value` is what was measured, with its unit.
    """

    name: str
    status: CheckStatus
    finding: str
    value: str = ""
    remediation: str = ""
    known_issue: KnownIssue | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"known_issue": None if self.known_issue is None else self.known_issue.value}


def about_resource(check: Check, resource: ResourceSettings, *, is_only: bool) -> Check:
    """The check of one resource: it names the resource where there are others, and the file's keys where it has one."""
    return replace(
        check,
        name=check.name if is_only else f"{resource.name}: {check.name}",
        finding=resource.as_configured(check.finding),
        remediation=resource.as_configured(check.remediation),
    )


@dataclass(slots=True)
class Report:
    """Every check, in the order in which it was made."""

    checks: list[Check] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not any(check.status is CheckStatus.FAILED for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        counts = {status.value: sum(check.status is status for check in self.checks) for status in CheckStatus}
        return {"healthy": self.healthy, "counts": counts, "checks": [check.as_json() for check in self.checks]}
