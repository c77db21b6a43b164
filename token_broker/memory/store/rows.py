"""Turns as they come out of the store."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from token_broker.memory.delivery.ordering import Position
from token_broker.memory.store.keys import arrived_us, sequence_at
from token_broker.memory.store.tables import Delivery
from token_broker.memory.types import Role, Source

__all__ = ["DeadLetter", "StoredTurn", "stored_turn"]


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A turn and how far it has come."""

    turn_id: str
    position: Position
    agent_id: str
    role: Role
    content: str
    created_at: datetime
    source: Source
    interrupted: bool
    channel: str | None
    delivery: Delivery

    @property
    def sequence(self) -> int | None:
        return sequence_at(self.position.place)

    @property
    def arrived_us(self) -> int:
        return arrived_us(self.position.arrival)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A turn that the sink would not take, and why."""

    session_id: str
    turn: StoredTurn
    reason: str


def stored_turn(row: Any) -> StoredTurn:
    """A row of the table `turns`."""
    return StoredTurn(
        turn_id=row.turn_id,
        position=Position(row.epoch, row.place, row.arrival),
        agent_id=row.agent_id,
        role=row.role,
        content=row.content,
        created_at=datetime.fromtimestamp(row.created_at_us / 1_000_000, UTC),
        source=row.source,
        interrupted=bool(row.interrupted),
        channel=row.channel,
        delivery=Delivery(row.delivery),
    )
