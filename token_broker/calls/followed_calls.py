"""What calls' pages are told, at any replica: the one that holds a call writes its events, the others follow them.

One task a replica writes and follows, all calls at once: four times a second where there is something to do. A page is
at most about a second behind. The holder learns that its page reads elsewhere as it renews its lease; until then what
it told of being attached does not reach that page, which goes on asking Azure for answers by itself.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any

import structlog

from token_broker.calls.call_row import PageCall, PageEventRow
from token_broker.calls.page_events import ATTACHED, ELSEWHERE, EVENTS_KEPT, READERS_AT_MOST, PageEvents
from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreError
from token_broker.security.limits import BoundedDict

__all__ = ["FollowedCall", "SharedEvents", "Told"]

log = structlog.get_logger("token_broker.calls")

_EVERY_S = 0.25
_READS_FOR_S = 20.0
_NOTED_EVERY_S = 5.0
_LAST_WORDS_S = 2.0  # a call's end may stand in the store before what its page is told of it
_UNWRITTEN_AT_MOST = 10_000  # calls whose events wait for the store
_FOLLOWED_AT_MOST = 2_000
_LEFT_S = 5.0
_ASKED_AT_ONCE = 100  # calls in one question to the store

Told = tuple[str, Mapping[str, Any]]
"""An event, and the name by which a page reads on from it; empty where there is none."""


class FollowedCall:
    """One call of another replica, as its page reads it here."""

    def __init__(self) -> None:
        self.is_closed = False
        self.asked_at_us: int | None = None  # when we noted that a page reads here, until the holder says that it knows
        self.over_since_s: float | None = None
        self._kept: deque[tuple[int, Told]] = deque(maxlen=EVENTS_KEPT)
        self._seen = BoundedDict[tuple[str, int], None](4 * EVENTS_KEPT)
        self._count = 0
        self._readers = 0
        self._left_s = asyncio.get_running_loop().time()
        self._changed = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether one more may read."""
        return self._readers < READERS_AT_MOST

    def is_left(self, now_s: float) -> bool:
        """Whether nobody reads any more."""
        return self._readers == 0 and now_s - self._left_s > _LEFT_S

    def add(self, row: PageEventRow) -> None:
        """Takes an event of the store's; one that was taken already is left alone."""
        if (row.stream, row.number) in self._seen:
            return
        self._seen[row.stream, row.number] = None
        event = json.loads(row.event)
        if event.get("type") == ATTACHED and self.asked_at_us is not None:
            if ELSEWHERE not in event or row.told_at_us <= self.asked_at_us:
                return
            self.asked_at_us = None
        self._count += 1
        self._kept.append((self._count, (f"{row.stream}-{row.number}", event)))
        self._wake()

    def close(self) -> None:
        """Nothing more is told of it: readers get what is left, and come to their end."""
        self.is_closed = True
        self._wake()

    async def read(self, last: str, *, silence_s: float) -> AsyncGenerator[Told | None]:
        """The events after the one of that name, as they come, until the call is over. None: none for `silence_s`."""
        self._readers += 1
        after = next((number for number, (name, _) in self._kept if name == last), 0)
        try:
            while True:
                for number, told in [each for each in self._kept if each[0] > after]:
                    after = number
                    yield told
                if self._count > after:
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
            self._left_s = asyncio.get_running_loop().time()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class SharedEvents:
    """All of a replica's. `start` it; on SQLite, which has one replica, it does nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_alone = database.dialect == "sqlite"
        self._unwritten = BoundedDict[tuple[PageCall, str], tuple[PageEvents, int]](_UNWRITTEN_AT_MOST)
        self._followed: dict[PageCall, FollowedCall] = {}
        self._since_us = 0
        self._noted_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def told(self, page: PageCall, events: PageEvents) -> None:
        """The page of this call of ours was told something."""
        if not self._is_alone:
            self._unwritten.setdefault((page, events.name), (events, events.last - 1))
            self._wake.set()

    async def follow(self, page: PageCall) -> FollowedCall | None:
        """The call's events as another replica tells them, for one reader; None where no replica has such a call.

        Raises StoreError.
        """
        if self._is_alone:
            return None
        if (known := self._followed.get(page)) is None:
            if len(self._followed) >= _FOLLOWED_AT_MOST:
                return None
            from token_broker.calls.shared_statements import news_of, note_readers

            noting = partial(note_readers, pages=[page], lasts_us=round(_READS_FOR_S * 1_000_000))
            was_read = (await self._database.write(noting)).get(page)
            news = await self._database.read(partial(news_of, pages=[page], since_us=0))
            if was_read is None and not news.events:
                return None
            if (known := self._followed.get(page)) is None:
                known = self._followed[page] = FollowedCall()
                if was_read is False:
                    known.asked_at_us = news.now_us
                self._since_us = self._since_us or news.now_us
            for row in news.events:
                known.add(row)
        self._wake.set()
        return known

    def start(self) -> None:
        """Writes and follows in the background, until `aclose`."""
        self._running = asyncio.create_task(self._keep(), name="call-events")

    async def aclose(self) -> None:
        """Writes what is left, for a moment."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._write()

    async def _keep(self) -> None:
        is_silent = False
        while True:
            if not self._followed:
                await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(_EVERY_S)
            try:
                await self._write()
                await self._look()
                is_silent = False
            except StoreError as error:
                if not is_silent:
                    log.warning("call_events_unshared", reason=str(error), calls=len(self._unwritten))
                is_silent = True
                self._wake.set()

    async def _write(self) -> None:
        from token_broker.calls.shared_statements import write_events

        waiting = list(self._unwritten.items())[:_ASKED_AT_ONCE]
        if not waiting:
            return
        told = [(page, stream, events.since(number)) for (page, stream), (events, number) in waiting]
        await self._database.write(partial(write_events, told=told, kept=EVENTS_KEPT))
        for (key, (events, _)), (_, _, written) in zip(waiting, told, strict=True):
            last = written[-1][0] if written else events.last
            if events.last > last:
                self._unwritten[key] = (events, last)
            else:
                self._unwritten.pop(key, None)
        if self._unwritten:
            self._wake.set()

    async def _look(self) -> None:
        """Reads what was told of the calls that are followed."""
        from token_broker.calls.shared_statements import news_of, note_readers

        now_s = self._loop.time()
        for page, each in list(self._followed.items()):
            if each.is_closed or each.is_left(now_s):
                each.close()
                del self._followed[page]
        if not self._followed:
            self._since_us = 0
            return
        pages = list(self._followed)
        if now_s - self._noted_s >= _NOTED_EVERY_S:
            self._noted_s = now_s
            noting = partial(note_readers, pages=pages, lasts_us=round(_READS_FOR_S * 1_000_000))
            await self._database.write(noting)
        latest_us = self._since_us
        for start in range(0, len(pages), _ASKED_AT_ONCE):
            asked = pages[start : start + _ASKED_AT_ONCE]
            news = await self._database.read(partial(news_of, pages=asked, since_us=self._since_us))
            latest_us = news.now_us
            for row in news.events:
                self._followed[row.page].add(row)
            for page in asked:
                self._note_end(self._followed[page], lives=page in news.live)
        self._since_us = latest_us

    def _note_end(self, call: FollowedCall, *, lives: bool) -> None:
        now_s = self._loop.time()
        if lives:
            call.over_since_s = None
        elif call.over_since_s is None:
            call.over_since_s = now_s
        elif now_s - call.over_since_s >= _LAST_WORDS_S:
            call.close()
