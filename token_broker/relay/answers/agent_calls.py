"""Runs the calls of a talk's agent, and counts what came of them."""

from collections.abc import Awaitable, Callable, Mapping

import structlog

from token_broker.relay.answers.actions import Run, Tell, Tool
from token_broker.relay.answers.catalogue import tools_of
from token_broker.relay.counters import TalkCounters
from token_broker.security.tokens import Owner
from token_broker.sessions.agent import Agent
from token_broker.tools.runner import ToolCall, ToolOutput, ToolRunner

__all__ = ["HANDED_OVER", "AgentCalls", "RunsBuiltin"]

log = structlog.get_logger("token_broker.relay")

HANDED_OVER = ToolOutput("The talk is being handed over. Say one short sentence about it, and no more.", ok=True)
"""What the model is told where its page takes a new plan with another agent."""

RunsBuiltin = Callable[[str, str, str], Awaitable[ToolOutput]]
"""Runs a built-in tool that changes the talk itself, by its name, its arguments and the call's id."""


class AgentCalls:
    """One talk's. `agent` gives the current agent; `runner` runs its HTTP tools and `recall`, `builtin` the others."""

    def __init__(
        self,
        runner: ToolRunner | None,
        owner: Owner,
        agent: Callable[[], Agent],
        counters: TalkCounters,
        *,
        builtin: RunsBuiltin | None = None,
    ) -> None:
        self._runner = runner
        self._owner = owner
        self._agent = agent
        self._counters = counters
        self._builtin = builtin
        self._callers: dict[str, Agent] = {}  # whose tools the model was given

    def tools(self) -> Mapping[str, Tool]:
        """The functions that the model may call now."""
        agent = self._agent()
        self._callers[agent.id] = agent
        return tools_of(agent)

    async def run(self, call: Run) -> ToolOutput:
        """The output of a call, for the agent that made it. Raises nothing but CancelledError."""
        name, owner, current = call.tool.name, self._owner, self._agent()
        agent = self._callers.get(call.tool.agent_id, current)
        if call.tool.by == "builtin" and name != "recall":
            if agent.id != current.id:
                return ToolOutput("Another agent has the talk by now. Nothing was done.", ok=False)
            if self._builtin is None:
                return ToolOutput("This can't be done in this talk.", ok=False)
            return await self._builtin(name, call.arguments, call.call_id)
        if self._runner is None:
            return ToolOutput("No tool can be used here.", ok=False)
        return await self._runner.run(
            ToolCall(owner.talk_id, call.azure_session, call.call_id, name, call.arguments, agent, owner)
        )

    def note(self, tool: Tell) -> None:
        """Counts and logs a call that has its output."""
        if tool.duration_ms is None:
            return
        self._counters.tool_calls += 1
        self._counters.tool_calls_failed += tool.state == "failed"
        log.info(
            "tool_called",
            session_id=self._owner.session_id,
            agent_id=self._agent().id,
            tool=tool.name,
            call_id=tool.call_id,
            state=tool.state,
            ms=round(tool.duration_ms),
        )
