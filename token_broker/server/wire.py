"""What a WebSocket of the server's offers below ASGI: to write on the spot, and to take messages without a queue."""

from collections.abc import Callable
from typing import Protocol

__all__ = ["ClientWire", "MessageSink"]

MessageSink = Callable[[bytes], bool]


class ClientWire(Protocol):
    """The server's end of a client's socket, below ASGI."""

    @property
    def takes_data(self) -> bool:
        """Whether the client reads what it is sent; False as well where it is gone."""
        ...

    def write_text(self, payload: bytes) -> None:
        """Writes a text message; to be asked for only where `takes_data`."""
        ...

    def offer_to(self, sink: MessageSink | None) -> None:
        """Offers each text message to `sink` while the application waits for one and none is queued; where that
        answers False, the message is queued as ever.
        """
        ...
