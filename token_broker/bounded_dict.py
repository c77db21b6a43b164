"""A dict with a maximum size, for caches and records that a caller could fill without limit."""

from collections import OrderedDict
from typing import TypeVar

__all__ = ["BoundedDict"]

K = TypeVar("K")
V = TypeVar("V")


# Not cachetools.FIFOCache, which evicts in the same order: each of its reads and writes runs Python code, and these
# dicts stand on the path of every turn and token request. Not a plain dict: finding the first key again and again skips
# the deleted entries before it each time.
class BoundedDict(OrderedDict[K, V]):
    """At most `max_entries` entries. Writing a key makes it the last one; beyond the maximum the first one is removed.

    Reading does not change the order.
    """

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self.max_entries = max_entries

    # OrderedDict's `setdefault`, `update` and `|=` call this method in a subclass; those of `dict` would not.
    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.max_entries:
            self.popitem(last=False)
