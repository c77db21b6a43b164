"""What of a new session's events the client knows already, and the names under which it knows it. Pure.

Text that a new session is told keeps its item id where Azure takes it. Speech that is committed once more gets a new id
from Azure: the client goes on with the old one.
"""

import json
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from token_broker.security.limits import BoundedDict

__all__ = ["COMMIT_ID", "NOTE_IDS", "UPDATE_ID", "Restored"]

Event = Mapping[str, Any]

COMMIT_ID, UPDATE_ID = "broker_commit", "broker_update"
"""The `event_id`s of the broker's own commits, and of its updates beside the agent's settings."""

NOTE_IDS = "mem_"
"""How ids of items begin that only the model sees."""

_BEHIND = re.compile(r'("previous_item_id"\s*:\s*)"(' + NOTE_IDS + r'[^"]*)"')
_ITEM_EVENTS = frozenset({"conversation.item.created", "conversation.item.added", "conversation.item.done"})
_NAMES_KEPT = 64


class Restored:
    """One talk's. `expect_…` are called when a new session is told something; the rest for each of its events."""

    def __init__(self) -> None:
        self._names = BoundedDict[str, str](_NAMES_KEPT)  # Azure's id of an item: the client's
        self._known: frozenset[str] = frozenset()
        self._hidden: set[str] = set()
        self._notes: dict[str, str | None] = {}  # the item that the client knows before each
        self._commits: deque[tuple[str | None, bool]] = deque()
        self._updates = 0
        self._speaking: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether events need no look: nothing was restored, or nothing of it can be told of any more."""
        return not (self._names or self._hidden or self._notes or self._commits or self._updates or self._speaking)

    def begin(self) -> None:
        """A new session: what the one before was told is over."""
        self._names.clear()
        self._hidden.clear()
        self._notes.clear()
        self._commits.clear()
        self._updates = 0
        self._speaking = None

    def expect_item(self, item_id: str, shown_as: str) -> None:
        """Azure will tell of an item that the client knows, perhaps by another id."""
        self._hidden.add(shown_as)
        if item_id != shown_as:
            self._names[item_id] = shown_as

    def expect_note(self, item_id: str) -> None:
        """Azure will tell of an item that the client never knows; what follows it follows the item before."""
        self._notes[item_id] = None

    def expect_commit(self, shown_as: str | None, *, told: bool) -> None:
        """Azure will commit an utterance once more; `told`: the client has heard of it."""
        self._commits.append((shown_as, told))

    def expect_update(self) -> None:
        """Azure will confirm a change of settings that the client did not ask for."""
        self._updates += 1

    def expect_speech(self, shown_as: str) -> None:
        """Azure will notice once more that the user speaks."""
        self._speaking = shown_as

    def know(self, item_ids: frozenset[str]) -> None:
        """These items were restored as text, which Azure cannot truncate."""
        self._known = item_ids

    def answers_truncate(self, item_id: object) -> bool:
        """Whether the broker answers a truncate of this item."""
        return item_id in self._known

    def name_of(self, event: Event) -> None:
        """Learns the new name of an utterance from the event that first tells it."""
        kind, item_id = event.get("type"), event.get("item_id")
        if not isinstance(item_id, str):
            return
        if kind == "input_audio_buffer.speech_started" and self._speaking is not None:
            self._names[item_id] = self._speaking
        elif kind == "input_audio_buffer.committed" and self._commits and self._commits[0][0] is not None:
            self._names[item_id] = self._commits[0][0]

    def for_client(self, text: str) -> str:
        """Azure's event with the names that the client knows."""
        for name, shown_as in self._names.items():
            text = text.replace(f'"{name}"', f'"{shown_as}"')
        if not self._notes or NOTE_IDS not in text:
            return text
        # A client may name an item of its own so.
        return _BEHIND.sub(lambda found: found[1] + json.dumps(self._notes.get(found[2], found[2])), text)

    def for_azure(self, text: str) -> str:
        """The client's event with Azure's names."""
        for name, shown_as in self._names.items():
            text = text.replace(f'"{shown_as}"', f'"{name}"')
        return text

    def is_known(self, event: Event) -> bool:
        """Whether neither client, turns nor ledger need this event, which has the client's names."""
        kind = event.get("type")
        if kind == "session.updated" and self._updates:
            self._updates -= 1
            return True
        if kind == "input_audio_buffer.committed" and self._commits:
            shown_as, told = self._commits.popleft()
            if told and shown_as is not None:
                self._hidden.add(shown_as)
            return told
        item = event.get("item")
        if kind not in _ITEM_EVENTS or not isinstance(item, dict):
            return False
        if (item_id := item.get("id")) in self._notes:
            before = event.get("previous_item_id")
            self._notes[item_id] = before if isinstance(before, str) else None
            return True
        return item_id in self._hidden

    def refused(self, event_id: object) -> None:
        """Azure refused something that the broker sent: its event does not come."""
        if event_id == COMMIT_ID and self._commits:
            self._commits.popleft()
        elif event_id == UPDATE_ID and self._updates:
            self._updates -= 1

    def is_told(self, event: Event) -> bool:
        """Whether the client was told of this by the session before; turns and ledger need it."""
        if event.get("type") == "input_audio_buffer.speech_started" and self._speaking is not None:
            self._speaking = None
            return True
        return False
