"""Shapes of JSON values, and how to copy out of a value only what its shape permits. Pure.

A shape names what is permitted. A field that it does not name is left out; a value of another kind is refused. Names
are compared exactly. The shape bounds the work, not the value: of an object with 80,000 unknown fields only the named
ones are looked up.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
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
    "unlisted",
]

_LARGEST_NUMBER = 2**53  # up to here every JSON reader has the same integers
_NAME_CHARS = 64
_UNLISTED_AT_MOST = 16  # of one object: nobody reads more errors about one message
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
    """At most 16 short strings by name, as in a client's `metadata`."""


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with these fields, all optional. One whose `type` is `off` means null."""

    rows: Mapping[str, "Shape"]
    off: str | None = None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of values of one shape, with `at_most` entries."""

    of: "Shape"
    at_most: int


@dataclass(frozen=True, slots=True)
class Kinds:
    """An object whose field `by` says which shape it has. Never null: an item without a type is not an item."""

    by: str
    shapes: Mapping[str, "Shape"]


@dataclass(frozen=True, slots=True)
class OneOf:
    """A value of one of these shapes; the first that fits."""

    shapes: tuple["Shape", ...]


Shape = Text | Flag | Number | Word | Labels | Fields | ListOf | Kinds | OneOf


@dataclass(frozen=True, slots=True)
class Permitted:
    """What may pass of a value, and how many fields were left out of it."""

    value: Any
    left_out: int = 0


class NotPermittedError(ValueError):
    """A value does not have its shape. `where` is the path of the wrong value (`item.role`), `value` that value, and
    `holder` the object of `Kinds` that contains it, if any.
    """

    def __init__(self, where: str, value: Any, holder: Mapping[str, Any] | None = None) -> None:
        super().__init__(where)
        self.where = where
        self.value = value
        self.holder = holder or {}


def permitted(value: Any, shape: Shape, where: str = "") -> Permitted:
    """What `shape` permits of `value`, which is at the path `where`. Raises NotPermittedError.

    Null is permitted for everything but an object of `Kinds`: in Azure's schemas it switches a setting off, or means
    the same as no value.
    """
    if isinstance(shape, Kinds):
        if not isinstance(value, dict):
            raise NotPermittedError(where, value)
        kind = value.get(shape.by)
        inner = shape.shapes.get(kind) if isinstance(kind, str) else None
        if inner is None:
            raise NotPermittedError(f"{where}.{shape.by}", kind, value)
        return permitted(value, inner, where)
    if value is None:
        return Permitted(None)
    if isinstance(shape, Fields):
        return _permitted_fields(value, shape, where)
    if isinstance(shape, ListOf):
        if not isinstance(value, list) or len(value) > shape.at_most:
            raise NotPermittedError(where, value)
        found = [permitted(inner, shape.of, where) for inner in value]
        return Permitted([each.value for each in found], sum(each.left_out for each in found))
    if isinstance(shape, OneOf):
        for each in shape.shapes:
            with contextlib.suppress(NotPermittedError):
                return permitted(value, each, where)
        raise NotPermittedError(where, value)
    if not _is_scalar(value, shape):
        raise NotPermittedError(where, value)
    return Permitted(value)


def unlisted(value: Any, shape: Shape, where: str = "") -> Iterator[str]:
    """The paths of the fields that `permitted` leaves out of `value`, which has its shape; a client may have them told.

    Null says nothing, so a field that is null is not among them. An object's fields are looked at only so far that
    `_UNLISTED_AT_MOST` of them may be unlisted.
    """
    match shape:
        case Fields(rows=rows, off=off) if isinstance(value, dict):
            if off is not None and value.get("type") == off:
                return
            for name in islice(value, len(rows) + _UNLISTED_AT_MOST):
                path = f"{where}.{_plain(name)}" if where else _plain(name)
                if name in rows:
                    yield from unlisted(value[name], rows[name], path)
                elif value[name] is not None:
                    yield path
        case ListOf(of=of) if isinstance(value, list):
            for inner in value:
                yield from unlisted(inner, of, where)
        case Kinds(by=by, shapes=shapes) if isinstance(value, dict):
            yield from unlisted(value, shapes[value[by]], where)
        case OneOf(shapes=several):
            for each in several:
                with contextlib.suppress(NotPermittedError):
                    permitted(value, each, where)
                    yield from unlisted(value, each, where)
                    return


def shown_name(name: Any) -> str:
    """A name that a client chose, as an error message may repeat it: short, one line, plain ASCII."""
    if not isinstance(name, str):
        return f"a value of type {type(name).__name__}"
    return f"'{_plain(name)}{'…' if len(name) > _NAME_CHARS else ''}'"


def _plain(name: str) -> str:
    cut = name[:_NAME_CHARS]
    return "".join(each if each.isascii() and each.isprintable() and each not in "\"'\\" else "?" for each in cut)


def _permitted_fields(value: Any, shape: Fields, where: str) -> Permitted:
    if not isinstance(value, dict):
        raise NotPermittedError(where, value)
    if shape.off is not None and value.get("type") == shape.off:
        return Permitted(None)
    kept: dict[str, Any] = {}
    left_out = 0
    for name, inner in shape.rows.items():
        if name in value:
            found = permitted(value[name], inner, f"{where}.{name}" if where else name)
            kept[name] = found.value
            left_out += found.left_out
    return Permitted(kept, left_out + len(value) - len(kept))


def _is_scalar(value: Any, shape: Text | Flag | Number | Word | Labels) -> bool:
    match shape:
        case Text():
            return isinstance(value, str)
        case Flag():
            return isinstance(value, bool)
        case Number():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and abs(value) <= _LARGEST_NUMBER  # false for an infinity and for NaN
        case Word(words=words):
            return isinstance(value, str) and value in words
        case Labels():
            return (
                isinstance(value, dict)
                and len(value) <= _LABELS_AT_MOST
                and all(
                    len(name) <= _LABEL_CHARS and isinstance(text, str) and len(text) <= _LABEL_TEXT_CHARS
                    for name, text in value.items()
                )
            )
