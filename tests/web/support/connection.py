"""A browser's protocol over a WebSocket: Chromium's DevTools, or WebDriver BiDi, which Firefox speaks."""

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection

__all__ = ["CALL_TIMEOUT_S", "Connection", "Event", "ScriptError"]

CALL_TIMEOUT_S = 30

Event = dict[str, Any]


class ScriptError(AssertionError):
    """The page's own JavaScript threw, or the browser refused a call."""


class Connection:
    """Numbered calls and their answers, and events by tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Event]] = {}
        self._listeners: dict[str, list[Callable[[Event], None]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def call(
        self, method: str, session: str | None = None, *, within_s: float = CALL_TIMEOUT_S, **params: Any
    ) -> Event:
        """Raises ScriptError where the browser refuses, TimeoutError where it is silent."""
        number = next(self._numbers)
        answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        await self._socket.send(json.dumps(message))
        return await asyncio.wait_for(answer, within_s)

    def listen(self, tab: str, listener: Callable[[Event], None]) -> None:
        """`tab` is DevTools' session, or BiDi's context."""
        self._listeners.setdefault(tab, []).append(listener)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if call := self._calls.pop(message.get("id"), None):
                if call.done():
                    continue
                if "error" in message:
                    error = message["error"]
                    call.set_exception(ScriptError(error["message"] if isinstance(error, dict) else message["message"]))
                else:
                    call.set_result(message["result"])
            for listener in self._listeners.get(_tab_of(message), ()):
                listener(message)


def _tab_of(event: Event) -> str:
    params = event.get("params", {})
    tab: str = event.get("sessionId") or params.get("context") or params.get("source", {}).get("context", "")
    return tab
