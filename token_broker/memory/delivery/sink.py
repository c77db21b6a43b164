"""The seam to a memory behind the store, and how it may fail."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from token_broker.memory.delivery.backoff import Failure
from token_broker.security.owner import Owner

if TYPE_CHECKING:  # rows bring SQLAlchemy, which is loaded when the store opens
    from token_broker.memory.store.rows import StoredTurn

__all__ = ["DeliveryBatch", "FactSource", "Sink", "SinkError"]


class SinkError(Exception):
    """The sink did not take it; `failure` says why and what may be done."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class DeliveryBatch:
    """Turns of one session, in order. `uncertain`: some may have arrived before; look before repeating."""

    session_id: str
    principal: str
    user_id: str | None
    turns: "Sequence[StoredTurn]"
    uncertain: bool


class Sink(Protocol):
    """A memory that turns are delivered to. Both methods are bounded by the caller, and raise SinkError."""

    async def deliver(self, sent: DeliveryBatch) -> None:
        """Stores the turns, each once, in order."""
        ...

    async def forget(self, principal: str, session_id: str) -> None:
        """Erases a session, or all of `principal` where `session_id` is empty; what is not there is forgotten."""
        ...


class FactSource(Protocol):
    """What is known of a user, for recall."""

    async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
        """The most useful first; bounded by the caller. Raises SinkError or StoreError.

        Without `of_session` the session is not known to be `owner`'s, and nothing said in it may be told.
        """
        ...
