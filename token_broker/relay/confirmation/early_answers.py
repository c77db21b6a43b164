"""Answers that Azure makes before it has confirmed the agent's settings: a default assistant gives them. Pure.

They are cancelled, nothing of them reaches the client, and their items are deleted, so that the agent does not take
them for its own words.
"""

from collections.abc import Mapping
from typing import Any

from token_broker.relay.event_text import compact

__all__ = ["EarlyAnswers"]

_DELETE_ID = "broker_early_"
_KEPT_AT_MOST = 16


class EarlyAnswers:
    """Those of one session. Give it each of Azure's events up to the confirmation, and on until `are_over`."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._responses: set[str] = set()
        self._items: dict[str, bool] = {}  # whether Azure was asked to delete it
        self._number = 0

    @property
    def are_over(self) -> bool:
        """Whether nothing of them is left at Azure."""
        return not self._open and not self._items

    @property
    def are_too_many(self) -> bool:
        """Whether Azure keeps answering, whatever it is told."""
        return len(self._responses) > _KEPT_AT_MOST or len(self._items) > _KEPT_AT_MOST

    def take(self, event: Mapping[str, Any], *, confirmed: bool) -> list[str] | None:
        """The events for Azure because of this one, which is of such an answer. None: it is not.

        Once the settings are `confirmed`, an answer that begins is the agent's.
        """
        kind = event.get("type")
        response = event.get("response")
        stated = response.get("id") if isinstance(response, dict) else event.get("response_id")
        response_id = stated if isinstance(stated, str) else ""
        if kind == "response.created" and not confirmed:
            self._responses.add(response_id)
            self._open.add(response_id)
            return [compact({"type": "response.cancel", "event_id": f"{_DELETE_ID}cancel", "response_id": response_id})]
        if kind == "response.done" and response_id in self._responses:
            self._open.discard(response_id)
            output = response.get("output") if isinstance(response, dict) else None
            for item in output if isinstance(output, list) else ():
                self._note_item(item)
            return self._deletions()
        item_id = event.get("item_id")
        if kind == "conversation.item.deleted" and item_id in self._items:
            del self._items[str(item_id)]
            return []
        error = event.get("error")
        about = error.get("event_id") if isinstance(error, dict) else None
        if kind == "error" and isinstance(about, str) and about.startswith(_DELETE_ID):
            self._items.pop(about.removeprefix(_DELETE_ID), None)
            return []
        if response_id in self._responses:
            self._note_item(event.get("item"))
            return []
        item = event.get("item")
        if (
            isinstance(item, dict)
            and self._responses
            and (item.get("role") == "assistant" or item.get("id") in self._items)
        ):
            self._note_item(item)
            return [] if self._open else self._deletions()
        return None

    def _note_item(self, item: object) -> None:
        if isinstance(item, dict) and isinstance(item_id := item.get("id"), str):
            self._items.setdefault(item_id, False)

    def _deletions(self) -> list[str]:
        """Azure deletes no item of an answer that goes on."""
        if self._open:
            return []
        waiting = [item_id for item_id, asked in self._items.items() if not asked]
        self._items |= dict.fromkeys(waiting, True)
        return [
            compact({"type": "conversation.item.delete", "event_id": f"{_DELETE_ID}{item_id}", "item_id": item_id})
            for item_id in waiting
        ]
