"""Answers that Azure did not finish: what `response.done` says of them, and what the client is told."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from token_broker.security.tokens import Owner

__all__ = ["ANSWER_FAILED", "UNKNOWN", "FailedAnswer", "failed_answer", "log_failed_answer"]

log = structlog.get_logger("token_broker.relay")

ANSWER_FAILED = "answer_failed"
"""The code of the event that tells a client of it."""

UNKNOWN = "unknown"
"""The code of a failure for which Azure names none."""

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FILTERED = "content_filter"


@dataclass(frozen=True, slots=True)
class FailedAnswer:
    """An answer that ended `failed`, or `incomplete` by the content filter. `code` is Azure's, or `unknown`."""

    response_id: str
    status: Literal["failed", "incomplete"]
    code: str

    @property
    def retryable(self) -> bool:
        """Whether the same question may be answered when it is asked again."""
        return self.status == "failed"

    @property
    def message(self) -> str:
        """What the client is told. Azure's own text may quote what it was sent."""
        if self.retryable:
            return "Azure failed to answer: ask again"
        return "Azure's content filter ended the answer"


def failed_answer(event: Mapping[str, Any]) -> FailedAnswer | None:
    """The failed answer that a `response.done` tells of. A cancelled answer, or a full one, is no failure."""
    response = event.get("response")
    if not isinstance(response, dict):
        return None
    status, response_id = response.get("status"), response.get("id")
    details = response.get("status_details")
    details = details if isinstance(details, dict) else {}
    if status == "failed":
        error = details.get("error")
        named = [error.get("code"), error.get("type")] if isinstance(error, dict) else []
    elif status == "incomplete" and details.get("reason") == _FILTERED:
        named = [_FILTERED]
    else:
        return None
    codes = [code for code in named if isinstance(code, str) and _CODE.fullmatch(code)]
    return FailedAnswer(response_id if isinstance(response_id, str) else "", status, codes[0] if codes else UNKNOWN)


def log_failed_answer(failed: FailedAnswer, owner: Owner, agent_id: str, *, asked_again: bool = False) -> None:
    """The line that tells an operator of it."""
    log.warning(
        ANSWER_FAILED,
        session_id=owner.session_id,
        agent_id=agent_id,
        response_id=failed.response_id[:64],
        status=failed.status,
        code=failed.code,
        asked_again=asked_again,
    )
