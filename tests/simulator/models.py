"""What live events carry that the official package's models do not know."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

# What a session states beyond its configuration, and what recorded deltas and parts carry besides.
PACKAGE_LEAVES_OUT = {".session.id", ".session.object", ".session.expires_at", ".obfuscation", ".content"}


def extras(value: Any, path: str = "") -> Iterator[str]:
    """Fields of a parsed event that the package's models do not know."""
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or {})
        for name in type(value).model_fields:
            yield from extras(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for part in value:
            yield from extras(part, path)
