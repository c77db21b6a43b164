"""Faults inside talks. They reach talks that are going on as well: each is looked for when its moment comes.

`interruptions.py` carries out those that stop what a talk sends, `talk_behaviour.py` those that change what it does.
"""

from typing import ClassVar, Literal

from pydantic import Field

from token_broker.simulator.faults.fault_base import BaseFault, Protocol, Seconds

Point = Literal[
    "now",
    "handshake",
    "session.created",
    "session.updated",
    "speech_started",
    "speech_stopped",
    "committed",
    "transcript",
    "response.created",
    "first_content",
    "sound",
    "last_sound",
    "between_items",
    "last_content",
    "response.done",
]
"""A moment of a talk. `now` is when the fault is set, for the talks that are open then; `handshake` comes before any
event; `sound` when `ms` of a response were sent; `last_sound` and `last_content` before the events that end them."""


class _TalkFault(BaseFault):
    protocols: ClassVar[frozenset[Protocol]] = frozenset()


class InterruptionFault(_TalkFault):
    """Stops what a talk sends, `seconds` after the point `at`."""

    at: Point = "now"
    ms: int = Field(default=600, ge=0)
    """Of sound, for the point `sound`."""
    skip: int = Field(default=0, ge=0)
    """How often a talk passes the point unharmed first."""
    seconds: Seconds = 0.0


class CutFault(InterruptionFault):
    """The socket is cut: reset, ended without a close frame, or closed with `code` and `reason`."""

    fault: Literal["cut"]
    how: Literal["reset", "eof", "close"] = "reset"
    code: int = Field(default=1011, ge=1000, le=4999)
    reason: str = Field(default="simulated", max_length=100)


class SilenceFault(InterruptionFault):
    """The socket stays open and sends nothing more. With `lasts_s` it wakes, and sends all that it held back."""

    fault: Literal["silence"]
    lasts_s: Seconds | None = None
    then: list[Literal["call", "session_expired", "close"]] = Field(default=[])
    """What it sends besides, once it wakes."""
    pongs: bool = True
    """Whether pings are answered meanwhile."""


class RefuseUpdateFault(_TalkFault):
    """A `session.update` with this field is refused as a whole, so that the session keeps what it had.

    `contains` then means the field's value. `close` ends the talk as well.
    """

    fault: Literal["refuse_update"]
    field: str | None = None
    """Its place in the session, such as `audio.output.voice` or `tools[2].description`; null: every update."""
    names: Literal["param", "message"] = "param"
    """Where the error names the field."""
    code: str = "invalid_value"
    type: Literal["invalid_request_error", "server_error"] = "invalid_request_error"
    close: int | None = Field(default=None, ge=1000, le=4999)


class IgnoreUpdateFault(_TalkFault):
    """A `session.update` is confirmed, and these fields stay as they were: the default persona, at the beginning."""

    fault: Literal["ignore_update"]
    fields: list[str] = Field(default=["instructions"], min_length=1)


class LateUpdateFault(_TalkFault):
    """A `session.update` takes effect, and is confirmed, so many seconds later."""

    fault: Literal["late_update"]
    seconds: Seconds = 3.0


class StrictHistoryFault(_TalkFault):
    """Refuses items that one or the other Azure has been seen to refuse."""

    fault: Literal["strict_history"]
    refuses: list[Literal["assistant_audio", "foreign_text", "long_ids"]] = Field(
        default=["assistant_audio", "foreign_text", "long_ids"]
    )
    """`foreign_text`: `output_text` on Voice Live and the preview, `text` on GA. `long_ids`: over 32 characters."""


class TextAnswersFault(_TalkFault):
    """Answers are text alone once the history has `after` text turns of the assistant's from the client."""

    fault: Literal["text_answers"]
    after: int = Field(default=3, ge=0)
    unless_said: Literal["anywhere", "response", "nowhere"] = "anywhere"
    """Where modalities that were said explicitly help: in an update or a response, in a response only, or not."""


class FailedAnswersFault(_TalkFault):
    """Each answer fails with `code`, and with `close` the talk ends after it."""

    fault: Literal["failed_answers"]
    code: str = "insufficient_quota"
    message: str = "You exceeded your current quota, please check your plan and billing details."
    close: int | None = Field(default=1011, ge=1000, le=4999)


class SlowAnswersFault(_TalkFault):
    """Each answer takes so many seconds from `response.created` to its first content."""

    fault: Literal["slow_answers"]
    seconds: Seconds = 2.5


class LateMcpFault(_TalkFault):
    """A call to an MCP server outlasts its answer: its result comes so many seconds later, and nobody speaks of it."""

    fault: Literal["late_mcp"]
    seconds: Seconds = 6.0


class SessionExpiresFault(_TalkFault):
    """A new session states that it ends in so many seconds, which may be past; null: it states no `expires_at`."""

    fault: Literal["session_expires"]
    seconds: float | None = Field(default=20.0, ge=-86_400, le=86_400)
    ends: bool = True
    """Whether it ends then, where that is in the future."""
