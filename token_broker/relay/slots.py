"""How many talks are open, in all and for each principal: proxied talks and relayed calls alike."""

import asyncio
from collections import Counter

__all__ = ["Slot", "TalkSlots"]


class TalkSlots:
    """The process's open talks; 0 as a limit is none."""

    def __init__(self, *, max_total: int, max_per_key: int) -> None:
        self._max_total = max_total
        self._max_per_key = max_per_key
        self._by_key: Counter[str] = Counter()
        self.total = 0

    def take(self, key: str) -> "Slot | None":
        """A place for one more talk of `key`'s (a principal, or the address of somebody anonymous), or None."""
        if self._max_total and self.total >= self._max_total:
            return None
        if self._max_per_key and self._by_key[key] >= self._max_per_key:
            return None
        self.total += 1
        self._by_key[key] += 1
        return Slot(self, key)

    def open_of(self, key: str) -> int:
        return self._by_key.get(key, 0)

    def give_back(self, key: str) -> None:
        """For `Slot` alone."""
        self.total -= 1
        self._by_key[key] -= 1
        if not self._by_key[key]:
            del self._by_key[key]


class Slot:
    """One talk's place. Give it back once; further times do nothing."""

    def __init__(self, slots: TalkSlots, key: str) -> None:
        self._slots = slots
        self._key = key
        self._expiry: asyncio.TimerHandle | None = None
        self._held = True

    def give_back(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self._held:
            self._held = False
            self._slots.give_back(self._key)

    def expire_after(self, seconds: float) -> None:
        """Gives itself back by then: for a call whose end may never be seen."""
        self._expiry = asyncio.get_running_loop().call_later(seconds, self.give_back)
