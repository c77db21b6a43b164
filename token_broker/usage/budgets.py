"""Budgets of a principal: minutes and tokens a UTC day, reserved before they are used."""

from collections.abc import Callable
from typing import Protocol

from token_broker.usage.talk_usage import TalkUsage

__all__ = ["Leash"]


class Leash(Protocol):
    """Holds a talk to its principal's budget, as a task of the talk: cancel it when the talk is over."""

    async def hold(self, usage: TalkUsage, key: str, *, warn: Callable[[], None], end: Callable[[], None]) -> None:
        """Returns at once where there is no budget, else when it is used up.

        `key` is the caller's `limit_key`. `warn` is called 30 s before the reservation ends, `end` 15 s before: the
        talk then ends after what is being played, and at the end of the reservation at the latest.
        """
        ...
