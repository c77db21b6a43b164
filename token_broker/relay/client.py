"""A talk's client: ASGI's two callables, and what our own server gives beyond them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope, Send

from token_broker.server.client_wire import ClientWire
from token_broker.server.close_codes import CLIENT_STALLED, Ending
from token_broker.server.websocket_protocol import GIVE_UP_EXTENSION, WIRE_EXTENSION, ClientGoneError

__all__ = ["Client"]

_CLOSE_S = 1.0


@dataclass(slots=True)
class Client:
    """An accepted WebSocket. `gone`: it has left, or was closed under our hands, with `code` where that is known.

    `give_up` closes it without waiting for it to read, `wire` is what the direct path takes; None where the server has
    no such thing.
    """

    receive: Callable[[], Awaitable[Message]]
    send: Callable[[Message], Awaitable[None]]
    give_up: Callable[[int, str], None] | None = None
    wire: ClientWire | None = None
    gone: bool = False
    code: int | None = None

    @classmethod
    def of(cls, scope: Scope, receive: Receive, send: Send) -> "Client":
        """The client of an ASGI connection."""
        extensions = scope.get("extensions") or {}
        return cls(
            receive,
            send,
            give_up=extensions.get(GIVE_UP_EXTENSION, {}).get("give_up"),
            wire=extensions.get(WIRE_EXTENSION, {}).get("wire"),
        )

    async def tell(self, text: str) -> bool:
        """Sends one event, when the client takes it; False: it is gone."""
        try:
            await self.send({"type": "websocket.send", "text": text})
        except ClientGoneError as error:
            self.gone, self.code = True, error.code
        except (OSError, RuntimeError):  # what servers say of a client that left
            self.gone = True
        return not self.gone

    async def close(self, ending: Ending, last_event: str | None) -> None:
        """Says goodbye and waits a second for it to be taken; to a client that does not read it is written, no more."""
        if self.gone:
            return
        if ending.code != CLIENT_STALLED:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    if last_event is not None:
                        await self.send({"type": "websocket.send", "text": last_event})
                    await self.send({"type": "websocket.close", "code": ending.code, "reason": ending.reason})
                    return
            except TimeoutError:
                pass
            except (OSError, RuntimeError):
                return
        if self.give_up is not None:
            self.give_up(ending.code, ending.reason)
