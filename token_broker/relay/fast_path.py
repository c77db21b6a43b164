"""The fast path of a talk: from one socket to the other in one step, past every queue and task.

A message takes it while nothing before it waits or is being handled, and while the receiving side accepts data. It is
open to a client's plain append of audio and to every event of Azure's. Everything else goes through the talk's tasks,
which keep the order and apply back-pressure. So the fast path holds no message, and nobody waits for it.
"""

from collections.abc import Callable

from token_broker.relay.azure.route import UpstreamConnection
from token_broker.relay.counters import TalkCounters
from token_broker.relay.policy.allowlist import is_plain_append_payload
from token_broker.server.client_wire import ClientWire

__all__ = ["FastPath"]

# A transport may report that its peer accepts no more only at the end of the loop's iteration, and one iteration can
# bring megabytes. After this much one message goes through the tasks, which takes an iteration: the report arrives.
_BURST_BYTES = 262_144
_FRAME_BYTES = 64  # counted for a frame beside its payload: each costs time, even an empty one


class FastPath:
    """One talk's fast path, between its client and the upstream that it was joined to. Without a `wire` it is closed.

    `forwards` and `handle` are the event handler's; `hold` keeps an append of the client's for as long as its audio may
    be needed again; `failed` is called with an error that `handle` raised.
    """

    def __init__(
        self,
        wire: ClientWire | None,
        *,
        forwards: Callable[[bytes], bool],
        handle: Callable[[str, UpstreamConnection], list[str]],
        hold: Callable[[bytes], None],
        counters: TalkCounters,
        failed: Callable[[Exception], None],
    ) -> None:
        self._wire = wire
        self._forwards = forwards
        self._handle = handle
        self._hold = hold
        self._counters = counters
        self._failed = failed
        self._upstream: UpstreamConnection | None = None
        self._burst_to_azure_bytes = 0
        self._burst_to_client_bytes = 0

    def join(self, upstream: UpstreamConnection | None) -> None:
        """Carries between the client and `upstream` from now on; None closes the fast path."""
        if self._wire is None:
            return
        if self._upstream is not None:
            self._upstream.socket.offer_to(None)
        self._upstream = upstream
        if upstream is None:
            self._wire.offer_to(None)
            return
        upstream.socket.offer_to(self.take_from_azure)
        self._wire.offer_to(self.take_from_client)

    def take_from_client(self, payload: bytes) -> bool:
        """Sends the client's message to Azure; False: it has to go through the tasks."""
        upstream = self._upstream
        if upstream is None or not upstream.socket.writable or not is_plain_append_payload(payload):
            return False
        size = len(payload)
        self._burst_to_azure_bytes += size + _FRAME_BYTES
        if self._burst_to_azure_bytes > _BURST_BYTES:
            self._burst_to_azure_bytes = 0
            return False
        upstream.socket.send(payload)
        self._hold(payload)
        counters = self._counters
        counters.to_azure_frames += 1
        counters.to_azure_bytes += size
        return True

    def take_from_azure(self, payload: bytes) -> bool:
        """Sends Azure's event to the client; False: it has to go through the tasks."""
        wire, upstream = self._wire, self._upstream
        if wire is None or upstream is None or not wire.takes_data:
            return False
        self._burst_to_client_bytes += len(payload) + _FRAME_BYTES
        if self._burst_to_client_bytes > _BURST_BYTES:
            self._burst_to_client_bytes = 0
            return False
        if self._forwards(payload):
            self._write(wire, payload)
            return True
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            return False  # the socket refuses it, and ends the connection
        try:
            events = self._handle(text, upstream)
        except Exception as error:  # noqa: BLE001  # any error ends the talk; picows would swallow it
            self._failed(error)
            return True
        for event in events:
            self._write(wire, event.encode())
        return True

    def _write(self, wire: ClientWire, payload: bytes) -> None:
        wire.write_text(payload)
        counters = self._counters
        counters.to_client_frames += 1
        counters.to_client_bytes += len(payload)
