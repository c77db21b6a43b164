"""Who runs which of an agent's functions. Pure."""

from collections.abc import Mapping

from token_broker.relay.answers.actions import Tool
from token_broker.sessions.agent import Agent
from token_broker.sessions.agent_tools import BUILTIN_PARAMETERS, FunctionTool, HttpRun, compiled_schema
from token_broker.tools.arguments import checked_arguments, faults_in

__all__ = ["tools_of"]

_RECALL = compiled_schema(BUILTIN_PARAMETERS["recall"][1])


def _recall_fault(arguments: str) -> str | None:
    found = faults_in(_RECALL, arguments)
    return found if isinstance(found, str) else None


def tools_of(agent: Agent) -> Mapping[str, Tool]:
    """The agent's functions by name. One that nobody runs is left to the client, which may know it."""
    found = {str(name): Tool(name, "builtin", agent_id=agent.id) for name in agent.builtin_tools}
    if "recall" in found:
        found["recall"] = Tool("recall", "builtin", fault=_recall_fault, agent_id=agent.id)
    for tool in agent.tools:
        if not isinstance(tool, FunctionTool):
            continue
        if isinstance(tool.run, HttpRun):
            found[tool.name] = Tool(tool.name, "http", say=tool.run.say, agent_id=agent.id)
            continue

        def fault(arguments: str, tool: FunctionTool = tool) -> str | None:
            checked = checked_arguments(tool, arguments)
            return checked if isinstance(checked, str) else None

        found[tool.name] = Tool(tool.name, "client", timeout_s=tool.timeout_s, fault=fault, agent_id=agent.id)
    return found
