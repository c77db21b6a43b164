"""The arguments of a call: JSON as the model wrote it, checked against the tool's parameters."""

import json
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
from pydantic_core import from_json

from token_broker.security.tokens import Owner
from token_broker.sessions.agent_tools import FunctionTool

__all__ = ["bound_arguments", "checked_arguments", "faults_in"]

MAX_ARGUMENTS_BYTES = 65_536  # no answer of a model is longer, and checking a schema takes the event loop's time
_MAX_REASON_CHARS = 200
_SAID = ("types", "limit", "options", "pattern", "format", "expected_value", "multiple_of")  # what a keyword says


def checked_arguments(tool: FunctionTool, text: str) -> dict[str, Any] | str:
    """The arguments, without those that the broker binds; or the sentence for the model that names the wrong field."""
    return faults_in(tool.validator, text, ignored=tool.bind)


def bound_arguments(tool: FunctionTool, arguments: Mapping[str, Any], owner: Owner) -> dict[str, Any]:
    """The arguments with those that the broker fills in, whatever the model said."""
    values = {"principal": owner.principal, "user_id": owner.user_id, "session_id": owner.session_id}
    return {**arguments, **{name: values[bound] for name, bound in tool.bind.items()}}


def faults_in(
    validator: jsonschema_rs.Draft202012Validator, text: str, *, ignored: Mapping[str, Any] | None = None
) -> dict[str, Any] | str:
    """The object that `text` is, less the `ignored` names; or what is wrong with it, as a sentence for the model."""
    if len(text) > MAX_ARGUMENTS_BYTES:
        return "The arguments are too long. Nothing was called."
    try:
        # No arguments at all is how some models call a function that has none.
        found = from_json(text, allow_inf_nan=False) if text.strip() else {}
    except ValueError:
        return "The arguments are not complete JSON. Nothing was called."
    if not isinstance(found, dict):
        return "The arguments are not a JSON object. Nothing was called."
    arguments = {name: value for name, value in found.items() if name not in (ignored or {})}
    try:
        error = next(validator.iter_errors(arguments), None)
    except (ValueError, RecursionError):  # nested too deeply
        return "The arguments do not fit the parameters. Nothing was called."
    if error is None:
        return arguments
    return f"Wrong arguments: {_reason(error)}. Nothing was called; correct it and call again."


def _reason(error: jsonschema_rs.ValidationError) -> str:
    """Which field is wrong, and what it should be: both are the schema's own words, but for unknown names."""
    field = ".".join(str(part)[:64] for part in error.instance_path)[:_MAX_REASON_CHARS]
    match error.kind:
        case jsonschema_rs.ValidationErrorKind.Required(property=missing):
            return f"`{f'{field}.' if field else ''}{missing}` is missing"
        case jsonschema_rs.ValidationErrorKind.AdditionalProperties(unexpected=unknown):
            named = ", ".join(f"`{f'{field}.' if field else ''}{name[:64]}`" for name in unknown[:5])
            return f"{named} is not known"
        case kind:
            keyword = str(error.schema_path[-1]) if error.schema_path else "the schema"
            said = next((value for name in _SAID if (value := getattr(kind, name, None)) is not None), "")
            shown = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, default=str)
            return f"`{field or 'the arguments'}` does not fit {keyword} {shown[:_MAX_REASON_CHARS]}".rstrip()
