"""What a guardrail says of the user's words. Pure."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

__all__ = ["Verdict", "parse_verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with the user's words. `text` replaces them; `say` is said where they are refused.

    `failed`: the server did not decide, and `action` is what the agent's `fail` has for that: "open" allows, "closed"
    refuses.
    """

    action: Literal["allow", "replace", "refuse"]
    text: str | None = None
    say: str | None = None
    failed: bool = False


_Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=32_768)]


class _Decision(BaseModel):
    """Other keys are ignored, so that a server may say more."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)


class _Allow(_Decision):
    action: Literal["allow"]


class _Replace(_Decision):
    action: Literal["replace"]
    text: _Words


class _Refuse(_Decision):
    action: Literal["refuse"]
    say: _Words | None = None


_VERDICTS: TypeAdapter[_Allow | _Replace | _Refuse] = TypeAdapter(
    Annotated[_Allow | _Replace | _Refuse, Field(discriminator="action")]
)


def parse_verdict(body: str) -> Verdict | None:
    """The verdict that a 2xx carries; None where it is none."""
    try:
        answer = _VERDICTS.validate_json(body)
    except ValidationError:
        return None
    match answer:
        case _Replace(text=text):
            return Verdict("replace", text=text)
        case _Refuse(say=say):
            return Verdict("refuse", say=say)
        case _:
            return Verdict("allow")
