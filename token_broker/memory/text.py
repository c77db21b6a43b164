"""Text that every store takes: no NUL (PostgreSQL has none), no lone surrogates (UTF-8 has none). And its words."""

import re

__all__ = ["clean", "is_storable", "words_of"]

_WORD = re.compile(r"\w+")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def is_storable(text: str) -> bool:
    """Whether the text can be stored as it is."""
    return _UNSTORABLE.search(text) is None


def clean(text: str) -> str:
    """The text with U+FFFD for whatever can't be stored."""
    return _UNSTORABLE.sub("\ufffd", text)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.casefold())
