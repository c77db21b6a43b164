"""The dict with a maximum size, whichever method writes to it."""

from collections.abc import Callable

import pytest

from token_broker.security.limits import BoundedDict

Write = Callable[[BoundedDict[str, int], str], object]


def assign(entries: BoundedDict[str, int], key: str) -> None:
    entries[key] = 0


def merge(entries: BoundedDict[str, int], key: str) -> None:
    entries |= {key: 0}


WRITES: list[Write] = [assign, merge, lambda it, key: it.setdefault(key, 0), lambda it, key: it.update({key: 0})]


@pytest.mark.parametrize("write", WRITES, ids=["assign", "merge", "setdefault", "update"])
def test_oldest_entries_are_removed(write: Write) -> None:
    entries = BoundedDict[str, int](2)
    for key in "abcd":
        write(entries, key)
    assert list(entries) == ["c", "d"]


def test_writing_again_keeps_an_entry() -> None:
    entries = BoundedDict[str, int](2)
    for key in "aba":
        entries[key] = 0
    assert entries.get("b") == 0  # reading does not
    entries["c"] = 0
    assert list(entries) == ["a", "c"]


def test_size_holds_after_removals() -> None:
    entries = BoundedDict[int, int](3)
    for number in range(1_000):
        entries[number] = number
        if number % 3 == 0:
            del entries[number]
        assert len(entries) <= 3
    assert list(entries) == [997, 998]
