"""The MCP servers of a session, as the service would use them: it lists their tools, and calls them itself.

No server is contacted. A server has the tools that `allowed_tools` names, or one called `simulated_tool`. One whose
host ends with `.invalid`, a name that never resolves, fails to list its tools. The order of the events follows the
official packages' documentation: no recording has them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from token_broker.simulator.realtime.conversation import Conversation, ListedTool, McpToolList
from token_broker.simulator.realtime.server_events import Ids, ServerEvents

_LIST_S = 0.03
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Listing:
    item: McpToolList
    tools: list[ListedTool]
    fails: bool
    due_s: float


class McpServers:
    """The servers that a talk's session names, each listed once."""

    def __init__(self, conversation: Conversation, ids: Ids, events: ServerEvents) -> None:
        self._conversation = conversation
        self._ids = ids
        self._events = events
        self._listings: list[_Listing] = []
        self._known: dict[str, list[ListedTool]] = {}

    @property
    def due_s(self) -> float:
        return min((listing.due_s for listing in self._listings), default=_NEVER)

    @property
    def tools(self) -> list[ListedTool]:
        """Of the servers that have been listed and are still in the session."""
        return [tool for tools in self._known.values() for tool in tools]

    def follow(self, tools: Iterable[dict[str, Any]], now_s: float) -> None:
        """Lists the servers that are new in the session, and forgets those that left it."""
        servers = {tool["server_label"]: tool for tool in tools if tool["type"] == "mcp"}
        self._listings = [listing for listing in self._listings if listing.item.server_label in servers]
        self._known = {label: known for label, known in self._known.items() if label in servers}
        pending = {listing.item.server_label for listing in self._listings}
        for label, server in servers.items():
            if label in self._known or label in pending:
                continue
            item = McpToolList(self._ids.new("mcpl"), label, [])
            # By hand: `urlsplit` raises over some URLs, and nobody has checked this one.
            host = (server.get("server_url") or "").partition("://")[2].partition("/")[0].partition(":")[0]
            self._listings.append(_Listing(item, _tools_of(server), host.endswith(".invalid"), now_s + _LIST_S))
            # The item is there before its tools are, as the events tell.
            self._events.emit_item("conversation.item.added", item, self._conversation.add(item))
            self._events.emit("mcp_list_tools.in_progress", item_id=item.id)

    def advance(self, now_s: float) -> None:
        """Tells the tools of the servers whose listing is due."""
        for listing in [listing for listing in self._listings if listing.due_s <= now_s]:
            self._listings.remove(listing)
            item = listing.item
            if listing.fails:
                self._events.emit("mcp_list_tools.failed", item_id=item.id)
                continue
            self._known[item.server_label] = listing.tools
            item.tools = [{"name": tool.name, "input_schema": {"type": "object"}} for tool in listing.tools]
            self._events.emit("mcp_list_tools.completed", item_id=item.id)
            self._events.emit_item("conversation.item.done", item, None)


def _tools_of(server: dict[str, Any]) -> list[ListedTool]:
    label, approval = server["server_label"], server.get("require_approval") or "always"
    exempt = [] if isinstance(approval, str) else _tool_names(approval.get("never"))
    return [
        ListedTool(label, name, approval != "never" and name not in exempt)
        for name in _tool_names(server.get("allowed_tools")) or ["simulated_tool"]
    ]


def _tool_names(chosen: Any) -> list[str]:
    """The names in a list, or in GA's filter object. What a filter by hints selects is not simulated."""
    names = chosen.get("tool_names") if isinstance(chosen, dict) else chosen
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
