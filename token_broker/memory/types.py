"""The memory's values and seams: a turn as it is said and as it is stored, and what the rest of the broker may ask for.

Nothing here imports SQLAlchemy: it takes half a second of CPU to load, and is loaded when the store opens.
"""

import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum
from typing import Literal, Protocol

from token_broker.security.tokens import Owner
from token_broker.settings import SinkName

__all__ = [
    "BACKOFF_FIRST_S",
    "BACKOFF_LAST_S",
    "BUCKETS",
    "ERASED_PRINCIPAL",
    "FULL_BATCH",
    "LAST_PLACE",
    "LAST_TURNS",
    "NOTICE_SINKS",
    "NOT_OWNED",
    "SINK_BITS",
    "ArrivedTurn",
    "Backlog",
    "Block",
    "BlockKind",
    "Blocklist",
    "DeadLetter",
    "Delivery",
    "DeliveryBatch",
    "FactSource",
    "Failure",
    "Interruption",
    "Notice",
    "NoticeKind",
    "OutboxStatus",
    "Outcome",
    "Position",
    "Recall",
    "Remembered",
    "Role",
    "SessionRecord",
    "SessionRepository",
    "Sink",
    "SinkErasure",
    "SinkError",
    "SinkName",
    "SizeLimit",
    "Source",
    "StoredTurn",
    "TicketRepository",
    "Turn",
    "TurnIngest",
    "arrival_at",
    "arrived_us",
    "backoff_s",
    "bucket_of",
    "ensure_storable",
    "is_storable",
    "replace_unstorable",
    "stored_bytes",
    "to_us",
]

ERASED_PRINCIPAL = ""  # the principal of an erased session
LAST_TURNS = 12  # of a session, shown to an agent that resumes it
BUCKETS = 64
LAST_PLACE = 2**31 - 1  # of turns without a sequence: behind the others of their epoch, in order of arrival
NODE_BITS = 10  # of an arrival, the random part
FULL_BATCH = 50  # turns a delivery, at most; a sink may take fewer
SINK_BITS: Mapping["SinkName", int] = {"zep": 1, "zep_cloud": 2, "http": 4}  # stored: never change one
NOTICE_SINKS: frozenset["SinkName"] = frozenset({"http"})  # those that are told of more than turns
BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 300.0

# PostgreSQL's text has no NUL, and UTF-8 has no lone surrogates.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

NoticeKind = Literal["turn.interrupted", "session.summary"]
Role = Literal["user", "assistant"]
Source = Literal["proxy", "browser"]
BlockKind = Literal["principal", "session"]


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that was said. Unique by (owner.session_id, turn_id); read in the order (epoch, sequence, arrival).

    `put_back_at` is the beginning of a talk, where the turn may be history that a client puts back: it is not stored
    where the session has a turn of that role and text from before.
    """

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
    put_back_at: datetime | None = None  # UTC


@dataclass(frozen=True, slots=True)
class Interruption:
    """The user cut in while a turn was played that may be stored already: it becomes `interrupted`."""

    owner: Owner
    turn_id: str

    @property
    def key(self) -> tuple[str, str]:
        return self.owner.session_id, self.turn_id


@dataclass(frozen=True, slots=True)
class ArrivedTurn:
    """A turn and its place among all that arrived; see `ArrivalClock`."""

    turn: Turn
    arrival: int
    size_bytes: int = 0  # see `stored_bytes`

    @property
    def key(self) -> tuple[str, str]:
        return self.turn.owner.session_id, self.turn.turn_id


class Outcome(Enum):
    """The result of storing a turn."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the session has a turn of that id; the first content stays
    FOREIGN = "foreign"  # the session belongs to another principal
    ERASED = "erased"  # the session was erased: nothing is stored in it any more
    FULL = "full"  # the session has reached its size limit


NOT_OWNED = frozenset({Outcome.FOREIGN, Outcome.ERASED})  # the session is not, or no longer, the owner's


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A turn's place in its session; turns are read and delivered in this order."""

    epoch: int
    place: int
    arrival: int


class Delivery(IntEnum):
    """The state of a turn's delivery to all sinks: dead where one of them refused it and none waits for it."""

    QUEUED = 0
    DELIVERED = 1
    DEAD = 2

    @classmethod
    def of(cls, pending: int, dead: int) -> "Delivery":
        """The state for these bits of sinks."""
        return cls.QUEUED if pending else cls.DEAD if dead else cls.DELIVERED

    @property
    def label(self) -> Literal["queued", "delivered", "dead"]:
        """The state's name in receipts."""
        return _DELIVERY_LABELS[self]


_DELIVERY_LABELS: dict[Delivery, Literal["queued", "delivered", "dead"]] = {
    Delivery.QUEUED: "queued",
    Delivery.DELIVERED: "delivered",
    Delivery.DEAD: "dead",
}


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A turn as the store has it, with the state of its delivery."""

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
        return None if self.position.place == LAST_PLACE else self.position.place

    @property
    def arrived_us(self) -> int:
        return arrived_us(self.position.arrival)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A turn that a sink refused for good, and the reason."""

    session_id: str
    turn: StoredTurn
    reason: str
    sink: str = "zep"


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """What a transaction needs to check a limit: the sessions whose column it reads, and what to add to it."""

    limit_bytes: int
    unsure: frozenset[str] = frozenset()
    pending: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What the store says of a session. An erased session has no owner, and never gets one again."""

    session_id: str
    principal: str
    epoch: int
    talk_id: str | None = None  # the newest talk that a replica saw, and when it is over, in seconds since 1970
    talk_over_at_s: float = 0.0

    @property
    def erased(self) -> bool:
        return self.principal == ERASED_PRINCIPAL


@dataclass(frozen=True, slots=True)
class Block:
    """A principal, or one session, that the operator has blocked."""

    kind: BlockKind
    id: str
    since: datetime  # UTC


def is_storable(text: str) -> bool:
    """Whether every store can hold the text as it is."""
    return _UNSTORABLE.search(text) is None


def ensure_storable(text: str) -> str:
    """The text itself. Raises ValueError where a store cannot hold it."""
    if not is_storable(text):
        raise ValueError("has a NUL or half a surrogate pair, which can't be stored")
    return text


def replace_unstorable(text: str) -> str:
    """The text with U+FFFD for every character that a store cannot hold."""
    return _UNSTORABLE.sub("\ufffd", text)


def stored_bytes(turn: Turn) -> int:
    """The bytes that a turn counts for: content, ids and channel, in UTF-8."""
    text = f"{turn.content}{turn.turn_id}{turn.owner.session_id}{turn.agent_id}{turn.channel or ''}"
    return len(text) if text.isascii() else len(text.encode())


def bucket_of(key: str) -> int:
    """The bucket (0 to 63) of all rows of a session, or of a ticket. It is stored: never change the function."""
    return zlib.crc32(key.encode()) % BUCKETS


def to_us(seconds: float) -> int:
    """Seconds since 1970 as whole microseconds."""
    return round(seconds * 1_000_000)


def arrival_at(seconds: float) -> int:
    """The smallest arrival of that time; see `ArrivalClock`."""
    return to_us(seconds) << NODE_BITS


def arrived_us(arrival: int) -> int:
    """The time of an arrival, in microseconds since 1970."""
    return arrival >> NODE_BITS


def backoff_s(failures: int, *, jitter: Callable[[], float] = random.random) -> float:
    """1 s, doubled with each failure up to 5 min. Up to half is taken off at random, so that sessions spread out."""
    whole = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30))
    return whole * (0.5 + jitter() / 2)


class TurnIngest(Protocol):
    """Takes the proxy's turns; a talk never waits for it."""

    def offer(self, turn: Turn) -> bool:
        """Accepts `turn` for storage, or returns False where the bounded buffer is full (counted there)."""
        ...

    def mark_interrupted(self, interruption: Interruption) -> bool:
        """Accepts the mark for a turn that was offered before; False where the bounded buffer is full (counted there).

        A turn that is not there, or is another owner's, is not changed.
        """
        ...


class SessionRepository(Protocol):
    """The owners of sessions, as the store has them. Waits are bounded (BROKER_STORE_PATIENCE_S)."""

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

    def note_talk(self, owner: Owner, *, over_in_s: float, begins: bool) -> None:
        """Writes when the owner's talk is over, unless it goes on; never waits, never raises.

        A talk that `begins` takes the place of the session's former one; of the end of another one nothing is written.
        """
        ...


class Blocklist(Protocol):
    """The principals and sessions that the operator has blocked; every replica knows them within two seconds."""

    @property
    def was_read(self) -> bool:
        """Whether this process has ever read the list; until then `refused` is always False."""
        ...

    @property
    def is_missed(self) -> bool:
        """Whether nobody may be served yet: the list is required (BROKER_REQUIRE_BLOCKLIST) and was never read."""
        ...

    def refused(self, principal: str, session_id: str | None) -> bool:
        """Whether the principal or the session is blocked; never waits, never raises."""
        ...


class TicketRepository(Protocol):
    """Single use of tickets, across replicas where there is a store."""

    async def spend(self, ticket_id: str, expires_at_s: float) -> bool:
        """True the first time, False ever after. With a silent store the process alone remembers, after 250 ms."""
        ...


@dataclass(frozen=True, slots=True)
class Remembered:
    """Something said earlier that a search found."""

    text: str  # the turn's beginning, at most some hundred characters
    role: Role
    when: datetime  # UTC


class Recall(Protocol):
    """What the memory knows of a user: for an agent's instructions, and in answer to a question."""

    async def block(self, owner: Owner) -> str:
        """The fenced block to append to the instructions, at most 2 KB; empty where nothing is known.

        Never raises, and takes no longer than its budget (300 ms).
        """
        ...

    async def search(self, owner: Owner, query: str, *, limit: int = 5) -> Sequence[Remembered]:
        """What the owner's turns say about `query`, best first; empty where none does.

        An owner without authentication gets turns of the session alone, others of all their sessions. Never raises,
        and takes no longer than its budget; what is late or failed is counted, and found empty.
        """
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """How a delivery failed.

    `permanent`: the sink will never take these turns as they are. `counts`: the sink answered about this delivery (a
    500, a malformed answer), so the oldest turn may be its cause; without it the sink is unavailable to any delivery.
    `refused`: it counts, and the sink is well: other sessions need not wait. `uncertain`: the turns may have been
    stored all the same.
    """

    reason: str
    permanent: bool = False
    counts: bool = False
    refused: bool = False
    uncertain: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """The history of a session's failures."""

    attempts: int = 0
    failures: int = 0
    failing_since_us: int | None = None
    batch: int = FULL_BATCH


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The outbox in numbers, over all replicas: of all sinks, and of each that has any."""

    queued: int = 0
    oldest_us: int | None = None
    dead: int = 0
    erasures: int = 0
    by_sink: Mapping[SinkName, "OutboxStatus"] = field(default_factory=dict, compare=False)


class SinkError(Exception):
    """The sink did not take the delivery; `failure` says why and what may be done."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class DeliveryBatch:
    """Turns of one session, in order. `uncertain`: some may have arrived before; look before repeating.

    `missing` are the session's turns that this sink has refused for good. `generation` grows with each task of the sink
    that failed: until then a repetition has the same idempotency key.
    """

    session_id: str
    principal: str
    user_id: str | None
    turns: Sequence[StoredTurn]
    uncertain: bool
    agent_id: str | None = None
    missing: Sequence[str] = ()
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a sink is told of a session beside its turns; `body` is JSON."""

    session_id: str
    principal: str
    user_id: str | None
    agent_id: str | None
    kind: NoticeKind
    body: str
    arrival: int


@dataclass(frozen=True, slots=True)
class SinkErasure:
    """Something that one sink has to erase: a session, or all of `principal` where `session_id` is empty.

    `user_id` and `agent_id` are the session's, if it had them; `before_us` is when it was asked for.
    """

    sink: SinkName
    principal: str
    session_id: str
    user_id: str | None = None
    agent_id: str | None = None
    before_us: int = 0
    failures: int = 0
    task: str | None = None


class Sink(Protocol):
    """A memory that turns are delivered to. The caller bounds all methods; all raise SinkError.

    `max_turns` and `max_bytes` (of content) are the most that a delivery has. A sink that `keeps_batches` gets the same
    turns again after a failure that may not be theirs: it recognises a repetition by its key. A sink that
    `takes_notices` is told of what happens to a session beside its turns.
    """

    name: SinkName
    max_turns: int
    max_bytes: int | None
    keeps_batches: bool
    takes_notices: bool

    async def deliver(self, batch: DeliveryBatch) -> str | None:
        """Stores the turns, each once, in order. A text names a task that is still at it: see `is_done`."""
        ...

    async def tell(self, notice: Notice) -> None:
        """Passes a notice on."""
        ...

    async def erase(self, erasure: SinkErasure) -> str | None:
        """Erases; no error where nothing is stored. A text names a task that is still at it: see `is_done`."""
        ...

    async def is_done(self, task: str) -> bool:
        """Whether a task has succeeded; False while it runs. SinkError where it failed, or the sink has lost it."""
        ...

    async def aclose(self) -> None:
        """Closes what is open."""
        ...


class FactSource(Protocol):
    """Facts about a user, for recall."""

    async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
        """The most useful first; the caller bounds the wait. Raises SinkError or StoreError.

        Without `of_session` the session is not known to be `owner`'s, and nothing said in it may be returned.
        """
        ...
