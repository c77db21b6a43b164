"""A call of a tool and what came of it, as the relay sees them."""

from dataclasses import dataclass
from typing import Protocol

from token_broker.security.tokens import Owner
from token_broker.sessions.agent import Agent

__all__ = ["ToolCall", "ToolOutput", "ToolRunner"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One function call of a completed item. `arguments` is JSON as the model wrote it.

    It is the same call wherever `talk_id`, `azure_session` and `call_id` are the same: Azure's call ids alone are not
    unique.
    """

    talk_id: str
    azure_session: str
    call_id: str
    name: str
    arguments: str
    agent: Agent
    owner: Owner


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What the model is told; `ok` False where it is a sentence of the broker's about a failure."""

    text: str
    ok: bool
    duration_ms: float = 0.0


class ToolRunner(Protocol):
    """Runs the tools that the broker answers: HTTP tools and `recall`."""

    async def run(self, call: ToolCall) -> ToolOutput:
        """The output of one call, which is made at most once however often it is told.

        Raises nothing but CancelledError, and takes no longer than the tool's own time and a few seconds.
        """
        ...
