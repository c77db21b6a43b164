"""What the control socket of a call does not tell of answers, as far as it can be concluded. Pure.

An answer's beginning and end are told on the data channel alone (docs/azure.md §12.1), which goes to the page. Here
they are added to the control socket's events, so that the sequencer can decide as on any other path:

- A call whose arguments are complete is complete. Its answer counts as over a moment after the last of its calls.
- A `response.create` that is not refused at once has begun an answer, which goes on from what the model was told.
- Azure refuses one beside an active answer: then it is asked again, after growing pauses. Azure decides, so there is
  never a second answer beside the first. Where the user has spoken after the outputs, the answer that is active goes on
  from them already, and nothing is asked.

Where Azure does tell of an answer's end here, nothing is concluded any more.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from token_broker.relay.answers.sequencer import ACTIVE_ALREADY
from token_broker.security.limits import BoundedDict

__all__ = ["ControlAnswers"]

Event = Mapping[str, Any]

_SETTLES_S = 0.3
_REFUSED_WITHIN_S = 1.5  # an error comes in milliseconds
_AGAIN_S = (0.5, 1.0, 2.0, 4.0)
_NAMES_KEPT = 256
_ASKED_AT_MOST = 16
_ARGUMENTS_DONE = "response.function_call_arguments.done"
_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"


class ControlAnswers:
    """One talk's. Give the sequencer what `azure_sent` and `due` return, and call `due` when `due_s` is reached."""

    def __init__(self) -> None:
        self._sees_ends = False
        self._names = BoundedDict[str, str](_NAMES_KEPT)  # of calls, by item
        self._called: dict[str, float] = {}  # answers with calls: when they were heard of last
        self._over = BoundedDict[str, int](_NAMES_KEPT)  # how often each has counted as over
        self._asked: deque[tuple[str | None, float]] = deque(maxlen=_ASKED_AT_MOST)
        self._told: list[str] = []  # calls whose outputs were sent
        self._again_s = math.inf
        self._refusals = 0
        self._output_s = self._user_s = -math.inf
        self._number = 0

    @property
    def due_s(self) -> float:
        """When `due` has something to return; infinity: nothing is known."""
        times = [heard_s + _SETTLES_S for heard_s in self._called.values()]
        times += [sent_s + _REFUSED_WITHIN_S for _, sent_s in self._asked]
        return min([*times, self._again_s, *([-math.inf] if self._told else [])], default=math.inf)

    def sent(self, event: Event, now_s: float) -> None:
        """Azure was sent an event, of the client's or the broker's."""
        kind, item, event_id = event.get("type"), event.get("item"), event.get("event_id")
        if kind == "response.create" and not self._sees_ends:
            self._asked.append((event_id if isinstance(event_id, str) else None, now_s))
        elif kind == "conversation.item.create" and isinstance(item, dict) and "call_id" in item:
            self._output_s = now_s
            self._told.append(str(item["call_id"]))

    def azure_sent(self, event: Event, now_s: float) -> list[Event]:
        """Takes an event of the control socket; returns what the sequencer is to take for it."""
        kind, item = event.get("type"), event.get("item")
        if isinstance(item, dict) and item.get("type") == "function_call":
            self._names[str(item.get("id"))] = str(item.get("name"))
        if kind == "response.done":
            self._sees_ends = True
            self._called.clear()
            self._asked.clear()
            self._again_s = math.inf
        if self._sees_ends:
            return [*self._outputs(), event]
        if kind == "response.created":
            return []  # without its end it would stay open
        if (response_id := self._named(event)) in self._called:
            self._called[response_id] = now_s
        if kind == _TRANSCRIBED:
            self._user_s = now_s
        elif kind == _ARGUMENTS_DONE:
            return [*self._outputs(), *self._call(event, now_s)]
        elif kind == "response.output_item.done" and isinstance(item, dict) and item.get("type") == "function_call":
            self._called[response_id] = now_s
            event = {**event, "response_id": response_id}
        elif kind == "error":
            return [*self._outputs(), event, *self._refused(event.get("error"), now_s)]
        return [*self._outputs(), event]

    def due(self, now_s: float) -> list[Event]:
        """What is concluded by now."""
        found = self._outputs()
        for response_id in [each for each, heard_s in self._called.items() if heard_s + _SETTLES_S <= now_s]:
            del self._called[response_id]
            stated = response_id.partition(" ")[0]
            self._over[stated] = self._over.get(stated, 0) + 1
            found.append(_done(response_id))
        while self._asked and self._asked[0][1] + _REFUSED_WITHIN_S <= now_s:
            self._asked.popleft()
            self._refusals = 0
            found += self._answer()
        if self._again_s <= now_s:
            self._again_s = math.inf
            found.append(_done("concluded"))
        return found

    def _call(self, event: Event, now_s: float) -> list[Event]:
        """A call's arguments are complete, and so is the call: its item may be told on the data channel alone."""
        item_id, response_id = str(event.get("item_id")), self._named(event)
        name = event.get("name") or self._names.get(item_id, "")
        self._called[response_id] = now_s
        item = {
            "id": item_id,
            "type": "function_call",
            "status": "completed",
            "call_id": event.get("call_id"),
            "name": name,
            "arguments": event.get("arguments"),
        }
        done = {"type": "response.output_item.done", "response_id": response_id, "item": item}
        return [{**event, "name": name, "response_id": response_id}, done]

    def _named(self, event: Event) -> str:
        """The id of the event's answer for the sequencer. One that counted as over too early is another one then."""
        response_id = str(event.get("response_id"))
        times = self._over.get(response_id, 0)
        return f"{response_id} {times}" if times else response_id

    def _refused(self, error: Any, now_s: float) -> list[Event]:
        if not isinstance(error, dict):
            return []
        event_id, is_active = error.get("event_id"), error.get("code") == ACTIVE_ALREADY
        about = next((each for each in self._asked if each[0] == event_id or (is_active and event_id is None)), None)
        if about is not None:
            self._asked.remove(about)
        if not is_active:
            return []
        if self._user_s > self._output_s > -math.inf:
            return self._answer()  # the user's words came after the outputs: they are answered together
        self._again_s = now_s + _AGAIN_S[min(self._refusals, len(_AGAIN_S) - 1)]
        self._refusals += 1
        return []

    def _answer(self) -> list[Event]:
        """An answer that has begun, of which nothing more will be heard."""
        self._number += 1
        response_id = f"concluded_{self._number}"
        return [{"type": "response.created", "response": {"id": response_id}}, _done(response_id)]

    def _outputs(self) -> list[Event]:
        """That the model knows the outputs which it was sent."""
        told, self._told = self._told, []
        items = ({"type": "function_call_output", "call_id": call_id} for call_id in told)
        return [{"type": "conversation.item.created", "item": item} for item in items]


def _done(response_id: str) -> Event:
    return {"type": "response.done", "response": {"id": response_id, "status": "completed", "output": []}}
