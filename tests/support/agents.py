"""An agents file with secrets in it: none of them may reach a client or a log."""

TOOL_AUTHORIZATION = "canary-authorization-77"
TOOL_HEADER = "canary-header-88"


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
