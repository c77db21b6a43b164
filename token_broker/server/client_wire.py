"""The client's socket below ASGI: write in the same step, and receive messages without a queue."""

from collections.abc import Callable
from typing import Protocol

__all__ = ["IMAGE_FIELD", "OVERSIZED_IMAGE", "ClientWire", "MessageSink"]

IMAGE_FIELD = b'"image_url"'
"""In a message with this the larger limit for images applies."""
OVERSIZED_IMAGE = "image.too_large"
"""The type of the event that takes the place of a client's message with an image that is too large.

ASGI has no message for it, and the talk is to go on. A client gains nothing by sending such an event itself.
"""

MessageSink = Callable[[bytes], bool]


class ClientWire(Protocol):
    """The server's end of a client's socket."""

    @property
    def takes_data(self) -> bool:
        """Whether the client reads what it is sent. False as well when it has left."""
        ...

    @property
    def pings(self) -> int:
        """The pings that the client has sent so far."""
        ...

    def write_text(self, payload: bytes) -> None:
        """Writes a text message. Call it only while `takes_data`."""
        ...

    def offer_to(self, sink: MessageSink | None) -> None:
        """Offers each text message to `sink` while the application waits for one and none is queued.

        A message that the sink answers with False is queued as usual. None ends the offering.
        """
        ...
