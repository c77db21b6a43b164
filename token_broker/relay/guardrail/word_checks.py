"""Which of the user's words wait for a verdict, what waits for them, and what follows. Pure.

Azure's and the client's events go in, and the time in seconds of any steady clock; actions come out. What was said is
in the conversation already, so no answer is asked for while a verdict is due; what is typed does not get there before.
What the client sends after it waits too, in its order.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from token_broker.relay.guardrail.client_words import is_owed, with_words, words_of
from token_broker.security.limits import BoundedDict
from token_broker.tools.verdict import Verdict

__all__ = [
    "GUARD_EVENTS",
    "AskHook",
    "DropEvent",
    "DropTurn",
    "ForwardEvent",
    "GuardAction",
    "KeepTurn",
    "SendEvent",
    "WantAnswer",
    "WordChecks",
]

Event = Mapping[str, Any]

TRANSCRIPT_S = 3.0  # after the commit
_VERDICT_S = 2.0  # beyond the hook's own time: it has bounds of its own
_REMOVED_S = 3.0  # Azure confirms within a second
_REPLAYED_S = 5.0  # for a session that is told the words once more
_HELD_AT_MOST = 64
_HELD_CHARS = 2_097_152
_WAITING_AT_MOST = 64
_EARLY_KEPT = 16
_COMMITTED_KEPT = 256
OWN_IDS = "broker_guard_"

_COMMITTED = "input_audio_buffer.committed"
_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
_NOT_TRANSCRIBED = "conversation.item.input_audio_transcription.failed"
GUARD_EVENTS = frozenset({
    "input_audio_buffer.speech_started", "input_audio_buffer.cleared", _COMMITTED, _TRANSCRIBED, _NOT_TRANSCRIBED,
    "conversation.item.deleted", "error",
})  # fmt: skip
"""Azure's events that have to be parsed for `azure_sent`."""
_UNCHECKED = frozenset({"input_text.delta", "input_text.done"})
_TURNS = "input_audio.turn."
_HELD_BEHIND = frozenset({"conversation.item.create", "conversation.item.delete", "response.create"})
_REFUSED = (
    "Tell the user in one short, polite sentence, in their language, that you can't respond to that. Do not guess what "
    "it was, and add nothing."
)
_NOT_WITH_GUARDRAIL = "this agent's words are checked first: send them by conversation.item.create"
_UNREAD = "what this agent hears is checked first, which nobody can do with an image or with recorded sound"
_WITHHELD = "The output was withheld by a check of its words. Do not guess what it was."


@dataclass(frozen=True, slots=True)
class AskHook:
    """The hook is to be asked about these words. Its verdict is due at `judged`, by this number."""

    number: int
    text: str
    source: Literal["speech", "typed"]


@dataclass(frozen=True, slots=True)
class SendEvent:
    """An event of the broker's own for Azure."""

    event: Event


@dataclass(frozen=True, slots=True)
class ForwardEvent:
    """A client's event that goes on now, as if it had just come."""

    event: Event


@dataclass(frozen=True, slots=True)
class WantAnswer:
    """An answer is wanted: to the conversation, or (`say`) with these instructions alone."""

    say: str | None = None


@dataclass(frozen=True, slots=True)
class KeepTurn:
    """The turn of what was said is kept, as this event of Azure's has it."""

    event: Event


@dataclass(frozen=True, slots=True)
class DropTurn:
    """What was said in this item is no turn."""

    item_id: str


@dataclass(frozen=True, slots=True)
class DropEvent:
    """The client's event is dropped, or an answer does not come, and the client hears why."""

    code: str
    message: str
    event_id: str | None = None


GuardAction = AskHook | SendEvent | ForwardEvent | WantAnswer | KeepTurn | DropTurn | DropEvent


@dataclass(slots=True)
class _Utterance:
    """An utterance in the conversation. `replaced_by`: it is being removed, for these words; empty: for none."""

    item_id: str
    due_s: float
    number: int | None = None
    told: Event | None = None
    replaced_by: str | None = None


@dataclass(slots=True)
class _HeldEvent:
    """A client's event that waits; `number` of the check that decides on it."""

    event: Event
    chars: int
    number: int | None = None
    due_s: float = math.inf


class WordChecks:
    """One talk's. `by_itself`: turn detection would ask for the answer, were it allowed to.

    `fails_open` and `hook_s` are the current agent's: whether words pass that could not be checked, and how long a
    verdict may take.
    """

    def __init__(self) -> None:
        self.by_itself = True
        self.fails_open = True
        self.hook_s = 0.3
        self._spoken: dict[str, _Utterance] = {}
        self._held: deque[_HeldEvent] = deque()
        self._held_chars = 0
        self._commits: deque[float] = deque()  # the client's own that Azure has not told of: until when they count
        self._speaking = False
        self._early = BoundedDict[str, Event](_EARLY_KEPT)  # transcripts that came before the commit
        self._committed = BoundedDict[str, None](_COMMITTED_KEPT)
        self._answer_due = False
        self._say: str | None = None
        self._say_later: str | None = None  # to the client's own next request
        self._number = 0
        self._is_here = True

    @property
    def is_checking(self) -> bool:
        """Whether words are in the conversation, or on their way, that nobody may answer yet."""
        return bool(self._spoken or self._commits)

    @property
    def due_s(self) -> float:
        """When `tick` has something to do next."""
        times = [*(each.due_s for each in self._spoken.values()), *(each.due_s for each in self._held)]
        return min((*times, *self._commits), default=math.inf)

    # --- what comes in

    def client_sent(self, kind: str, event: Event, now_s: float, *, chars: int = 0) -> tuple[bool, list[GuardAction]]:
        """Whether a client's event goes on now. Otherwise it waits, or is dropped."""
        if kind in _UNCHECKED or kind.startswith(_TURNS):
            return False, [DropEvent("event_refused", _NOT_WITH_GUARDRAIL, _id_of(event))]
        if kind == "input_audio_buffer.commit":
            self._commits.append(now_s + TRANSCRIPT_S)
        if kind == "conversation.item.delete" and (spoken := self._spoken.pop(str(event.get("item_id")), None)):
            return True, [*_kept(spoken), *self._settle()]
        if kind not in _HELD_BEHIND:
            return True, []
        said = words_of(event)
        checked = bool(said.text) or not said.is_complete
        if is_owed(event):
            if not checked:
                return True, []
        elif kind == "conversation.item.create":
            self._say_later = None
        waits = checked or bool(self._held) or (kind == "response.create" and (self.is_checking or self._speaking))
        if not waits:
            return (True, []) if kind != "response.create" else self._own_request(event)
        if len(self._held) >= _HELD_AT_MOST or self._held_chars + chars > _HELD_CHARS:
            return False, [DropEvent("guardrail_busy", "too much is being checked: send this one later", _id_of(event))]
        held = _HeldEvent(event, chars)
        self._held.append(held)
        self._held_chars += chars
        if not checked:
            return False, self._advance()
        if not (said.is_complete or self.fails_open):
            told = DropEvent("event_refused", _UNREAD, _id_of(event))
            return False, [told, *self._decide_typed(held, None)]
        if not said.text:
            return False, self._decide_typed(held, None)
        held.number = self._next_number()
        held.due_s = now_s + self.hook_s + _VERDICT_S
        return False, [AskHook(held.number, said.text, "typed")]

    def azure_sent(self, event: Event, now_s: float) -> tuple[bool, list[GuardAction]]:
        """Takes a parsed event of Azure's. Whether its turn is kept now; otherwise `KeepTurn` follows."""
        kind = event.get("type")
        item_id = str(event.get("item_id"))
        if kind == "input_audio_buffer.speech_started":
            self._speaking = True
            self._say_later = None
        elif kind == "input_audio_buffer.cleared":
            self._speaking = False
            return True, self._settle()
        elif kind == _COMMITTED:
            return True, self._commit(item_id, now_s)
        elif kind in {_TRANSCRIBED, _NOT_TRANSCRIBED}:
            spoken = self._spoken.get(item_id)
            if spoken is None and item_id in self._committed:
                return True, []  # it comes after the decision
            if spoken is None:
                self._early[item_id] = event
                return False, []
            return False, self._transcribed(spoken, event, now_s)
        elif kind == "conversation.item.deleted" and (spoken := self._spoken.get(item_id)) is not None:
            return True, self._removed(spoken)
        elif kind == "error":
            return True, self._note_error(event.get("error"), now_s)
        return True, []

    def judged(self, number: int, verdict: Verdict, now_s: float) -> list[GuardAction]:
        """The hook's verdict on the words of that number. One that is late, or of words that are gone, says nothing."""
        for spoken in list(self._spoken.values()):
            if spoken.number == number and spoken.replaced_by is None:
                return self._decide_spoken(spoken, verdict, now_s)
        for held in self._held:
            if held.number == number:
                return self._decide_typed(held, verdict)
        return []

    def tick(self, now_s: float) -> list[GuardAction]:
        """Does what is due: what has no verdict in time counts as the hook's failure."""
        done: list[GuardAction] = []
        while self._commits and self._commits[0] <= now_s:
            self._commits.popleft()
        for spoken in [each for each in self._spoken.values() if each.due_s <= now_s]:
            if spoken.replaced_by is None:
                done += self._decide_spoken(spoken, None, now_s)
            else:
                del self._spoken[spoken.item_id]
                done.append(DropEvent("answer_failed", "what was said could not be taken back: it gets no answer"))
        for held in [each for each in self._held if each.due_s <= now_s]:
            done += self._decide_typed(held, None)
        return done + self._settle()

    def cut(self) -> None:
        """The session is gone. What is checked stays so: the next one is told the words once more."""
        self._is_here = False
        self._speaking = False
        self._commits.clear()
        for spoken in self._spoken.values():
            spoken.due_s = math.inf

    def begin(self, now_s: float) -> list[GuardAction]:
        """A session carries the talk, which was told what was said and is not removed."""
        self._is_here = True
        done: list[GuardAction] = []
        for spoken in list(self._spoken.values()):
            if spoken.replaced_by is not None:
                done += self._removed(spoken)
            else:
                spoken.due_s = now_s + (_REPLAYED_S if spoken.number is None else self.hook_s + _VERDICT_S)
        return done + self._settle()

    def release(self) -> list[GuardAction]:
        """Nothing is checked any more: another agent, without a guardrail, has the talk."""
        done: list[GuardAction] = []
        self._commits.clear()
        for held in self._held:
            held.number, held.due_s = None, math.inf
        for spoken in list(self._spoken.values()):
            self._answer_due |= spoken.replaced_by is None and self.by_itself
            if self._is_here or spoken.replaced_by is None:  # the next session gets what replaces the others
                done += self._removed(spoken)
        return done + self._settle()

    # --- what was said

    def _commit(self, item_id: str, now_s: float) -> list[GuardAction]:
        self._speaking = False
        self._committed[item_id] = None
        if self._commits:
            self._commits.popleft()
        spoken = self._spoken.setdefault(item_id, _Utterance(item_id, now_s + TRANSCRIPT_S))
        if (told := self._early.pop(item_id, None)) is not None:
            return self._transcribed(spoken, told, now_s)
        if len(self._spoken) > _WAITING_AT_MOST:
            return self._decide_spoken(next(iter(self._spoken.values())), None, now_s)
        return []

    def _transcribed(self, spoken: _Utterance, event: Event, now_s: float) -> list[GuardAction]:
        if spoken.number is not None or spoken.replaced_by is not None:
            return []
        spoken.told = event
        transcript = event.get("transcript")
        if event.get("type") == _NOT_TRANSCRIBED or not isinstance(transcript, str) or not transcript.strip():
            return self._decide_spoken(spoken, None, now_s)
        spoken.number = self._next_number()
        spoken.due_s = now_s + self.hook_s + _VERDICT_S
        return [AskHook(spoken.number, transcript, "speech")]

    def _decide_spoken(self, spoken: _Utterance, verdict: Verdict | None, now_s: float) -> list[GuardAction]:
        """Acts on a verdict; None: there is none, which counts as the hook's failure."""
        action, words, say = self._read(verdict)
        if action == "allow":
            del self._spoken[spoken.item_id]
            self._answer_due |= self.by_itself
            return [*_kept(spoken), *self._settle()]
        if action == "refuse":
            if self.by_itself:
                self._say = say
            else:
                self._say_later = say
        spoken.replaced_by = words
        spoken.due_s = now_s + _REMOVED_S if self._is_here else math.inf
        dropped = DropTurn(spoken.item_id)
        if not self._is_here:
            return [dropped]
        about = {"event_id": f"{OWN_IDS}delete_{self._next_number()}", "item_id": spoken.item_id}
        return [dropped, SendEvent({"type": "conversation.item.delete", **about})]

    def _removed(self, spoken: _Utterance) -> list[GuardAction]:
        del self._spoken[spoken.item_id]
        if spoken.replaced_by is None:  # the client has deleted it
            return [*_kept(spoken), *self._settle()]
        done: list[GuardAction] = []
        if spoken.replaced_by:
            content = [{"type": "input_text", "text": spoken.replaced_by}]
            item = {"type": "message", "role": "user", "content": content}
            event_id = f"{OWN_IDS}item_{self._next_number()}"
            done.append(SendEvent({"type": "conversation.item.create", "event_id": event_id, "item": item}))
            self._answer_due |= self.by_itself
        return done + self._settle()

    def _note_error(self, error: object, now_s: float) -> list[GuardAction]:
        if not isinstance(error, Mapping):
            return []
        if error.get("code") == "input_audio_buffer_commit_empty" and self._commits:
            self._commits.popleft()
            return self._settle()
        event_id = error.get("event_id")
        if isinstance(event_id, str) and event_id.startswith(f"{OWN_IDS}delete_"):
            # The item is not there any more, or Azure keeps it: the next tick gives it up.
            removing = (each for each in self._spoken.values() if each.replaced_by is not None)
            if (spoken := next(removing, None)) is not None:
                spoken.due_s = now_s
                return self.tick(now_s)
        return []

    # --- what was typed, and what the client asks for

    def _decide_typed(self, held: _HeldEvent, verdict: Verdict | None) -> list[GuardAction]:
        action, words, say = self._read(verdict)
        held.number, held.due_s = None, math.inf
        if action == "replace":
            held.event = with_words(held.event, words)
        elif action == "refuse" and is_owed(held.event):
            is_output = held.event["item"].get("type") == "function_call_output"
            held.event = with_words(held.event, _WITHHELD if is_output else "")
        elif action == "refuse":
            self._held.remove(held)
            self._held_chars -= held.chars
            if held.event.get("type") == "response.create":
                return [WantAnswer(say), *self._advance()]
            self._say_later = say
        return self._advance()

    def _own_request(self, event: Event) -> tuple[bool, list[GuardAction]]:
        """The client's own `response.create`. To words that were refused, the answer is what is said of that."""
        response = event.get("response")
        outside = isinstance(response, Mapping) and response.get("conversation") == "none"
        if self._say_later is None or outside:
            return True, []
        say, self._say_later = self._say_later, None
        return False, [WantAnswer(say)]

    def _advance(self) -> list[GuardAction]:
        """Lets the client's events go on, in their order, up to the first that still waits."""
        done: list[GuardAction] = []
        while self._held and self._is_here:
            first = self._held[0]
            asks = first.event.get("type") == "response.create"
            if first.number is not None or (asks and (self.is_checking or self._speaking)):
                break
            self._held.popleft()
            self._held_chars -= first.chars
            passes, actions = self._own_request(first.event) if asks else (True, [])
            done += actions
            if asks:
                self._answer_due = False
            if passes:
                done.append(ForwardEvent(first.event))
        return done

    def _settle(self) -> list[GuardAction]:
        """What becomes possible once every verdict is there."""
        done = self._advance()
        if self.is_checking or not self._is_here:
            return done
        if self._answer_due:
            done.append(WantAnswer())
        if self._say is not None:
            done.append(WantAnswer(self._say))
        self._answer_due, self._say = False, None
        return done

    def _read(self, verdict: Verdict | None) -> tuple[Literal["allow", "replace", "refuse"], str, str]:
        """The action, the words that replace (empty for none), and what the agent is told to say."""
        if verdict is None:
            return ("allow" if self.fails_open else "refuse"), "", _REFUSED
        say = _REFUSED if not verdict.say else f'Say to the user exactly this, and nothing else: "{verdict.say}"'
        if verdict.action == "replace" and verdict.text and verdict.text.strip():
            return "replace", verdict.text, say
        return ("refuse" if verdict.action == "replace" else verdict.action), "", say

    def _next_number(self) -> int:
        self._number += 1
        return self._number


def _kept(spoken: _Utterance) -> list[GuardAction]:
    """The turn of what was said, unless that goes."""
    return [] if spoken.told is None or spoken.replaced_by is not None else [KeepTurn(spoken.told)]


def _id_of(event: Event) -> str | None:
    event_id = event.get("event_id")
    return event_id if isinstance(event_id, str) else None
