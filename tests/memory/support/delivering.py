"""A delivery worker driven by hand: time is the test's own."""

from collections.abc import Sequence
from functools import partial

from tests.memory.support.turns import turn
from token_broker.memory.delivery.worker import DeliveryPolicy, DeliveryWorker
from token_broker.memory.drivers.database import Database
from token_broker.memory.ingest.group_commit import ArrivalClock
from token_broker.memory.store.outbox import read_status
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.types import ArrivedTurn, OutboxStatus, Sink, SinkName, Turn
from token_broker.security.tokens import Owner

__all__ = ["Clock", "Delivering", "a_talk"]


class Clock:
    """A time that goes only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Delivering:
    """A worker driven by hand, on a store and a sink. Its turns are queued for all of `sinks`."""

    def __init__(
        self, database: Database, sink: Sink, clock: Clock, *, sinks: Sequence[SinkName] = (), **policy: float
    ) -> None:
        self.database, self.clock, self.sink = database, clock, sink
        self.sinks = sinks or (sink.name,)
        self.worker = DeliveryWorker(database, sink, DeliveryPolicy(**policy), clock=clock)  # type: ignore[arg-type]
        self._arrivals = ArrivalClock(clock)

    async def queue(self, *turns: Turn) -> None:
        batch = [ArrivedTurn(said, self._arrivals.next()) for said in turns]
        unknown = [(said.owner, said.agent_id) for said in turns]
        work = partial(insert_turns, batch=batch, now_s=self.clock(), unknown=unknown, sinks=self.sinks)
        await self.database.write(work)

    async def rounds(self, *, seconds: float = 0, step_s: float = 1) -> None:
        """Works through what is due, again and again while the time goes on."""
        end_s = self.clock.now_s + seconds
        while True:
            while await self.worker.round():
                await self.worker.idle()
            if self.clock.now_s >= end_s:
                return
            self.clock.now_s += step_s

    async def read_status(self) -> OutboxStatus:
        return await self.database.read(read_status)


def a_talk(count: int, *, by: Owner | None = None) -> list[Turn]:
    return [turn(f"t{number:03}", by=by, sequence=number) for number in range(1, count + 1)]
