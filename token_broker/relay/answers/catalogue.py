"""Who runs which of an agent's functions. Pure."""

from collections.abc import Mapping
from functools import partial

from token_broker.relay.answers.actions import Tool
from token_broker.sessions.agent import Agent
from token_broker.sessions.agent_tools import FunctionTool, HttpRun
from token_broker.tools.arguments import checked_arguments

__all__ = ["tools_of"]


def tools_of(agent: Agent) -> Mapping[str, Tool]:
    """The agent's functions by name. One that nobody runs is left to the client, which may know it."""
    found = {str(name): Tool(name, "builtin") for name in agent.builtin_tools}
    for tool in agent.tools:
        if not isinstance(tool, FunctionTool):
            continue
        if isinstance(tool.run, HttpRun):
            found[tool.name] = Tool(tool.name, "http", say=tool.run.say)
        else:
            found[tool.name] = Tool(tool.name, "client", timeout_s=tool.timeout_s, fault=partial(_fault, tool))
    return found


def _fault(tool: FunctionTool, arguments: str) -> str | None:
    found = checked_arguments(tool, arguments)
    return found if isinstance(found, str) else None
