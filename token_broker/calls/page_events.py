"""What the broker tells a call's page: over WebRTC the page's events come from Azure, and these ones beside them.

Each call keeps its latest events, numbered from 1, so that a page whose stream broke off reads on from there. The page
hears of `broker.attached` when the broker has joined the call, and of `broker.detached` when it has been gone for two
seconds. Between the two the broker alone asks Azure for answers, as long as the page reads.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from token_broker.calls.call_row import PageCall
from token_broker.security.limits import BoundedDict
from token_broker.web.requests import uuid7

__all__ = [
    "ATTACHED",
    "DETACHED",
    "ELSEWHERE",
    "EVENTS_KEPT",
    "READERS_AT_MOST",
    "CallStreams",
    "Numbered",
    "PageEvents",
]

ATTACHED = "broker.attached"
DETACHED = "broker.detached"
ELSEWHERE = "elsewhere"
"""A field of `broker.attached` that no page gets: it was told knowing that a page reads at another replica."""

READERS_AT_MOST = 4
EVENTS_KEPT = 256
_GONE_S = 2.0
_READS_ON_S = 15.0  # a page that lost its stream asks for itself after 10 s
_ENDED_KEPT = 1024

Numbered = tuple[int, Mapping[str, Any]]
"""An event and its number. 0: it stands for events that are kept no more."""


class PageEvents:
    """One call's. `tell` never waits: a reader that is too slow misses the oldest events. `told` hears of each one."""

    def __init__(self, told: Callable[["PageEvents"], None] = lambda _events: None) -> None:
        self.name = secrets.token_hex(4)  # another process numbers the same call's events anew
        self.is_attached = False
        self.is_closed = False
        self._told = told
        self._listeners = 0  # two while a call goes over to a new one
        self._elsewhere_until_s = 0.0  # until then it is read at another replica
        self._loop = asyncio.get_running_loop()
        self._kept: deque[Numbered] = deque(maxlen=EVENTS_KEPT)
        self._last = 0
        self._changed = asyncio.Event()
        self._readers = 0
        self._heard = 0  # the number of the latest event that a reader took
        self._attached_at = 0  # the number of the latest `broker.attached`
        self._left_s: float | None = None
        self._gone: asyncio.TimerHandle | None = None

    @property
    def last(self) -> int:
        """The number of the latest event; 0 before the first."""
        return self._last

    @property
    def has_room(self) -> bool:
        """Whether one more may read."""
        return self._readers < READERS_AT_MOST

    @property
    def is_heard(self) -> bool:
        """Whether the page has read that the broker is there, and reads, or has read until a moment ago."""
        if not self.is_attached:
            return False
        now_s = self._loop.time()
        reads = self._readers > 0 or (self._left_s is not None and now_s < self._left_s + _READS_ON_S)
        return (reads and self._heard >= self._attached_at) or now_s < self._elsewhere_until_s

    def read_elsewhere(self, for_s: float) -> None:
        """A page reads at another replica. What it could read before that we knew did not count: it is told again."""
        is_news = self._loop.time() >= self._elsewhere_until_s
        self._elsewhere_until_s = self._loop.time() + for_s
        if is_news and self.is_attached:
            self._tell_attached()

    def since(self, number: int) -> Sequence[Numbered]:
        """The events after that number, as far as they are kept."""
        return [each for each in self._kept if each[0] > number]

    def tell(self, kind: str, **fields: Any) -> None:
        """Tells the page an event."""
        if self.is_closed:
            return
        self._last += 1
        self._kept.append((self._last, {"type": kind, "event_id": f"event_{uuid7()}", **fields}))
        self._told(self)
        self._wake()

    def joined(self) -> None:
        """The broker hears the call, and may speak there."""
        self._listeners += 1
        if self._gone is not None:
            self._gone.cancel()
            self._gone = None
        if not self.is_attached:
            self.is_attached = True
            self._attached_at = self._last + 1
            self._tell_attached()

    def left(self) -> None:
        """A listener hears the call no more; it may come back."""
        self._listeners = max(0, self._listeners - 1)
        if self._listeners <= 0 and self.is_attached and self._gone is None:
            self._gone = self._loop.call_later(_GONE_S, self._detach)

    def detach(self) -> None:
        """The broker does nothing more in this call, at once."""
        if self._gone is not None:
            self._gone.cancel()
        self._detach()

    def close(self) -> None:
        """The broker has no more to do with this call: readers get what is left, and come to their end."""
        self.detach()
        self.is_closed = True
        self._wake()

    async def read(self, after: int, *, silence_s: float) -> AsyncGenerator[Numbered | None]:
        """The events after that number, as they come, until the call is over. None: there was none for `silence_s`."""
        self._readers += 1
        after = after if 0 <= after <= self._last else 0
        try:
            if self._kept and self._kept[0][0] > after + 1 and self.is_attached:
                yield 0, {"type": ATTACHED, "event_id": f"event_{uuid7()}"}
            while True:
                for numbered in self.since(after):
                    after = numbered[0]
                    yield numbered
                    self._heard = max(self._heard, after)
                if self._last > after:
                    continue
                if self.is_closed:
                    return
                changed = self._changed
                try:
                    async with asyncio.timeout(silence_s):
                        await changed.wait()
                except TimeoutError:
                    yield None
        finally:
            self._readers -= 1
            self._left_s = self._loop.time()

    def _tell_attached(self) -> None:
        self.tell(ATTACHED, **({ELSEWHERE: True} if self._loop.time() < self._elsewhere_until_s else {}))

    def _detach(self) -> None:
        self._gone = None
        if self.is_attached:
            self.is_attached = False
            self.tell(DETACHED)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class CallStreams:
    """The events of all calls that this process hears, by session and Azure's id. `told` gets calls with new ones."""

    def __init__(self, told: Callable[[PageCall, PageEvents], None] = lambda _page, _events: None) -> None:
        self._told = told
        self._open: dict[tuple[str, str], PageEvents] = {}
        # So that a page that comes a moment late still reads how its call ended.
        self._ended = BoundedDict[tuple[str, str], PageEvents](_ENDED_KEPT)

    def of(self, session_id: str, call_id: str) -> PageEvents:
        """The events of that call, from now on kept until `end`."""
        if (found := self._open.get((session_id, call_id))) is None:
            found = self._open[session_id, call_id] = PageEvents(partial(self._told, (session_id, call_id)))
        return found

    def find(self, session_id: str, call_id: str) -> PageEvents | None:
        """The events of that call while this process hears it, or None."""
        return self._open.get((session_id, call_id))

    def ended(self, session_id: str, call_id: str) -> PageEvents | None:
        """The events of that call, which this process has heard until a while ago, or None."""
        return self._ended.get((session_id, call_id))

    def end(self, session_id: str, call_id: str, *, events: PageEvents) -> None:
        """The call is over, or is heard no more. A newer one of the same name is left alone."""
        events.close()
        if self._open.get((session_id, call_id)) is events:
            del self._open[session_id, call_id]
            self._ended[session_id, call_id] = events
