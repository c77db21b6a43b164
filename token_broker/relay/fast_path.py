"""The direct path of a talk: from one socket to the other in one step, past every queue and task.

A message takes it while nothing that came before it waits or is being handled, and while the side that it is for takes
data: a client's plain append of audio, and any event of Azure's. All else goes the talk's usual way, where order and
back-pressure are made. So nothing is ever held here, and nobody waits.
"""

from collections.abc import Callable

from token_broker.relay.azure.connector import Upstream
from token_broker.relay.counters import TalkCounters
from token_broker.relay.event_handler import EventReader
from token_broker.relay.policy.allowlist import is_plain_append_payload
from token_broker.server.wire import ClientWire

__all__ = ["FastPath"]

# A transport may tell that its peer takes no more only at the end of the loop's turn, and a turn can bring megabytes.
# So after this much one message goes the usual way, which takes a turn, and then hears of it.
_BURST_BYTES = 262_144
_FRAME_BYTES = 64  # what a frame counts beside its payload: each costs time, even an empty one


class FastPath:
    """One talk's, between its client and the upstream that it was joined to. Without a `wire` nothing takes it.

    `failed` hears of an error in reading an event, as the talk's task would have it.
    """

    def __init__(
        self,
        wire: ClientWire | None,
        reader: EventReader,
        *,
        counters: TalkCounters,
        failed: Callable[[Exception], None],
    ) -> None:
        self._wire = wire
        self._reader = reader
        self._counters = counters
        self._failed = failed
        self._upstream: Upstream | None = None
        self._burst_to_azure_bytes = 0
        self._burst_to_client_bytes = 0

    def join(self, upstream: Upstream | None) -> None:
        """Carries between the client and `upstream` from now on; None: nothing any more."""
        if self._wire is None:
            return
        if self._upstream is not None:
            self._upstream.socket.offer_to(None)
        self._upstream = upstream
        if upstream is None:
            self._wire.offer_to(None)
            return
        upstream.socket.offer_to(self._carry_to_client)
        self._wire.offer_to(self._carry_to_azure)

    def _carry_to_azure(self, payload: bytes) -> bool:
        upstream = self._upstream
        if upstream is None or not upstream.socket.writable or not is_plain_append_payload(payload):
            return False
        size = len(payload)
        self._burst_to_azure_bytes += size + _FRAME_BYTES
        if self._burst_to_azure_bytes > _BURST_BYTES:
            self._burst_to_azure_bytes = 0
            return False
        upstream.socket.send(payload)
        counters = self._counters
        counters.to_azure_frames += 1
        counters.to_azure_bytes += size
        return True

    def _carry_to_client(self, payload: bytes) -> bool:
        wire, upstream = self._wire, self._upstream
        if wire is None or upstream is None or not wire.takes_data:
            return False
        self._burst_to_client_bytes += len(payload) + _FRAME_BYTES
        if self._burst_to_client_bytes > _BURST_BYTES:
            self._burst_to_client_bytes = 0
            return False
        if self._reader.passes(payload):
            self._tell(wire, payload)
            return True
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            return False  # the socket's to refuse
        try:
            told = self._reader.told(text, upstream)
        except Exception as error:  # noqa: BLE001  # whatever it is ends the talk; picows would keep it to itself
            self._failed(error)
            return True
        for event in told:
            self._tell(wire, event.encode())
        return True

    def _tell(self, wire: ClientWire, payload: bytes) -> None:
        wire.write_text(payload)
        counters = self._counters
        counters.to_client_frames += 1
        counters.to_client_bytes += len(payload)
