"""A WebRTC call as the store has it."""

from dataclasses import dataclass

from token_broker.security.tokens import Owner

__all__ = ["DELIVERED", "ENDED", "MADE", "CallName", "CallRow", "HeldCall", "TakenCall"]

MADE, DELIVERED, ENDED = 0, 1, 2
"""Azure has named it; its client has the answer; it is over."""

CallName = tuple[str, str]
"""The host of the call, and the call's id at that host."""


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


HeldCall = tuple[str, int]
"""A call's key, and the epoch of our lease."""
