"""Shapes of JSON values, and how to copy out of a value only what its shape permits. Pure.

A shape names what is permitted; everything else is left out (a field that it does not name) or refused (a value of
another kind). Names are compared exactly. The work is bounded by the shape and not by the value: of an object with
80,000 unknown fields only the named ones are looked up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Fields",
    "Flag",
    "Kinds",
    "Labels",
    "ListOf",
    "NotPermittedError",
    "Number",
    "OneOf",
    "Permitted",
    "Shape",
    "Text",
    "Word",
    "permitted",
    "shown_name",
]

_LARGEST_NUMBER = 2**53  # up to here every JSON reader has the same integers
_NAME_CHARS = 64
_LABELS_AT_MOST, _LABEL_CHARS, _LABEL_TEXT_CHARS = 16, 64, 512  # as Azure takes `metadata`


@dataclass(frozen=True, slots=True)
class Text:
    """Any string."""


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number up to 2**53."""


@dataclass(frozen=True, slots=True)
class Word:
    """One of these strings."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """At most 16 short strings by name: a client's `metadata`."""


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with these fields, none of which has to be there."""

    rows: Mapping[str, "Shape"]


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of values of one shape, `at_most` so long."""

    of: "Shape"
    at_most: int


@dataclass(frozen=True, slots=True)
class Kinds:
    """An object whose field `by` says which shape it has. Never null: an item without a type is none."""

    by: str
    shapes: Mapping[str, "Shape"]


@dataclass(frozen=True, slots=True)
class OneOf:
    """A value of the first shape that it has."""

    shapes: tuple["Shape", ...]


Shape = Text | Flag | Number | Word | Labels | Fields | ListOf | Kinds | OneOf


@dataclass(frozen=True, slots=True)
class Permitted:
    """What may pass of a value, and how many fields were left out of it."""

    value: Any
    left_out: int = 0


class NotPermittedError(ValueError):
    """The value has not its shape. `where` is the path of what is wrong (`item.role`), `value` what stands there, and
    `holder` the object of `Kinds` that has it there, if one does.
    """

    def __init__(self, where: str, value: Any, holder: Mapping[str, Any] | None = None) -> None:
        super().__init__(where)
        self.where = where
        self.value = value
        self.holder = holder or {}


def permitted(value: Any, shape: Shape, where: str = "") -> Permitted:
    """What `shape` permits of `value`, which stands at the path `where`. Raises NotPermittedError.

    Null is permitted for everything but an object of `Kinds`: in Azure's schemas it switches a setting off, or is as
    good as absent.
    """
    if isinstance(shape, Kinds):
        return _of_its_kind(value, shape, where)
    if value is None:
        return Permitted(None)
    if isinstance(shape, Fields):
        return _fields(value, shape, where)
    if isinstance(shape, ListOf):
        return _list(value, shape, where)
    if isinstance(shape, OneOf):
        return _first(value, shape, where)
    if not _is_scalar(value, shape):
        raise NotPermittedError(where, value)
    return Permitted(value)


def shown_name(name: Any) -> str:
    """A name that a client chose, as an error message may repeat it: short, one line, plain ASCII."""
    if not isinstance(name, str):
        return f"a value of type {type(name).__name__}"
    cut = name[:_NAME_CHARS]
    plain = "".join(each if each.isascii() and each.isprintable() and each not in "\"'\\" else "?" for each in cut)
    return f"'{plain}{'…' if len(name) > _NAME_CHARS else ''}'"


def _is_scalar(value: Any, shape: Text | Flag | Number | Word | Labels) -> bool:
    match shape:
        case Text():
            return isinstance(value, str)
        case Flag():
            return isinstance(value, bool)
        case Number():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and abs(value) <= _LARGEST_NUMBER  # which neither an infinity nor NaN is
        case Word(words=words):
            return isinstance(value, str) and value in words
        case Labels():
            return isinstance(value, dict) and _are_labels(value)


def _are_labels(value: Mapping[str, Any]) -> bool:
    return len(value) <= _LABELS_AT_MOST and all(
        len(name) <= _LABEL_CHARS and isinstance(text, str) and len(text) <= _LABEL_TEXT_CHARS
        for name, text in value.items()
    )


def _fields(value: Any, shape: Fields, where: str) -> Permitted:
    if not isinstance(value, dict):
        raise NotPermittedError(where, value)
    kept: dict[str, Any] = {}
    left_out = 0
    for name, inner in shape.rows.items():
        if name in value:
            found = permitted(value[name], inner, f"{where}.{name}" if where else name)
            kept[name] = found.value
            left_out += found.left_out
    return Permitted(kept, left_out + len(value) - len(kept))


def _list(value: Any, shape: ListOf, where: str) -> Permitted:
    if not isinstance(value, list) or len(value) > shape.at_most:
        raise NotPermittedError(where, value)
    found = [permitted(inner, shape.of, where) for inner in value]
    return Permitted([each.value for each in found], sum(each.left_out for each in found))


def _of_its_kind(value: Any, shape: Kinds, where: str) -> Permitted:
    if not isinstance(value, dict):
        raise NotPermittedError(where, value)
    kind = value.get(shape.by)
    inner = shape.shapes.get(kind) if isinstance(kind, str) else None
    if inner is None:
        raise NotPermittedError(f"{where}.{shape.by}", kind, value)
    return permitted(value, inner, where)


def _first(value: Any, shape: OneOf, where: str) -> Permitted:
    for each in shape.shapes:
        try:
            return permitted(value, each, where)
        except NotPermittedError:
            continue
    raise NotPermittedError(where, value)
