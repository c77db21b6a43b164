"""What a lost session leaves: what ends for the client, and the steps by which a new session takes over. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from token_broker.relay.resume.held_audio import Payload
from token_broker.relay.resume.history import Item

__all__ = ["Ask", "Handover", "Listen", "Resend", "Say", "Speech", "Step"]

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Say:
    """An item of the conversation: a text of the user's or the agent's, a call, or its output."""

    item: Item


@dataclass(frozen=True, slots=True)
class Speech:
    """An utterance that is over and has no transcript: its audio, committed by hand.

    `item_id` is the one that the client knows; `told`: the client was told that it was committed.
    """

    item_id: str | None
    appends: tuple[Payload, ...]
    told: bool


@dataclass(frozen=True, slots=True)
class Resend:
    """An event of the client's that Azure has not confirmed, as it was sent."""

    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One `response.create`: the client's own, or the broker's (None). `go_on`: the answer was cut in the middle."""

    request: Event | None = None
    go_on: bool = False


@dataclass(frozen=True, slots=True)
class Listen:
    """Audio that is not committed yet: it is appended, and turn detection goes on from there.

    `item_id` is that of an utterance under way that the client was told of.
    """

    appends: tuple[Payload, ...]
    item_id: str | None = None


Step = Say | Speech | Resend | Ask | Listen


@dataclass(frozen=True, slots=True)
class Handover:
    """What becomes of a talk whose session is lost.

    `endings` are the `response.done` events for the client. `unsaid` are items of answers of which nothing was heard:
    they are no turns. `steps` are for the new session, in order.
    """

    endings: tuple[dict[str, Any], ...] = ()
    unsaid: frozenset[str] = frozenset()
    steps: tuple[Step, ...] = ()
