"""Whether the session that Azure confirms is the one that it was asked for. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from token_broker.relay.confirmation.paths import ABSENT, DETECTION, value_of

__all__ = ["disagreements"]


def disagreements(sent: Mapping[str, Any], confirmed: object) -> list[str]:
    """The settings in which the session that Azure confirms is not the one that it was sent.

    Compared is what makes the agent, and what decides when it answers. Azure completes the others in ways of its own.
    """
    if not isinstance(confirmed, dict):
        return ["session"]
    found = []
    for path in (("instructions",), *DETECTION.values()):
        ours, theirs = value_of(sent, path), value_of(confirmed, path)
        if ours is ABSENT or theirs is ABSENT:
            continue
        if path[-1] == "turn_detection":
            ours, theirs = _kind_of(ours), _kind_of(theirs)
        if ours != theirs:
            found.append(".".join(path))
    ours, theirs = sent.get("tools"), confirmed.get("tools")
    if isinstance(theirs, list) and isinstance(ours, list) and _names(ours) != _names(theirs):
        found.append("tools")
    return found


def _kind_of(detection: Any) -> tuple[Any, bool]:
    if not isinstance(detection, dict):
        return (None, True)
    return (detection.get("type"), detection.get("create_response") is not False)


def _names(tools: Sequence[Any]) -> set[Any]:
    return {tool.get("name") or tool.get("server_label") for tool in tools if isinstance(tool, dict)}
