"""What was used, as the command and the route show it."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from token_broker.memory.drivers.database import Database

__all__ = ["UsageEntry", "UsageReport", "read_usage", "since_day"]

_EPOCH = date(1970, 1, 1)
_DAYS_BACK = re.compile(r"([0-9]{1,4})d")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class UsageEntry(BaseModel):
    """A sum of usage. What is unknown is null, and so is what the sum is not grouped by."""

    model_config = ConfigDict(frozen=True)

    day: date | None = Field(None, description="A UTC day.")
    principal: str | None = Field(None, description="Empty once the user was erased.")
    session_id: str | None = None
    talk_id: str | None = None
    agent_id: str | None = Field(None, description="The agent that had the talk then.")
    resource: str | None = None
    transport: str | None = None
    dialect: str | None = None
    talks: int
    seconds: float | None = Field(None, description="From the first session of Azure's until the end.")
    responses: int | None = None
    unmeasured: int | None = Field(None, description="Responses of which Azure did not say what they cost.")
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_text_tokens: int | None = None
    input_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    cached_text_tokens: int | None = Field(None, description="Within the input, like the other cached ones.")
    cached_audio_tokens: int | None = None
    cached_image_tokens: int | None = None
    output_text_tokens: int | None = None
    output_audio_tokens: int | None = None
    transcription_seconds: float | None = None
    transcription_input_tokens: int | None = None
    transcription_output_tokens: int | None = None
    tools_run: int | None = None
    seen: bool = Field(description="The broker heard all of it.")
    complete: bool = Field(description="All of it has ended, and nothing is known to be missing.")
    end: str | None = Field(None, description="How the talk ended; null while it goes on, and where nobody knows.")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "UsageEntry":
        """The entry for a sum of the store's."""
        times = {
            name: row[key] for name, key in (("seconds", "live_ms"), ("transcription_seconds", "transcription_ms"))
        }
        return cls(
            **{key: row[key] for key in row.keys() & cls.model_fields.keys() - {"day"}},
            **{name: None if ms is None else ms / 1000 for name, ms in times.items()},
            day=_EPOCH + timedelta(days=row["day"]) if "day" in row else None,
            end=row.get("ended"),
        )


class UsageReport(BaseModel):
    """What was used since a day; `truncated` where there is more than is shown."""

    model_config = ConfigDict(frozen=True)

    since: date | None
    by: str | None
    usage: list[UsageEntry]
    truncated: bool


async def read_usage(
    database: Database, *, by: str | None, since: int | None, limit: int | None = None, **of: str | None
) -> UsageReport:
    """The sums by a group, or each talk's by resource and day. `of` is a principal or a session. Raises StoreError."""
    from token_broker.usage.rows import sum_usage

    most = None if limit is None else limit + 1
    found = await database.read(partial(sum_usage, by=by, since_day=since, limit=most, **of), pool="bulk")  # type: ignore[arg-type]
    return UsageReport(
        since=None if since is None else _EPOCH + timedelta(days=since),
        by=by,
        usage=[UsageEntry.of(row) for row in found[:limit]],
        truncated=limit is not None and len(found) > limit,
    )


def since_day(text: str, *, now: datetime | None = None) -> int:
    """The UTC day, counted from 1970, of a date such as 2026-11-29, or of so many days ago: 7d. Raises ValueError."""
    if (back := _DAYS_BACK.fullmatch(text)) is not None:
        return ((now or datetime.now(UTC)).date() - _EPOCH).days - int(back[1])
    try:
        if _DATE.fullmatch(text) is None:
            raise ValueError
        return (date.fromisoformat(text) - _EPOCH).days
    except ValueError:
        raise ValueError(f"no date and no number of days: {text!r}") from None
