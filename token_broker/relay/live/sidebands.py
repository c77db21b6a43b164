"""The sidebands of sessions over WebRTC that this process has open, and how such a session is ended.

Azure takes one sideband a session, as far as is known, so whoever ends a session uses the one that is open. A session
is over when Azure says `session.closed`, or does not know it any more (docs/azure.md §12.3).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from strategies.errors import MintError, TimedOutError
from token_broker.relay.azure.connector import NO_SUCH_CALL
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.event_text import compact, event_type
from token_broker.relay.live.shown import CLOSED

__all__ = ["LiveSidebands", "Sideband"]

_CLOSE = compact({"type": "session.close", "event_id": "broker_close"})

Joins = Callable[[str, str], Awaitable[AzureSocket]]
"""Opens the sideband of a session at a live endpoint. Raises MintError."""


@dataclass(slots=True)
class Sideband:
    """An open one. Its holder sets `over` when Azure has closed the session, and `left` when the socket ends."""

    socket: AzureSocket
    over: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)


class LiveSidebands:
    """Those of the process."""

    def __init__(self, joins: Joins) -> None:
        self._joins = joins
        self._open: dict[tuple[str, str], Sideband] = {}
        self._opening: dict[tuple[str, str], asyncio.Event] = {}

    async def open(self, endpoint: str, session_id: str) -> Sideband:
        """Joins the session; this is its sideband until `release`. Raises MintError."""
        key = endpoint, session_id
        opened = self._opening[key] = asyncio.Event()
        try:
            made = self._open[key] = Sideband(await self._joins(endpoint, session_id))
            return made
        finally:
            if self._opening.get(key) is opened:
                del self._opening[key]
            opened.set()

    def release(self, endpoint: str, session_id: str, sideband: Sideband) -> None:
        """The socket has ended."""
        sideband.left.set()
        if self._open.get((endpoint, session_id)) is sideband:
            del self._open[endpoint, session_id]

    async def has_session(self, endpoint: str, session_id: str) -> bool:
        """Whether Azure has the session. Raises MintError where that is not known."""
        if (held := await self._held(endpoint, session_id)) is not None:
            return not held.over.is_set()
        try:
            socket = await self._joins(endpoint, session_id)
        except MintError as error:
            if error.status in NO_SUCH_CALL:
                return False
            raise
        await socket.aclose()
        return True

    async def close(self, endpoint: str, session_id: str, timeout_s: float) -> bool:
        """Ends the session. True: it is over; False: Azure was told, and has not said so. Raises MintError."""
        try:
            async with asyncio.timeout(timeout_s):
                if (held := await self._held(endpoint, session_id)) is not None:
                    held.socket.send(_CLOSE)
                    waits = [asyncio.ensure_future(event.wait()) for event in (held.over, held.left)]
                    try:
                        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for wait in waits:
                            wait.cancel()
                    return held.over.is_set()
                return await self._close_anew(endpoint, session_id)
        except TimeoutError:
            raise TimedOutError(f"the session was not closed within {timeout_s:.1f} s") from None

    async def _held(self, endpoint: str, session_id: str) -> Sideband | None:
        """The session's sideband, which may be about to be there: Azure would refuse a second one."""
        if (opened := self._opening.get((endpoint, session_id))) is not None:
            await opened.wait()
        held = self._open.get((endpoint, session_id))
        return held if held is not None and held.socket.failure is None else None

    async def _close_anew(self, endpoint: str, session_id: str) -> bool:
        try:
            socket = await self._joins(endpoint, session_id)
        except MintError as error:
            if error.status in NO_SUCH_CALL:
                return True
            raise
        try:
            socket.send(_CLOSE)
            while True:
                await socket.wait()
                if not socket.frames:
                    return False
                if event_type(socket.take()) == CLOSED:
                    return True
        finally:
            await socket.aclose()
