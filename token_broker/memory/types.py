"""The seams between the talk and its memory: what a turn is, and what the rest of the broker asks of the memory."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Literal, Protocol

from token_broker.security.owner import Owner

__all__ = [
    "LAST_TURNS",
    "NOBODY",
    "NOT_THEIRS",
    "Block",
    "BlockKind",
    "Blocklist",
    "Outcome",
    "Recall",
    "Role",
    "SessionRecord",
    "SessionRepository",
    "Source",
    "TicketRepository",
    "Turn",
    "TurnIngest",
]

NOBODY = ""  # the principal of an erased session
LAST_TURNS = 12  # of a session, told to an agent that takes it up again

Role = Literal["user", "assistant"]
Source = Literal["proxy", "browser"]
BlockKind = Literal["principal", "session"]


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that was said. Unique by (owner.session_id, turn_id); read in the order (epoch, sequence, arrival)."""

    owner: Owner
    turn_id: str
    agent_id: str
    role: Role
    content: str
    created_at: datetime  # UTC
    source: Source
    sequence: int | None = None  # the item's place in its connection
    interrupted: bool = False
    channel: str | None = None


class Outcome(Enum):
    """What became of a turn that was handed in."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the session has a turn of that id; the first content stays
    FOREIGN = "foreign"  # the session belongs to another principal
    ERASED = "erased"  # the session was erased: nothing is stored in it any more
    FULL = "full"  # the session has as many bytes as one may have


NOT_THEIRS = frozenset({Outcome.FOREIGN, Outcome.ERASED})  # the session is not, or no longer, the owner's


class TurnIngest(Protocol):
    """Takes the proxy's turns; a talk never waits for it."""

    def offer(self, turn: Turn) -> bool:
        """Accepts `turn` for storage, or returns False where the bounded buffer is full (counted there)."""
        ...


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What the store says of a session. One that was erased has no owner, and never gets one again."""

    session_id: str
    principal: str
    epoch: int

    @property
    def erased(self) -> bool:
        return self.principal == NOBODY


class SessionRepository(Protocol):
    """Who owns which session, as the store says. Waits are bounded (BROKER_STORE_PATIENCE_S)."""

    async def find(self, session_id: str) -> SessionRecord | None:
        """The session, or None where the store has no such session. Raises StoreError where the store is silent."""
        ...

    async def claim(self, owner: Owner, agent_id: str) -> bool:
        """Makes a new session `owner`'s for good; False where somebody else has it. Raises StoreError: nobody has it.

        For a session whose id the caller chose. Of several that claim one id, at whichever replica, one gets it.
        """
        ...

    def record(self, owner: Owner, agent_id: str) -> None:
        """Writes or renews the session's row beside the answer; never waits, never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """A principal, or one session, that the operator lets in no more."""

    kind: BlockKind
    id: str
    since: datetime  # UTC


class Blocklist(Protocol):
    """Whom the operator has blocked, as every replica knows within two seconds."""

    @property
    def was_read(self) -> bool:
        """Whether this process has ever read the list; until then `refused` knows nobody."""
        ...

    @property
    def is_missed(self) -> bool:
        """Whether nobody is to be served before the list was read, and it was not (BROKER_REQUIRE_BLOCKLIST)."""
        ...

    def refused(self, principal: str, session_id: str | None) -> bool:
        """Whether tokens of this principal, or of this session, open nothing any more; never waits, never raises."""
        ...


class TicketRepository(Protocol):
    """Single use of tickets, across replicas where there is a store."""

    async def spend(self, ticket_id: str, expires_at_s: float) -> bool:
        """True the first time, False ever after. With a silent store the process alone remembers, after 250 ms."""
        ...


class Recall(Protocol):
    """What the memory knows, for the agent's instructions."""

    async def block(self, owner: Owner) -> str:
        """The fenced block to append to the instructions, at most 2 KB; empty where there is nothing.

        Never raises, and takes no longer than its budget (300 ms).
        """
        ...
