"""Makes `strategies/session_model/azure_sessions.json`: the sessions of all dialects as JSON Schema.

    python -m tests.strategies.published_sessions

It is made from the types of the packages `openai` and `azure-ai-voicelive`, and of what docs/azure.md has beyond them.
A test holds the file to it.
"""

import json
import types
import typing
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from azure.ai.voicelive import models
from azure.ai.voicelive._utils.model_base import Model
from openai.types.live import SessionConfig
from openai.types.realtime import RealtimeSessionCreateRequest

from strategies.session_model import azure_schema
from tests.relay.support.official_models import hints_of

FILE = Path(azure_schema.__file__).with_name("azure_sessions.json")
READ_ON = "2026-11-28"

# Beside Microsoft's package: what its reference page has, or the live echo (docs/azure.md §6.2).
_DOCUMENTED: dict[str, dict[str, Any]] = {
    "AudioInputTranscriptionOptions": {"prompt": {"type": "string"}},
    **{
        name: {
            "idle_timeout_ms": {"type": "integer"},
            "appended_text_after_truncation": {"type": "string"},
            "speech_duration_ms": {"type": "integer"},
            "speech_duration_assistant_speaking_ms": {"type": "integer"},
        }
        for name in ("ServerVad", "AzureSemanticVad", "AzureSemanticVadEn", "AzureSemanticVadMultilingual")
    },
}


def made() -> dict[str, Any]:
    """The file's content."""
    definitions: dict[str, Any] = {}
    root = _schema(models.RequestSession, definitions)
    return {
        "read_on": READ_ON,
        "sources": {
            "ga": f"openai {version('openai')}",
            "live": f"openai {version('openai')}",
            "preview": f"azure-ai-voicelive {version('azure-ai-voicelive')}",
        },
        "ga": _plain(RealtimeSessionCreateRequest.model_json_schema()),
        "live": _plain(SessionConfig.model_json_schema()),
        "preview": {**root, "$defs": dict(sorted(definitions.items()))},
    }


def text() -> str:
    """The file as it is written."""
    return json.dumps(made(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _plain(schema: Any) -> Any:
    """OpenAI's schema without what is for readers."""
    if isinstance(schema, dict):
        kept = {}
        for name, value in schema.items():
            if name == "properties":
                kept[name] = {key: _plain(inner) for key, inner in value.items()}
            elif name not in {"title", "description", "default", "additionalProperties"} or isinstance(value, dict):
                kept[name] = _plain(value)
        return kept
    return [_plain(each) for each in schema] if isinstance(schema, list) else schema


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one of Microsoft's type hints. Models become definitions."""
    if isinstance(hint, typing.ForwardRef):
        hint = getattr(models, hint.__forward_arg__.removeprefix("_models."))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds: list[dict[str, Any]] = []
        for each in arguments:
            schema = _schema(each, definitions)
            if schema not in kinds:
                kinds.append(schema)
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Literal:
        values = [getattr(value, "value", value) for value in arguments]
        return {"const": values[0]} if len(values) == 1 else {"enum": values}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if isinstance(hint, type) and issubclass(hint, Model):
        return _reference(hint, definitions)
    if hint is type(None):
        return {"type": "null"}
    names = {bool: "boolean", int: "integer", float: "number"}
    if isinstance(hint, type) and hint in names:
        return {"type": names[hint]}
    return {"type": "string"} if isinstance(hint, type) and issubclass(hint, str) else {}


def _reference(model: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    name = model.__name__
    hints = hints_of(model)
    kinds = model.__dict__.get("__mapping__")
    if kinds:
        return {"anyOf": [_reference(kind, definitions) for _, kind in sorted(kinds.items())]}
    if name not in definitions:
        definitions[name] = {}  # a model may hold itself
        fields = {field: _schema(hint, definitions) for field, hint in hints.items()} | _DOCUMENTED.get(name, {})
        needed = [field for field, hint in hints.items() if type(None) not in get_args(hint)]
        definitions[name] = {"type": "object", "properties": fields, "required": needed}
    return {"$ref": f"#/$defs/{name}"}


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
