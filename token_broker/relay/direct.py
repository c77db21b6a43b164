"""The direct path of a talk: from one socket to the other in one step, past every queue and task.

A message takes it while nothing that came before it waits or is being handled, while the side that it is for takes
data, and where there is nothing to do about it but to count it: a client's plain append of audio, an event of Azure's
that is not read here. All else goes the talk's usual way, where order and back-pressure are made. So nothing is ever
held here, and nobody waits.
"""

from collections.abc import Callable
from typing import Protocol

from token_broker.relay.counters import TalkCounters
from token_broker.relay.policy import event_type_by_head, is_audio_delta, is_plain_append_payload
from token_broker.relay.reading import AUDIO_DELTAS, READ_EVENTS
from token_broker.relay.socket import AzureSocket
from token_broker.relay.turns import TurnAssembler

__all__ = ["ClientWire", "DirectPath", "Taker"]

# A transport may tell that its peer takes no more only at the end of the loop's turn, and a turn can bring megabytes.
# So after this much one message goes the usual way, which takes a turn, and then hears of it.
_BURST_BYTES = 65_536

Taker = Callable[[bytes], bool]


class ClientWire(Protocol):
    """The server's end of a client's socket, below ASGI."""

    def send_now(self, payload: bytes) -> bool:
        """Writes a text message, where the client takes data; False: nothing was written."""

    def offer_to(self, taker: Taker | None) -> None:
        """Offers each text message to `taker` while the application waits for one and none is queued; where it
        answers False, the message is queued as ever.
        """


class DirectPath:
    """One talk's, between its client and the upstream that it was joined to. Without a `wire` nothing takes it."""

    def __init__(
        self, wire: ClientWire | None, *, counters: TalkCounters, assembler: TurnAssembler, time_s: Callable[[], float]
    ) -> None:
        self._wire = wire
        self._counters = counters
        self._assembler = assembler
        self._time_s = time_s
        self._azure: AzureSocket | None = None
        self._burst_to_azure_bytes = 0
        self._burst_to_client_bytes = 0

    def join(self, azure: AzureSocket | None, *, to_azure: bool = True, to_client: bool = True) -> None:
        """Carries between the client and `azure` from now on, None: nothing any more.

        `to_azure` and `to_client` switch a direction off in which every message has to be looked at.
        """
        if self._wire is None:
            return
        if self._azure is not None:
            self._azure.offer_to(None)
        self._azure = azure
        self._wire.offer_to(self._carry_to_azure if azure is not None and to_azure else None)
        if azure is not None and to_client:
            azure.offer_to(self._carry_to_client)

    def _carry_to_azure(self, payload: bytes) -> bool:
        azure = self._azure
        if azure is None or not azure.writable or not is_plain_append_payload(payload):
            return False
        size = len(payload)
        self._burst_to_azure_bytes += size
        if self._burst_to_azure_bytes > _BURST_BYTES:
            self._burst_to_azure_bytes = 0
            return False
        azure.send(payload)
        counters = self._counters
        counters.to_azure_frames += 1
        counters.to_azure_bytes += size
        return True

    def _carry_to_client(self, payload: bytes) -> bool:
        wire = self._wire
        if wire is None or not payload.isascii():
            return False
        audio = is_audio_delta(payload)
        if not audio:
            kind = event_type_by_head(payload)
            if kind is None or kind in READ_EVENTS:
                return False
            audio = kind in AUDIO_DELTAS
        size = len(payload)
        self._burst_to_client_bytes += size
        if self._burst_to_client_bytes > _BURST_BYTES:
            self._burst_to_client_bytes = 0
            return False
        if not wire.send_now(payload):
            return False
        if audio:
            self._assembler.heard(size - payload.find(b'"delta"'), self._time_s())
        counters = self._counters
        counters.to_client_frames += 1
        counters.to_client_bytes += size
        return True
