"""What one connection to Azure says of its resource, told to the pool when it is known.

A handshake proves nothing: a resource may take every session and fail every answer. A connection works when an answer
of it was completed, or when 30 s have passed without a fault where nobody asked for one.
"""

import asyncio

from strategies.errors import MintError, TransientError
from strategies.pool import Pool, PoolPermit
from token_broker.relay.azure.socket import CLOSED_BY_BROKER, AzureSocket

__all__ = ["ConnectionHealth"]

_PROVEN_AFTER_S = 30.0
_SESSION_END_S = 60.0  # Azure ends a session by its clock: that is no fault of the resource


class ConnectionHealth:
    """Reports one connection. `expires_s` is when its session ends, by the loop's clock, where Azure said so."""

    def __init__(self, pool: Pool, permit: PoolPermit, socket: AzureSocket, *, expires_s: float | None) -> None:
        self._pool = pool
        self._permit = permit
        self._expires_s = expires_s
        self._loop = asyncio.get_running_loop()
        self._proven = False
        self._failed = False
        self._timer = self._loop.call_later(_PROVEN_AFTER_S, self.works)
        socket.on_end = self._ended
        if socket.failure is not None:
            self._ended(socket.failure)

    def works(self) -> None:
        """An answer was completed, or enough time has passed."""
        self._timer.cancel()
        if not self._proven and not self._failed:
            self._proven = True
            self._pool.succeeded(self._permit)

    def failed(self, error: MintError) -> None:
        """The connection broke, fell silent, or gives no answers, however long it worked before. It counts once."""
        self._timer.cancel()
        if not self._failed:
            self._failed = True
            self._pool.failed(self._permit, error)

    def _ended(self, why: str) -> None:
        self._timer.cancel()
        by_the_clock = self._expires_s is not None and self._loop.time() >= self._expires_s - _SESSION_END_S
        if why != CLOSED_BY_BROKER and not by_the_clock:
            self.failed(TransientError(why))
