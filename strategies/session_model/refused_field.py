"""Which field of a session an error of Azure's refuses, and the session without it. Pure.

Azure refuses a mint or an update as a whole, and names one field: in `error.param`, or quoted in the message where
`param` is null. The paths are those of the session that was sent: nested in GA, flat elsewhere, tools by their index.
"""

import re
from collections.abc import Mapping
from typing import Any

from strategies.session_model.session_paths import ABSENT, DETECTION, TRANSCRIPTION, VOICE, Path, value_of

__all__ = ["field_to_leave_out", "shown_path", "without"]

Fields = Mapping[str, Any]

# Without the first there is no agent; without the others a mint is none.
_NEVER_LEFT_OUT: tuple[Path, ...] = (("instructions",), ("type",), ("model",))

_QUOTED = re.compile(r"""['"`](session(?:\.\w+|\[\d+\])+)['"`]""")
_STEP = re.compile(r"[^.\[\]]+")
_LONGEST_NAME = 256
_DEEPEST = 16
# Without it, the object in which it stands means nothing, or something else.
_ESSENTIAL = frozenset({"type", "name", "id", "model", "server_label", "server_url", "parameters", "endpoint_id"})
# These hold settings that have nothing to do with one another: Azure has to name one of them.
_GROUPS: frozenset[Path] = frozenset({(), ("audio",), ("audio", "input"), ("audio", "output")})
_VOICE_FIXED = "cannot_update_voice"  # Azure may name no field with it (docs/azure.md §4.2)


def field_to_leave_out(error: Fields, session: Fields) -> Path | None:
    """The field of `session` that has to go for Azure to take it. None: the error names none, or one that must stay.

    `error` is from an event or an answer of Azure's. Where the named field is essential to what it stands in, or is
    missing there, the whole of that goes: a tool without its parameters, say, is no tool.
    """
    path = _named(error, session)
    if path is None:
        return None
    found = path
    while value_of(session, found) is ABSENT:
        found = found[:-1]
    while len(found) > 1 and (found[-1] in _ESSENTIAL or (found[0] == "tools" and "parameters" in found[:-1])):
        found = found[:-1]
    if found == ("tools",) != path:  # a tool that the session does not have
        return None
    if found in _GROUPS or any(kept[: len(found)] == found for kept in _kept(session)):
        return None
    return found


def without(session: Fields, path: Path) -> dict[str, Any]:
    """A copy of `session` without the field at `path`, and without what is empty then.

    Of the tools as a whole an empty list is left: a session that had others would keep them.
    """
    left: dict[str, Any] = _without(session, path)
    if path == ("tools",):
        left["tools"] = []
    if path[0] == "tools" and isinstance(choice := left.get("tool_choice"), dict):
        names = {tool.get("name") or tool.get("server_label") for tool in left["tools"]}
        if choice.get("name") not in names and choice.get("server_label") not in names:
            del left["tool_choice"]
    return left


def shown_path(path: Path) -> str:
    """The path as Azure writes it: `session.tools[2].description`."""
    return "session" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _kept(session: Fields) -> list[Path]:
    """The fields that must stay. A session that must not answer by itself would do so without its turn detection, and
    what decides about its answers reads the transcripts.
    """
    kept = list(_NEVER_LEFT_OUT)
    for path in DETECTION.values():
        detection = value_of(session, path)
        if detection is None:
            kept.append(path)
        elif isinstance(detection, Mapping) and detection.get("create_response") is False:
            kept += [(*path, "create_response"), *TRANSCRIPTION.values()]
    return kept


def _named(error: Fields, session: Fields) -> Path | None:
    param, message = error.get("param"), error.get("message")
    name = param if isinstance(param, str) and 0 < len(param) <= _LONGEST_NAME else None
    if name is None and isinstance(message, str) and (quoted := _QUOTED.search(message)) is not None:
        name = quoted[1]
    if name is None:
        if error.get("code") != _VOICE_FIXED:
            return None
        return next((path for path in VOICE.values() if value_of(session, path) is not ABSENT), None)
    steps = _STEP.findall(name)
    if steps and steps[0] == "session":
        steps = steps[1:]
    if not steps or len(steps) > _DEEPEST:
        return None
    return tuple(int(step) if step.isascii() and step.isdigit() else step for step in steps)


def _without(value: Any, path: Path) -> Any:
    step, *rest = path
    if isinstance(step, int):
        if rest:
            return [_without(each, tuple(rest)) if index == step else each for index, each in enumerate(value)]
        return [each for index, each in enumerate(value) if index != step]
    if not rest:
        return {name: each for name, each in value.items() if name != step}
    inner = _without(value[step], tuple(rest))
    if inner == {}:
        return {name: each for name, each in value.items() if name != step}
    return {**value, step: inner}
