"""Close codes of talks, and reasons that are safe to show a client (docs/api.md §5.5)."""

from dataclasses import dataclass

__all__ = [
    "BAD_REQUEST",
    "CALL_OVER",
    "CLIENT_STALLED",
    "DONE",
    "DRAINING",
    "ENDED_BY_AGENT",
    "FOREIGN_ORIGIN",
    "INTERNAL",
    "SESSION_REFUSED",
    "TICKET_REFUSED",
    "TOO_LARGE",
    "TOO_MANY",
    "TOO_MANY_FRAMES",
    "UPSTREAM_FAILED",
    "UPSTREAM_TIMED_OUT",
    "WRONG_FRAMES",
    "WRONG_TEXT",
    "Ending",
    "left",
]

DONE = 1000
WRONG_FRAMES = 1002
WRONG_TEXT = 1007
TOO_MANY_FRAMES = 1008
TOO_LARGE = 1009
INTERNAL = 1011
BAD_REQUEST = 4400
TICKET_REFUSED = 4401
FOREIGN_ORIGIN = 4403
UPSTREAM_TIMED_OUT = 4408
CLIENT_STALLED = 4410
TOO_MANY = 4429
UPSTREAM_FAILED = 4502
DRAINING = 4503


@dataclass(frozen=True, slots=True)
class Ending:
    """A close code and its reason, of at most 123 bytes (RFC 6455 §5.5.1) and without any text of Azure's.

    `error_code` is set where a client that did not ask for the end is told of it by an `error` event, although the
    code is 1000: official clients look at events, not at close reasons. `ends_talk`: it was meant, by the client or by
    us, so that what follows is another talk; after any other end the talk may go on over another connection.
    `by_client`: the client closed the connection, or was lost.
    `outcome`: the end in a word, for the ledger of usage.
    `told`: a client of the proxy hears of it by a `broker.error`, too, with that code.
    """

    code: int
    reason: str
    error_code: str | None = None
    ends_talk: bool = False
    by_client: bool = False
    told: bool = False
    outcome: str = "failed"


SESSION_REFUSED = Ending(
    UPSTREAM_FAILED, "Azure refused the agent's settings; its operator has to act", "session_refused", told=True
)
ENDED_BY_AGENT = Ending(DONE, "the agent has ended the talk", ends_talk=True, outcome="agent")
CALL_OVER = Ending(DONE, "the call has ended", by_client=True, outcome="lost")
_HUNG_UP = Ending(DONE, "the client hung up", ends_talk=True, by_client=True, outcome="hung_up")
_LEFT = Ending(DONE, "the client left", by_client=True, outcome="lost")
# Browsers send the first where a page closes its socket and gives the code, and no code otherwise. A page that is left
# sends 1001, and a connection that is lost has 1006.
_MEANT = frozenset({DONE, 1005})
_CLOSED_BY_SERVER = {
    ending.code: ending
    for ending in (
        Ending(WRONG_FRAMES, "the client's frames were not WebSocket's"),
        Ending(WRONG_TEXT, "a text was not UTF-8"),
        Ending(TOO_MANY_FRAMES, "the client sent too many frames"),
        Ending(TOO_LARGE, "a message was too large"),
        Ending(CLIENT_STALLED, "the client does not read"),
    )
}


def left(code: object) -> Ending:
    """The ending of a talk whose client is gone; `code` is that of ASGI's `websocket.disconnect`.

    The code also tells for what the server has closed the connection itself.
    """
    if not isinstance(code, int):
        return _LEFT
    return _HUNG_UP if code in _MEANT else _CLOSED_BY_SERVER.get(code, _LEFT)
