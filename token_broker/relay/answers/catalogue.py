"""Who runs which of an agent's functions. Pure."""

from collections.abc import Mapping

from token_broker.relay.answers.actions import Tool
from token_broker.sessions.agents import Agent

__all__ = ["tools_of"]


def tools_of(agent: Agent) -> Mapping[str, Tool]:
    """The agent's functions by name. One that nobody runs is left to the client, which may know it."""
    found: dict[str, Tool] = {}
    for tool in agent.tools:
        if tool.get("type") == "function" and isinstance(name := tool.get("name"), str):
            found[name] = Tool(name, "client")
    return found
