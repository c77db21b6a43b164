"""A page whose talk goes by `webrtc_websocket`, as far as its socket sees it: nobody plays media here."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from benchmarks.failover import offer

__all__ = ["SignallingPage", "signalling_page"]


@dataclass
class SignallingPage:
    """The page's socket, and every event that came over it."""

    socket: ClientConnection
    events: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str) -> dict[str, Any]:
        """Reads on to the next event of that type. Raises ConnectionClosed."""
        async with asyncio.timeout(30):
            while True:
                self.events.append(json.loads(await self.socket.recv()))
                if self.events[-1]["type"] == kind:
                    return self.events[-1]

    async def opened(self) -> int | None:
        """Reads up to `broker.ready`, which is the last event then; else the code that the socket is closed with."""
        try:
            await self.until("broker.ready")
        except ConnectionClosed:
            return self.socket.close_code
        return None

    async def ask(self, words: str = "Hello.", *, said: str = "response.audio_transcript.done") -> str:
        """Types `words`; what the agent says to that, told by an event of the type `said`."""
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}
        await self.send("conversation.item.create", item=item)
        await self.send("response.create")
        return str((await self.until(said))["transcript"])

    async def closed(self) -> int:
        """Reads until the socket is closed; returns the code."""
        with contextlib.suppress(ConnectionClosed):
            await self.until("nothing is of this type")
        assert self.socket.close_code is not None
        return self.socket.close_code

    @property
    def told(self) -> list[str]:
        """The codes of the broker's errors."""
        return [event["code"] for event in self.events if event["type"] == "broker.error"]


@contextlib.asynccontextmanager
async def signalling_page(url: str, protocols: Sequence[str]) -> AsyncIterator[SignallingPage]:
    """A page that has sent its offer; `url` and `protocols` are a plan's."""
    offered = [Subprotocol(name) for name in protocols]
    async with connect(url, subprotocols=offered, proxy=None, compression=None, close_timeout=1) as socket:
        page = SignallingPage(socket)
        await page.send("rtc.call.sdp.create", sdp_offer=await offer())
        yield page
