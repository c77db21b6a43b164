"""Whether the session that Azure confirms is the one that it was asked for. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from strategies.session_model.session_paths import ABSENT, DETECTION, value_of

__all__ = ["disagreements"]


def disagreements(sent: Mapping[str, Any], confirmed: object) -> list[str]:
    """The settings in which the session that Azure confirms is not the one that it was sent.

    Compared is what makes the agent, and what decides whether it answers by itself. Azure completes the others in ways
    of its own: it may write a text's blanks otherwise, name another of its turn detections, and leave out MCP servers
    that an api-version does not have.
    """
    if not isinstance(confirmed, dict):
        return ["session"]
    found = []
    for path in (("instructions",), *DETECTION.values()):
        ours, theirs = value_of(sent, path), value_of(confirmed, path)
        if ours is ABSENT or theirs is ABSENT:
            continue
        if path[-1] == "turn_detection":
            ours, theirs = _answers(ours), _answers(theirs)
        elif isinstance(ours, str) and isinstance(theirs, str):
            ours, theirs = ours.split(), theirs.split()
        if ours != theirs:
            found.append(".".join(path))
    ours, theirs = sent.get("tools"), confirmed.get("tools")
    if isinstance(theirs, list) and isinstance(ours, list):
        functions = _named(ours, "name") == _named(theirs, "name")
        if not functions or not _named(theirs, "server_label") <= _named(ours, "server_label"):
            found.append("tools")
    return found


def _answers(detection: Any) -> tuple[bool, bool]:
    """Whether turn detection is on, and whether it asks for answers."""
    is_on = isinstance(detection, dict) and detection.get("type") != "none"
    return (is_on, is_on and detection.get("create_response") is not False)


def _named(tools: Sequence[Any], key: str) -> set[Any]:
    return {tool[key] for tool in tools if isinstance(tool, dict) and isinstance(tool.get(key), str)}
