"""How the fakes of sinks fail: with a status, by hanging, by talking nonsense, by ending the connection."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import PlainTextResponse, Response

__all__ = ["CanFail", "Fault", "RefusedError", "fail", "next_fault"]


@dataclass
class Fault:
    """What happens to the next `times` requests whose path ends with `path`; None is for ever.

    `stored`: the request is carried out first, and only its answer is lost. `turn`: only where the body names it.
    """

    kind: str  # status, hang, malformed, reset
    path: str = ""
    method: str | None = None
    times: int | None = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"message": "made to fail"}'
    stored: bool = False
    turn: str | None = None


class RefusedError(Exception):
    """The fake's own refusal of a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(kw_only=True)
class CanFail:
    """A fake that fails as it is told."""

    faults: list[Fault] = field(default_factory=list)

    @contextlib.contextmanager
    def fails(self, fault: Fault) -> Iterator[Fault]:
        """Fails while the block runs."""
        self.faults.append(fault)
        try:
            yield fault
        finally:
            if fault in self.faults:
                self.faults.remove(fault)


def next_fault(faults: list[Fault], method: str, path: str, body: str) -> Fault | None:
    """The first fault that is meant for this request; one that was used up is removed."""
    for fault in faults:
        if not path.endswith(fault.path) or fault.method not in {None, method}:
            continue
        if fault.turn is not None and f'"{fault.turn}"' not in body:
            continue
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                faults.remove(fault)
        return fault
    return None


async def fail(closing: asyncio.Event, fault: Fault) -> Response:
    """The answer of a fault; one that hangs does until `closing`."""
    match fault.kind:
        case "hang":
            await closing.wait()
        case "malformed":
            return PlainTextResponse("<html>this is no JSON")
        case "reset":
            return _Reset()
    return PlainTextResponse(fault.body, fault.status, fault.headers, media_type="application/json")


class _Reset(Response):
    """Ends the connection without an answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        raise ConnectionResetError
