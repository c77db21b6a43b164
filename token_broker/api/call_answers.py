"""The answer to an SDP offer, and what becomes of the call where that does not reach whoever asked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from strategies.base import SessionSpec
from token_broker.broker import Broker
from token_broker.security.owner import Owner

__all__ = ["CallAnswer", "PlacedCall", "hung_up_unless_delivered"]


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call that Azure took.

    `token` is its id for whoever may hang it up; None where Azure named no id. `spec` is the session as it was minted.
    """

    answer: bytes
    endpoint: str
    call_id: str | None
    token: str | None
    spec: SessionSpec


class CallAnswer(Response):
    """The 201 of a call. Where it can't be sent the call is hung up, and its place given back."""

    def __init__(self, broker: Broker, call: PlacedCall, owner: Owner, headers: Mapping[str, str]) -> None:
        super().__init__(call.answer, 201, headers, media_type="application/sdp")
        self._broker = broker
        self._call = call
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with hung_up_unless_delivered(self._broker, self._call.endpoint, self._call.call_id, self._owner):
            await super().__call__(scope, receive, send)


@contextmanager
def hung_up_unless_delivered(broker: Broker, endpoint: str, call_id: str | None, owner: Owner) -> Iterator[None]:
    """Hangs up a call that Azure made where what is left to do for its answer fails, or is cancelled."""
    try:
        yield
    except BaseException:
        if call_id is not None and broker.calls is not None:
            broker.talks.end(call_id)
            broker.calls.end(endpoint, call_id, owner, why="its answer could not be delivered")
        raise
