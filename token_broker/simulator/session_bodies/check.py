"""Validates a body, and words what is wrong as Azure does: a code, a message, and the parameter's name."""

import json
from typing import Any, Never, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

UNKNOWN_PARAMETER = "unknown_parameter"
MISSING_PARAMETER = "missing_required_parameter"
INVALID_VALUE = "invalid_value"
INVALID_TYPE = "invalid_type"

_MISSING_TYPES = frozenset({"missing", "union_tag_not_found"})

Body = TypeVar("Body", bound=BaseModel)


class Strict(BaseModel):
    """A part of a body: unknown fields and loose types (`"1"` for 1) are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class InvalidRequest(Exception):  # noqa: N818 - it is what the caller is told, not how this module failed
    """What is wrong with a body, in the words of OpenAI's API: `code`, `message`, and the `param` it is about."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.type = "invalid_request_error"
        self.code = code
        self.message = message
        self.param = param


def parse_json(text: str | bytes) -> Any:
    """Reads strict JSON: no NaN, no infinities, no nesting beyond the interpreter's limit.

    Raises:
        InvalidRequest: it is none.

    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    # Deep nesting ends the parser with RecursionError, which would otherwise end the request with 500.
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("invalid_json", "We could not parse the JSON body of your request.") from error


def check(model: type[Body], value: object, prefix: str = "") -> Body:
    """Validates `value`, or raises an `InvalidRequest` about its most significant fault.

    An unknown field is reported first: a body of the other shape has many faults, and this one says why.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        raise _invalid_request((unknown or details)[0], value, prefix) from None


def describe_all(error: ValidationError, value: object, prefix: str = "") -> list[str]:
    """Every fault of `value` as one line each."""
    return [_invalid_request(detail, value, prefix).message for detail in error.errors(include_url=False)]


def _invalid_request(detail: ErrorDetails, body: object, prefix: str) -> InvalidRequest:
    param = _param(detail, body, prefix)
    kind = detail["type"]
    if kind == "extra_forbidden":
        return InvalidRequest(UNKNOWN_PARAMETER, f"Unknown parameter: '{param}'.", param)
    # Pydantic reports the union itself; Azure names the field that should have chosen its member.
    if kind == "union_tag_not_found":
        tag = detail["ctx"]["discriminator"].strip("'")
        param = f"{param}.{tag}" if param else tag
    if kind in _MISSING_TYPES:
        return InvalidRequest(MISSING_PARAMETER, f"Missing required parameter: '{param}'.", param)
    if kind.endswith("_type"):
        return InvalidRequest(INVALID_TYPE, f"Invalid type for '{param}': {detail['msg']}.", param)
    return InvalidRequest(INVALID_VALUE, f"Invalid value for '{param}': {detail['msg']}.", param)


def _param(detail: ErrorDetails, body: object, prefix: str) -> str:
    """The fault's place as `session.tools[0].name`.

    Pydantic's location also names the members of unions that it tried. They are no part of the body, so each step is
    looked up in the body before it counts.
    """
    path = prefix
    at: Any = body
    steps = detail["loc"]
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if isinstance(step, int) and isinstance(at, list) and step < len(at):
            path, at = f"{path}[{step}]", at[step]
        elif isinstance(at, dict) and (step in at or (last and detail["type"] == "missing")):
            path, at = f"{path}.{step}" if path else str(step), at.get(step)
    return path


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON")
