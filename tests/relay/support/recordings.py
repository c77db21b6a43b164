"""Recorded talks of live Azure, and variations of them: what another recording may have in store.

The repository has eight. More are read from the folder that RECORDINGS names.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from strategies.base import Dialect

__all__ = ["RECORDED", "VARIATIONS", "Event", "dialect_of", "recorded", "varied"]

Event = dict[str, Any]

_TESTS = Path(__file__).parents[2]
_OWN = _TESTS / "simulator" / "recordings"
_MORE = os.environ.get("RECORDINGS", "")
_ID = re.compile(r"(event|item|resp|conv|sess|call)_(\w+)")


def _talks() -> Iterator[tuple[str, Path]]:
    own = {path.read_bytes(): path for path in sorted(_OWN.glob("*.yaml"))}
    yield from ((path.stem, path) for path in own.values())
    for path in sorted(Path(_MORE).rglob("*.yaml")) if _MORE else ():
        if path.read_bytes() not in own:
            yield str(path.relative_to(_MORE).with_suffix("")), path


@functools.cache
def _events(path: Path) -> list[Event]:
    loaded = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    return [each["data"] for each in loaded["interactions"] if each.get("direction") == "received"]


# A recording of HTTP alone has no events.
_PATHS = {name: path for name, path in _talks() if _events(path)}
RECORDED = list(_PATHS)


def recorded(name: str) -> list[Event]:
    """What the service sent, in its own order of events and fields."""
    return _events(_PATHS[name])


def dialect_of(name: str) -> Dialect:
    session = next(event["session"] for event in recorded(name) if "session" in event)
    return "ga" if "audio" in session else "preview"


def _extended(value: Any) -> Any:
    """A later version: every object has fields that nobody knows yet, and null among them."""
    if isinstance(value, dict):
        return {"x_first": None} | {name: _extended(part) for name, part in value.items()} | {"x_last": {"x": [1]}}
    return [_extended(part) for part in value] if isinstance(value, list) else value


def _backwards(value: Any) -> Any:
    """Another serialiser: fields in the reverse order, so that nulls, ids and types stand elsewhere."""
    if isinstance(value, dict):
        return {name: _backwards(value[name]) for name in reversed(value)}
    return [_backwards(part) for part in value] if isinstance(value, list) else value


def _renamed(value: Any) -> Any:
    """Other ids: longer ones, of other characters."""
    if isinstance(value, dict):
        return {name: _renamed(part) for name, part in value.items()}
    if isinstance(value, str) and (found := _ID.fullmatch(value)):
        return f"{found[1]}-{found[2][::-1]}.{found[2]}"
    return [_renamed(part) for part in value] if isinstance(value, list) else value


def _among_strangers(events: list[Event]) -> list[Event]:
    """Events of kinds that nobody knows yet, between all others; some look like those that carry words."""
    told: list[Event] = []
    for number, event in enumerate(events):
        strange = ("conversation.item.annotated", "response.thinking.delta", "session.mood.updated", "x")[number % 4]
        about = {"item_id": event.get("item_id"), "delta": "…", "item": None, "response": None, "session": None}
        told += [event, {"type": strange, "event_id": f"event_x{number}"} | about]
    return told


def _each(change: Callable[[Any], Any]) -> Callable[[list[Event]], list[Event]]:
    return lambda events: [change(event) for event in events]


VARIATIONS: dict[str, Callable[[list[Event]], list[Event]]] = {
    "as recorded": list,
    "more fields": _each(_extended),
    "other order": _each(_backwards),
    "other ids": _each(_renamed),
    "unknown events": _among_strangers,
    "all at once": lambda events: _among_strangers([_renamed(_backwards(_extended(event))) for event in events]),
}


def varied(name: str, variation: str) -> list[Event]:
    # Through JSON, so that nobody changes what is shared.
    changed: list[Event] = json.loads(json.dumps(VARIATIONS[variation](recorded(name))))
    return changed
