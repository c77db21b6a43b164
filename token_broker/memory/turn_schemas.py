"""The memory routes' requests and answers (docs/api.md §7)."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from token_broker.memory.types import LAST_PLACE, ensure_storable
from token_broker.web.requests import whole_number

__all__ = [
    "EnrichAnswer",
    "EnrichBatch",
    "Erased",
    "SinkErased",
    "Transcript",
    "TurnAnswer",
    "TurnPage",
    "TurnReceipt",
    "TurnRequest",
]


def _utc(time: datetime) -> datetime:
    """A time without an offset is taken for UTC."""
    try:
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:  # the year 10,000 or 0 in UTC, which pydantic would let through as a failure of ours
        time = datetime.min.replace(tzinfo=UTC)
    if not _EARLIEST <= time <= _LATEST:
        raise ValueError("is not a time between 1970 and 9000")
    return time


_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(9000, 1, 1, tzinfo=UTC)

# What the validators check, as a JSON Schema can say it.
_STORABLE = {"pattern": r"^[^\u0000]*$"}
_KNOWN_TIME = {"pattern": r"^(19[7-9]|[2-8][0-9]{2})[0-9]-"}

_Content = Annotated[str, Field(min_length=1, json_schema_extra=_STORABLE), AfterValidator(ensure_storable)]
_SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{16,64}$")]
_AgentId = Annotated[
    str, Field(min_length=1, max_length=64, json_schema_extra=_STORABLE), AfterValidator(ensure_storable)
]
_TurnId = Annotated[
    str, Field(min_length=1, max_length=128, json_schema_extra=_STORABLE), AfterValidator(ensure_storable)
]
_Label = Annotated[
    str, Field(min_length=1, max_length=64, json_schema_extra=_STORABLE), AfterValidator(ensure_storable)
]
_Place = Annotated[int, Field(ge=0, lt=LAST_PLACE), BeforeValidator(whole_number)]
_Time = Annotated[datetime, Field(json_schema_extra=_KNOWN_TIME), AfterValidator(_utc)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TurnRequest(_Request):
    """A turn that the browser reports."""

    session_id: _SessionId
    agent_id: _AgentId
    role: Literal["user", "assistant"]
    content: _Content
    turn_id: _TurnId | None = None
    sequence: _Place | None = Field(None, description="The item's place in its connection.")
    created_at: _Time | None = None
    interrupted: bool = False


class TurnAnswer(BaseModel):
    """The turn is on disk."""

    status: Literal["success"] = "success"
    message: str = "Turn persisted"
    turn_id: str
    duplicate: bool


class Transcript(_Request):
    """Something that was said; a `speaker` other than `user` is the assistant."""

    text: _Content
    session_id: _SessionId
    speaker: _Label
    agent_id: _AgentId | None = None
    channel: _Label | None = None
    turn_id: _TurnId | None = None


class EnrichBatch(_Request):
    """Several at once, all of one session."""

    transcripts: Annotated[list[Transcript], Field(min_length=1, max_length=100)]


class EnrichAnswer(BaseModel):
    """All of it is on disk: `accepted` now, `duplicates` before."""

    success: Literal[True] = True
    session_id: str
    accepted: int
    duplicates: int


class TurnReceipt(BaseModel):
    """A stored turn and how far it has come."""

    turn_id: str
    agent_id: str | None
    role: Literal["user", "assistant"]
    content: str
    sequence: int | None
    created_at: datetime
    interrupted: bool
    channel: str | None
    source: Literal["proxy", "browser"]
    delivery: Literal["queued", "delivered", "dead"]


class TurnPage(BaseModel):
    """A page of a session's turns, in order; `next` is what to send as `after` for the one behind it."""

    session_id: str
    turns: list[TurnReceipt]
    next: str | None


class SinkErased(BaseModel):
    """How far a sink has come: `done`, `accepted` and followed to its end, or `cannot` yet and asked again."""

    sink: str
    state: Literal["done", "accepted", "cannot"]


class Erased(BaseModel):
    """A session that is no more here; `turns` is how many it had, `sinks` where else it was."""

    status: Literal["forgotten"] = "forgotten"
    session_id: str
    turns: int
    sinks: list[SinkErased] = []
