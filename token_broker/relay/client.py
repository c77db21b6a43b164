"""A talk's client: the two callables of ASGI, and what our own server offers beyond them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope, Send

from token_broker.server.client_wire import ClientWire
from token_broker.server.close_codes import CLIENT_STALLED, Ending
from token_broker.server.websocket_protocol import GIVE_UP_EXTENSION, WIRE_EXTENSION, ClientGoneError

__all__ = ["TalkClient"]

_CLOSE_S = 1.0  # a client that reads takes milliseconds, and draining waits for every talk


@dataclass(slots=True)
class TalkClient:
    """An accepted WebSocket. `gone`: the client closed it, or it was closed by the server; `code` if it is known.

    `give_up` closes it without waiting for the client to read; `wire` serves the fast path. Both are None on a server
    that lacks the extension.
    """

    receive: Callable[[], Awaitable[Message]]
    send: Callable[[Message], Awaitable[None]]
    give_up: Callable[[int, str], None] | None = None
    wire: ClientWire | None = None
    gone: bool = False
    code: int | None = None

    @classmethod
    def of(cls, scope: Scope, receive: Receive, send: Send) -> "TalkClient":
        """The client of an ASGI connection."""
        extensions = scope.get("extensions") or {}
        return cls(
            receive,
            send,
            give_up=extensions.get(GIVE_UP_EXTENSION, {}).get("give_up"),
            wire=extensions.get(WIRE_EXTENSION, {}).get("wire"),
        )

    async def tell(self, text: str) -> bool:
        """Sends one event, waiting until the client accepts it; False: the client is gone."""
        try:
            await self.send({"type": "websocket.send", "text": text})
        except ClientGoneError as error:
            self.gone, self.code = True, error.code
        except (OSError, RuntimeError):  # what other servers raise for a client that left
            self.gone = True
        return not self.gone

    async def close(self, ending: Ending, last_event: str | None) -> None:
        """Sends `last_event` and the close frame, within a second. A client that does not read is not waited for."""
        if self.gone:
            return
        if ending.code != CLIENT_STALLED:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    if last_event is not None:
                        await self.send({"type": "websocket.send", "text": last_event})
                    await self.send({"type": "websocket.close", "code": ending.code, "reason": ending.reason})
                    return
            except TimeoutError:  # it stopped reading: below, the frame is written without waiting
                pass
            except (OSError, RuntimeError):
                return
        if self.give_up is not None:
            self.give_up(ending.code, ending.reason)
