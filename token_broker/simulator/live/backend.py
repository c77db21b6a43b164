"""What a Live session delegates: to the application, or to a Responses model whose stream it passes on."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from token_broker.simulator.realtime.response_plan import PlannedCall
from token_broker.simulator.session_bodies.check import INVALID_VALUE, InvalidRequest

Emit = Callable[..., None]


@dataclass(slots=True)
class Delegated:
    """Work that was given away, and the calls of it that wait for their outputs. Without an id it is nobody's."""

    id: str | None
    response_id: str | None
    waiting: set[str] = field(default_factory=set)


class PendingDelegations:
    """Those of one session, oldest first."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._known: dict[str, Delegated] = {}
        self._written: list[str] = []  # by the user, until a response takes it
        self._given: dict[str, str] = {}
        """Outputs by call, until a response takes them."""

    def find(self, delegation_id: str) -> Delegated:
        """The delegation of that id.

        Raises:
            InvalidRequest: there is none.

        """
        if delegation_id not in self._known:
            raise InvalidRequest(INVALID_VALUE, f"Unknown delegation: '{delegation_id}'.", "delegation_id")
        return self._known[delegation_id]

    def to_client(self, offset_ms: int) -> None:
        """The application gets the work: it is told that there is some, and has heard what it is."""
        delegation_id = _new("dlg")
        self._known[delegation_id] = Delegated(delegation_id, None)
        stated = {"id": delegation_id, "type": "delegation", "target": "client"}
        self._emit("session.delegation.created", delegation=stated, offset_ms=offset_ms)

    def to_backend(self, calls: list[PlannedCall], offset_ms: int) -> None:
        """The backend gets the work, and calls these functions first."""
        delegation_id = _new("dlg")
        work = self._known[delegation_id] = Delegated(delegation_id, _new("resp"))
        stated = {"id": work.id, "type": "delegation", "target": "responses", "response_id": work.response_id}
        self._emit("session.delegation.created", delegation=stated, offset_ms=offset_ms)
        self._tell(work, "response.created", response=_response(work, "in_progress"))
        for number, call in enumerate(calls):
            call_id = _new("call")
            work.waiting.add(call_id)
            item = {"id": _new("fc"), "type": "function_call", "call_id": call_id, "name": call.name}
            place = {"output_index": number}
            begun = item | {"arguments": "", "status": "in_progress"}
            self._tell(work, "response.output_item.added", **place, item=begun)
            done = {"item_id": item["id"], "name": call.name, "arguments": call.arguments}
            self._tell(work, "response.function_call_arguments.done", **place, **done)
            ended = item | {"arguments": call.arguments, "status": "completed"}
            self._tell(work, "response.output_item.done", **place, item=ended)
        self._tell(work, "response.completed", response=_response(work, "completed"))

    def give(self, call_id: str, output: str) -> None:
        """A function's output.

        Raises:
            InvalidRequest: nobody waits for it.

        """
        if not any(call_id in work.waiting for work in self._known.values()):
            raise InvalidRequest(INVALID_VALUE, f"No tool call found for call_id '{call_id}'.", "item.call_id")
        self._given[call_id] = output

    def write(self, text: str) -> None:
        """What the user has typed."""
        self._written.append(text)

    def go_on(self) -> Iterator[str]:
        """Goes on with the work whose outputs are all there, and with what was typed; gives what is said of each."""
        for work in self._known.values():
            if not work.waiting or not work.waiting <= self._given.keys():
                continue
            outputs = [self._given.pop(call_id) for call_id in sorted(work.waiting)]
            work.waiting.clear()
            yield self._answer(work, f"[simulated] the function gave: {'; '.join(outputs)}")
        if self._written:
            written, self._written = self._written, []
            yield self._answer(Delegated(None, None), f"[simulated] you wrote: {'; '.join(written)}")

    def _answer(self, work: Delegated, text: str) -> str:
        work.response_id = _new("resp")
        place = {"item_id": _new("msg"), "output_index": 0, "content_index": 0}
        self._tell(work, "response.created", response=_response(work, "in_progress"))
        self._tell(work, "response.output_text.delta", **place, delta=text)
        self._tell(work, "response.output_text.done", **place, text=text)
        self._tell(work, "response.completed", response=_response(work, "completed"))
        return text

    def _tell(self, work: Delegated, name: str, /, **fields: Any) -> None:
        self._emit("response.event", delegation_id=work.id, event={"type": name, **fields})


def _response(work: Delegated, status: str) -> dict[str, Any]:
    """A snapshot: without its input, and with nothing in what would make it large."""
    usage = {"input_tokens": 10, "output_tokens": 10, "total_tokens": 20} if status == "completed" else None
    stated = {"id": work.response_id, "object": "response", "status": status, "usage": usage}
    return stated | {"instructions": None, "tools": [], "output": []}


def _new(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
