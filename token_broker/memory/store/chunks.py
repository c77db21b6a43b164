"""How much one transaction works on: turns of others wait behind it."""

from collections.abc import Iterable
from typing import TypeVar

__all__ = ["within_bytes"]

K = TypeVar("K")


def within_bytes(sizes: Iterable[tuple[K, int]], max_bytes: int) -> list[K]:
    """The first keys whose sizes come to at most `max_bytes` together; at least one, where there is one."""
    keys: list[K] = []
    total_bytes = 0
    for key, size_bytes in sizes:
        total_bytes += size_bytes
        if keys and total_bytes > max_bytes:
            break
        keys.append(key)
    return keys
