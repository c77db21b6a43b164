"""The settings that a talk's next session needs: the agent's, with what the client has changed. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from strategies.base import Dialect
from token_broker.relay.dialects.session_settings import session_settings, value_at
from token_broker.relay.dialects.values import LEFT_OUT
from token_broker.relay.resume.history import text_of

__all__ = ["DETECTION", "client_settings", "disagreements", "merged", "without_field"]

Event = Mapping[str, Any]

DETECTION: Mapping[Dialect, tuple[str, ...]] = {
    "ga": ("audio", "input", "turn_detection"),
    "preview": ("turn_detection",),
}
"""Where the turn detection of a session is."""


def client_settings(changes: Event, *, old: Dialect, new: Dialect) -> dict[str, Any]:
    """What the client has changed of its session, in the dialect of the new one."""
    return dict(changes) if old == new else session_settings(changes, client=old, upstream=new)


def merged(settings: Event, changes: Event) -> dict[str, Any]:
    """The settings with these changes. A value that has a `type` is replaced as a whole, as Azure does it."""
    result = dict(settings)
    for name, value in changes.items():
        known = result.get(name)
        if isinstance(known, dict) and isinstance(value, dict) and "type" not in value:
            result[name] = merged(known, value)
        else:
            result[name] = value
    return result


def without_field(settings: Event, param: object) -> dict[str, Any]:
    """The settings without the field that an error of Azure's names; none of them where it names none."""
    names = text_of(param).removeprefix("session.").split(".")
    if not isinstance(settings, dict) or names[0] not in settings:
        return {}
    inner = settings[names[0]]
    if len(names) > 1 and isinstance(inner, dict) and names[1] in inner:
        return {**settings, names[0]: without_field(inner, ".".join(names[1:]))}
    return {name: value for name, value in settings.items() if name != names[0]}


def disagreements(sent: Event, confirmed: object) -> list[str]:
    """The settings in which the session that Azure confirms is not the one that it was sent.

    Compared is what makes the agent, and what decides when it answers. Azure completes the others in ways of its own.
    """
    if not isinstance(confirmed, dict):
        return ["session"]
    found = []
    for path in (("instructions",), *(DETECTION[dialect] for dialect in DETECTION)):
        ours, theirs = value_at(sent, path), value_at(confirmed, path)
        if ours is LEFT_OUT or theirs is LEFT_OUT:
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
