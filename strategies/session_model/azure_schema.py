"""Azure's published schema of a session, and where raw fields of an agent differ from it. Pure.

`azure_sessions.json` has it as JSON Schema with the date and the packages that it was made from;
`tests/strategies/published_sessions.py` makes it. Of JSON Schema only what it uses is understood here.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from strategies.session_model.agent_settings import AnyDialect

__all__ = ["schema_faults", "schema_source"]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}

Schema = Mapping[str, Any]


def schema_faults(value: Any, dialect: AnyDialect, *, at: str = "") -> list[str]:
    """A line `place: what is wrong` for each fault of a partial session, or of what is at the path `at` in one.

    What is at a path has to be whole: a field that Azure needs is missed there.
    """
    root = _published()[dialect]
    schema: Schema = root
    for name in filter(None, at.split(".")):
        schema = next(kind["properties"][name] for kind in _kinds(schema, root) if name in kind.get("properties", {}))
    found = list(_faults(value, schema, root, at))
    if at and not found and isinstance(value, dict):
        needed = [set(kind.get("required", ())) for kind in _meant(value, _kinds(schema, root), root)]
        missing = min((each - value.keys() for each in needed), key=len, default=set())
        found = [(f"{at}.{name}", "missing; Azure needs it") for name in sorted(missing)]
    return [f"{place}: {fault}" for place, fault in found]


def schema_source(dialect: AnyDialect) -> str:
    """The package that the schema is made from, with the day."""
    published = _published()
    return f"{published['sources'][dialect]}, {published['read_on']}"


@cache
def _published() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = json.loads(Path(__file__).with_name("azure_sessions.json").read_text(encoding="utf-8"))
    return loaded


def _kinds(schema: Schema, root: Schema) -> list[Schema]:
    """The members of a union, through references and unions within it; of anything else only itself."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    members = schema.get("anyOf") or schema.get("oneOf")
    return [kind for each in members for kind in _kinds(each, root)] if members else [schema]


def _faults(value: Any, schema: Schema, root: Schema, where: str) -> Iterator[tuple[str, str]]:
    kinds = _kinds(schema, root)
    fitting = [kind for kind in kinds if _is_of_type(value, kind)]
    if not fitting:
        wanted = sorted({str(kind.get("type", "another value")) for kind in kinds} - {"null"})
        allowed = [each for kind in kinds for each in _values(kind)]
        hint = f"one of {', '.join(map(json.dumps, allowed))}" if allowed else " or ".join(wanted)
        yield where, f"should be {hint}"
        return
    if isinstance(value, dict):
        yield from _object_faults(value, _meant(value, fitting, root), root, where)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _faults(inner, fitting[0].get("items", {}), root, f"{where}[{number}]")


def _object_faults(
    value: Mapping[str, Any], kinds: list[Schema], root: Schema, where: str
) -> Iterator[tuple[str, str]]:
    fields: dict[str, list[Schema]] = {}
    for kind in kinds:
        for name, inner in kind.get("properties", {}).items():
            fields.setdefault(name, []).append(inner)
    others = next((kind["additionalProperties"] for kind in kinds if "additionalProperties" in kind), None)
    for name, inner in value.items():
        place = f"{where}.{name}" if where else name
        if name in fields:
            yield from _faults(inner, {"anyOf": fields[name]}, root, place)
        elif isinstance(others, Mapping):
            yield from _faults(inner, others, root, place)
        elif fields:  # an object without any is free
            near = difflib.get_close_matches(name, fields, n=1)
            meant = f"; {near[0]} is meant, perhaps" if near else ""
            yield place, f"Azure has no such field{meant}; it has {', '.join(sorted(fields))}"


def _meant(value: Mapping[str, Any], kinds: list[Schema], root: Schema) -> list[Schema]:
    """The kinds of a union that the object's `type` says; all where it says none."""
    told = value.get("type")

    def says(kind: Schema) -> bool:
        stated = kind.get("properties", {}).get("type")
        return stated is not None and any(told in _values(each) for each in _kinds(stated, root))

    objects = [kind for kind in kinds if kind.get("type") == "object"]
    return [kind for kind in objects if says(kind)] or objects


def _values(schema: Schema) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def _is_of_type(value: Any, schema: Schema) -> bool:
    allowed = _values(schema)
    if allowed:
        return value in allowed
    kind = schema.get("type")
    if kind is None:
        return True
    if isinstance(value, bool):
        return bool(kind == "boolean")
    return isinstance(value, _TYPES[kind])
