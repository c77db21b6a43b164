"""Agents with tools, calls of them, and a store of claims that does what the test says."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tests.memory.support.turns import SESSION, owner
from token_broker.memory.store_errors import StoreAwayError
from token_broker.memory.tool_claims import CallId, ClaimedCall
from token_broker.sessions.agent import Agent
from token_broker.sessions.agent_tools import FunctionTool
from token_broker.tools.runner import ToolCall

__all__ = ["CALL_ID", "MemoryClaims", "agent", "call", "order_tool"]

CALL_ID = CallId(SESSION, "talk-1", "sess_1", "call_1")


def order_tool(url: str, *, bind: dict[str, str] | None = None, **run: Any) -> FunctionTool:
    """The tool `order_status`, which needs a `number`; `run` has the fields of its HTTP run."""
    return FunctionTool.model_validate(
        {
            "type": "function",
            "name": "order_status",
            "description": "Looks an order up.",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "string"}, "customer": {"type": "string"}},
                "required": ["number"],
                "additionalProperties": False,
            },
            "bind": bind or {},
            "run": {"url": url, **run},
        }
    )


def agent(*tools: Any, **fields: Any) -> Agent:
    """An agent with these tools, of which nothing else matters."""
    return Agent.model_construct(id="elena", name="Elena", voices={}, instructions="", tools=tools, **fields)


def call(by: Agent, arguments: str = '{"number": "7"}', *, name: str = "order_status", **fields: Any) -> ToolCall:
    """A call by the model."""
    said = {
        "talk_id": CALL_ID.talk_id,
        "azure_session": CALL_ID.azure_session,
        "call_id": CALL_ID.call_id,
        "owner": owner(principal="ann@example.com", user_id="ann"),
        **fields,
    }
    return ToolCall(name=name, arguments=arguments, agent=by, **said)


@dataclass(slots=True)
class MemoryClaims:
    """Claims in memory. `away`: the store fails; `hangs`: it doesn't answer."""

    found: dict[CallId, ClaimedCall] = field(default_factory=dict)
    away: bool = False
    hangs: bool = False
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def claim(self, call: CallId, *, timeout_s: float) -> str | ClaimedCall:
        await self._answer()
        if call in self.found:
            return self.found[call]
        self.found[call] = ClaimedCall("running")
        return "holder"

    async def find(self, call: CallId) -> ClaimedCall:
        await self._answer()
        return self.found.get(call, ClaimedCall("erased"))

    async def take_over(self, call: CallId, *, timeout_s: float) -> str | None:
        await self._answer()
        return "holder" if self.found[call].state == "unknown" else None

    async def finish(self, call: CallId, holder: str, output: str | None, *, ok: bool) -> None:
        await self._answer()
        self.found[call] = ClaimedCall("unknown") if output is None else ClaimedCall("done", output, ok)
        self.finished.set()

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise StoreAwayError("away")
