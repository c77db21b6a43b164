"""A WebRTC call as the store has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from token_broker.security.tokens import Owner

__all__ = [
    "ASKED",
    "DELIVERED",
    "ENDED",
    "MADE",
    "NOT_VERIFIED",
    "AttachClaim",
    "CallName",
    "CallRow",
    "HeldCall",
    "PageCall",
    "PageEventRow",
    "SharedNews",
    "TakenCall",
]

MADE, DELIVERED, ENDED, ASKED = 0, 1, 2, 3
"""Azure has named it; its client has the answer; it is over; a page says that it is its own, and Azure is asked.

Only the first two are calls that somebody holds.
"""

NOT_VERIFIED = "not_verified"
"""The ending of a call that a page named, and that was not its own."""

AttachClaim = Literal["claimed", "attached", "foreign", "refused"]
"""Azure is to be asked here; the session has the call, or is being asked for; another's; refused before, or over."""

CallName = tuple[str, str]
"""The host of the call, and the call's id at that host."""


PageCall = tuple[str, str]
"""A session, and Azure's id of its call."""


@dataclass(frozen=True, slots=True)
class CallRow:
    """A call that Azure has made. `lasts_s` is the longest that it may go on from now on."""

    key: str
    owner: Owner
    agent_id: str
    limit_key: str
    resource: str
    endpoint: str
    call_id: str
    transport: str
    lasts_s: float

    @property
    def name(self) -> CallName:
        return self.endpoint, self.call_id


@dataclass(frozen=True, slots=True)
class TakenCall:
    """What the store says of a call. `ending` is the end that somebody wants for it."""

    row: CallRow
    state: int
    epoch: int
    ending: str | None
    read_for_s: float = 0.0  # for how long a page goes on reading its events at another replica
    age_s: float = 0.0
    was_heard: bool = False  # by its former holder
    unheard_s: float | None = None  # since the last row of its talk; None where the talk was never heard
    is_counted: bool = False  # its former holder has written what it used, and wants it to end
    lost_s: float = 0.0  # since its former holder last heard it for sure, or since it was hung up elsewhere


HeldCall = tuple[str, int]
"""A call's key, and the epoch of our lease."""


@dataclass(frozen=True, slots=True)
class PageEventRow:
    """What a page was told. `stream` is one replica's, which numbers its events; `event` is JSON."""

    page: PageCall
    stream: str
    number: int
    told_at_us: int
    event: str


@dataclass(frozen=True, slots=True)
class SharedNews:
    """Events in the order in which they were told, and the calls that go on."""

    now_us: int
    events: Sequence[PageEventRow]
    live: frozenset[PageCall]
