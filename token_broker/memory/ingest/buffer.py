"""The proxy's turns on their way to the store: a bounded buffer that outlasts a store that is away."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from token_broker.memory.delivery.backoff import backoff_s
from token_broker.memory.errors import StoreError, StoreRefusedError
from token_broker.memory.ingest.group_commit import GroupWriter, turn_bytes
from token_broker.memory.text import clean, is_storable
from token_broker.memory.types import Outcome, Owner, Turn

__all__ = ["BufferedIntake", "IntakeCounts"]

log = structlog.get_logger(__name__)

_CHUNK = 100
_LONGEST_WAIT_S = 10.0
_NOT_THEIRS = frozenset({Outcome.FOREIGN, Outcome.ERASED})
_TOLD_FULL = 1_000  # sessions


@dataclass(slots=True)
class IntakeCounts:
    """Since the process began: turns not taken since the buffer was full, and turns the store would never take."""

    overflowed: int = 0
    refused: int = 0


class BufferedIntake:
    """See `TurnIntake`. Holds at most `max_turns` turns or `max_bytes`; `run` is to be started once.

    `on_refused` hears of each turn whose session is not its owner's, or was erased: its talk goes on for nothing.
    """

    def __init__(
        self,
        writer: GroupWriter,
        *,
        max_turns: int,
        max_bytes: int,
        on_refused: Callable[[Owner], None] = lambda _owner: None,
    ) -> None:
        self._writer = writer
        self._on_refused = on_refused
        self._max_turns = max_turns
        self._max_bytes = max_bytes
        self._turns: deque[Turn] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._told_full: dict[str, None] = {}
        self.counts = IntakeCounts()

    @property
    def buffered(self) -> int:
        return len(self._turns)

    def offer(self, turn: Turn) -> bool:
        if not is_storable(turn.content):
            turn = replace(turn, content=clean(turn.content))
        size_bytes = turn_bytes(turn)
        if len(self._turns) >= self._max_turns or self._bytes + size_bytes > self._max_bytes:
            self.counts.overflowed += 1
            return False
        self._turns.append(turn)
        self._bytes += size_bytes
        self._emptied.clear()
        self._wake.set()
        return True

    async def run(self) -> None:
        """Hands the buffer over, in order, until it is cancelled; what the store did not take is offered again."""
        failures = 0
        while True:
            await self._wake.wait()
            chunk = [self._turns[index] for index in range(min(_CHUNK, len(self._turns)))]
            try:
                await self._store(chunk)
            except StoreError:
                failures += 1
                await asyncio.sleep(min(_LONGEST_WAIT_S, backoff_s(failures) / 4))
                continue
            failures = 0
            self._drop(len(chunk))

    async def flushed(self) -> None:
        """Returns when the buffer is empty; bound the wait."""
        await self._emptied.wait()

    async def _store(self, chunk: list[Turn]) -> None:
        outcomes: list[Outcome | None]
        try:
            outcomes = [*await self._writer.submit(chunk)]
        except StoreRefusedError:
            outcomes = [await self._store_alone(turn) for turn in chunk]
        for turn, outcome in zip(chunk, outcomes, strict=True):
            if outcome in _NOT_THEIRS:
                self.counts.refused += 1
                self._on_refused(turn.owner)
            elif outcome is Outcome.FULL:
                self._tell_full(turn.owner.session_id)

    def _tell_full(self, session_id: str) -> None:
        """Once a session, as far back as is remembered; the writer counts the turns."""
        if session_id not in self._told_full:
            log.warning("session_full", session_id=session_id)
            self._told_full[session_id] = None
            if len(self._told_full) > _TOLD_FULL:
                del self._told_full[next(iter(self._told_full))]

    async def _store_alone(self, turn: Turn) -> Outcome | None:
        """None where the store will never take it."""
        try:
            return (await self._writer.submit([turn]))[0]
        except StoreRefusedError as error:
            self.counts.refused += 1
            log.error("turn_refused", session_id=turn.owner.session_id, turn_id=turn.turn_id, reason=str(error))
            return None

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._bytes -= turn_bytes(self._turns.popleft())
        if not self._turns:
            self._wake.clear()
            self._emptied.set()
