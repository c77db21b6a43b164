"""Agents' files of tests; one has secrets in it, none of which may reach a client or a log."""

from pathlib import Path

from token_broker.sessions.agents import AgentRegistry, load_agents

__all__ = ["TOOL_AUTHORIZATION", "TOOL_HEADER", "agents_of", "agents_with_secrets", "write_agents"]

TOOL_AUTHORIZATION = "canary-authorization-77"
TOOL_HEADER = "canary-header-88"


def write_agents(folder: Path, text: str) -> Path:
    """An agents' file with this text."""
    path = folder / "agents.toml"
    path.write_text(text, encoding="utf-8")
    return path


def agents_of(folder: Path, text: str) -> AgentRegistry:
    """The agents of a file with this text, which is written into `folder`."""
    return load_agents(write_agents(folder, text))


def agents_with_secrets(header: str = TOOL_HEADER) -> str:
    """The file's text: ann has an MCP tool with credentials, of which `header` is one; ben and cid have none."""
    return f"""
default = "ann"
[agents.ann]
name = "Ann"
voices = {{ ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }}
instructions = "You are Ann."
[[agents.ann.tools]]
type = "mcp"
server_label = "docs"
server_url = "https://mcp.example.com"
authorization = "{TOOL_AUTHORIZATION}"
headers = {{ "X-Key" = '{header}' }}
[[agents.ann.tools]]
type = "function"
name = "canary_function"
run = "client"
parameters = {{ type = "object", properties = {{}} }}
[agents.ben]
name = "Ben"
inherits = "ann"
[[agents.ben.tools]]
type = "function"
name = "canary_function"
run = "client"
parameters = {{ type = "object", properties = {{}} }}
[agents.cid]
name = "Cid"
inherits = "ann"
tools = []
"""
