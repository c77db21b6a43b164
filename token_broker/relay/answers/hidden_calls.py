"""Calls that the broker answers itself, taken out of what the client sees of Azure's events. Pure.

An official client answers a call that it does not know with an error. So it sees those alone that it is to answer.
"""

from collections.abc import Callable, Mapping
from typing import Any

from token_broker.security.limits import BoundedDict

__all__ = ["CALL_EVENTS", "HiddenCalls"]

Event = dict[str, Any]

CALL_EVENTS = frozenset({"response.function_call_arguments.delta", "response.function_call_arguments.done"})
"""Azure's events about a call's arguments. They have to be parsed: the call may be hidden."""

_HIDDEN_KEPT = 1_024


class HiddenCalls:
    """One talk's. `is_shown` says of a call's name whether the client answers such calls; `withholds` of a call's id
    that the client does not get this one after all.
    """

    def __init__(self, is_shown: Callable[[str], bool], withholds: Callable[[str], bool]) -> None:
        self._is_shown = is_shown
        self._withholds = withholds
        self._items = BoundedDict[str, str | None](_HIDDEN_KEPT)  # hidden items, and the item before each
        self._calls = BoundedDict[str, None](_HIDDEN_KEPT)

    def for_client(self, event: Event) -> Event | None:
        """The event without what is hidden; None: all of it is. The same object where nothing changes."""
        kind = event.get("type")
        if kind in CALL_EVENTS:
            call_id = str(event.get("call_id"))
            if event.get("item_id") in self._items or call_id in self._calls or self._withholds(call_id):
                return None
            return event
        item = event.get("item")
        if isinstance(item, dict) and self._hides(item, event):
            return None
        response = event.get("response")
        if isinstance(response, dict) and isinstance(output := response.get("output"), list):
            shown = [each for each in output if not (isinstance(each, dict) and self._hides(each, {}))]
            if len(shown) != len(output):
                event = {**event, "response": {**response, "output": shown}}
        previous = event.get("previous_item_id")
        if isinstance(previous, str) and previous in self._items:
            before: str | None = previous
            for _ in range(_HIDDEN_KEPT):
                if before is None or before not in self._items:
                    break
                before = self._items[before]
            event = {**event, "previous_item_id": before}
        return event

    def _hides(self, item: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
        kind, item_id = item.get("type"), str(item.get("id"))
        if kind == "function_call":
            call_id = str(item.get("call_id"))
            known = item_id in self._items or call_id in self._calls or self._withholds(call_id)
            if not known and self._is_shown(str(item.get("name"))):
                return False
            self._calls[call_id] = None
        elif kind != "function_call_output" or str(item.get("call_id")) not in self._calls:
            return False
        previous = event.get("previous_item_id")
        if item_id not in self._items or isinstance(previous, str):
            self._items[item_id] = previous if isinstance(previous, str) else None
        return True
