"""Decides for one talk when Azure is asked for an answer. Pure.

Azure's and the client's events go in, and the time in seconds of any steady clock; actions come out. An answer is asked
for while nobody speaks and no other answer is made: Azure refuses a `response.create` beside an active answer, and two
in a row would answer the same words twice. What the broker wants asked waits here until then. The model is asked once
to go on from all calls of an answer, when that answer is over and every call has its output.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strategies.session_model.agent_settings import Dialect
from token_broker.relay.answers.actions import Action, Reason, Refuse, Send, Tool
from token_broker.relay.answers.open_calls import CallBatch, OpenCalls
from token_broker.relay.dialects.broker_events import SAY_ID
from token_broker.relay.resume.session_facts import SessionFacts
from token_broker.security.limits import BoundedDict

__all__ = ["ACTIVE_ALREADY", "CREATE_ID", "SEQUENCER_EVENTS", "AnswerSequencer"]

Event = Mapping[str, Any]

CREATE_ID = "broker_create_"
"""The prefix of the `event_id` of an answer that the broker asks for."""
ACTIVE_ALREADY = "conversation_already_has_active_response"
"""Azure's code for a `response.create` beside an active answer."""
SEQUENCER_EVENTS = frozenset({
    "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
    "input_audio_buffer.cleared", "response.created", "response.output_item.added", "response.output_item.done",
    "response.function_call_arguments.done", "response.mcp_call.completed", "response.mcp_call.failed", "response.done",
    "conversation.item.created", "conversation.item.added", "conversation.item.done", "error",
    "output_audio_buffer.started", "output_audio_buffer.stopped", "output_audio_buffer.cleared",
})  # fmt: skip
"""Azure's events that have to be parsed for `azure_sent`."""

_ITEM_TOLD = frozenset({"conversation.item.created", "conversation.item.added", "conversation.item.done"})
_LOOKS_AGAIN_S = 0.2
_ROUNDS_AT_MOST = 5
_WISHES_AT_MOST = 8
_TRIES = 5
_TAKEN = 16
_BY_ITSELF_S = 5.0  # after speech, for the answer of turn detection
_CREATED_S = 35.0  # longer than a silent session is kept
_CLIENTS_S = 10.0
_BLOCKED_S = 10.0
_OWED_S = 5.0  # official clients ask at once
_NO_APPROVAL = "no such approval is awaited: yours is dropped"


@dataclass(slots=True)
class _Want:
    """An answer that is to be asked for. `event`: the client's own wish, as it sent it, after `items` of the user's."""

    reason: Reason
    response: dict[str, Any] | None = None
    event: dict[str, Any] | None = None
    items: int = 0
    outside: bool = False
    tries: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether any answer to the conversation is what is wanted."""
        return not self.response


@dataclass(slots=True)
class _Create:
    """A `response.create` under way, of these ids. Before it were sent `items` of the user's, and what it `covers`."""

    reason: Reason
    sent_s: float
    items: int
    event_ids: frozenset[str] = frozenset()
    covers: frozenset[str] = frozenset()
    wants: tuple[_Want, ...] = ()
    batches: tuple[CallBatch, ...] = ()
    tools_off: bool = False
    outside: bool = False  # of the conversation

    @property
    def until_s(self) -> float:
        """Until then Azure begins an answer or refuses. A refusal of the client's may not say what it is about."""
        return self.sent_s + (_CLIENTS_S if self.reason == "client" else _CREATED_S)


@dataclass(slots=True)
class _AnswerUnderWay:
    """An answer that Azure makes: of a `create`, or by itself.

    When it began, the agent had these `tools`, and Azure had told of so many `told_items` of the user's, and of the
    outputs of the keys `told`.
    """

    tools: Mapping[str, Tool]
    told_items: int = 0
    told: frozenset[str] = frozenset()
    outside: bool = False
    create: _Create | None = None

    @property
    def items(self) -> int:
        """It answers the first so many items of the user's."""
        return self.told_items if self.create is None else self.create.items

    @property
    def covers(self) -> frozenset[str]:
        """It goes on from the outputs of these keys."""
        return self.told if self.create is None else self.create.covers

    @property
    def is_brokers(self) -> bool:
        return self.create is not None and self.create.reason != "client"

    @property
    def silent(self) -> bool:
        """Whether tools are off in it."""
        return self.create is not None and self.create.tools_off


class AnswerSequencer:
    """One talk's. `tools` gives the current agent's functions by name; somebody else keeps the `facts` of the session.

    `holds`: the user's audio is not committed, and no turn detection commits it. `plays_until_s`: until then an answer
    may still be heard. `listens`: the client talks to Azure directly, over WebRTC, and asks itself for an answer to its
    own outputs; unless the broker `leads`, since such a client has heard that it does: then it sends items alone.
    `page_writes`: the client can write to Azure past the broker, which asks for all answers.
    """

    def __init__(
        self,
        tools: Callable[[], Mapping[str, Tool]],
        *,
        facts: SessionFacts,
        holds: Callable[[], bool] = lambda: False,
        plays_until_s: Callable[[], float] = lambda: 0.0,
        listens: bool = False,
        leads: Callable[[], bool] = lambda: False,
        page_writes: bool = False,
    ) -> None:
        self._facts = facts
        self._holds = holds
        self._plays_until_s = plays_until_s
        self._listens = listens
        self._leads = leads
        self._tools = tools
        self.calls = OpenCalls(lambda: facts.session_id, listens=listens, leads=leads, page_writes=page_writes)
        self._here = False
        self._moved = False
        self._dialect: Dialect = "ga"
        self._active: dict[str, _AnswerUnderWay] = {}
        self._creates: deque[_Create] = deque()  # under way: one of the broker's, or some of the client's
        self._taken = BoundedDict[str, _Create](_TAKEN)  # those for which an answer began, by their ids
        self._wants: deque[_Want] = deque()
        self._speaking = False
        self._by_itself_s = 0.0  # until then, turn detection may ask for the answer to what was said
        self._blocked_s = 0.0  # until then, or the end of an answer, nothing is asked: Azure refused
        self._plays = False  # over WebRTC Azure tells
        self._rounds = 0
        self._items = 0  # of the user's, spoken and typed
        self._untold: dict[int, bool] = {}  # those of which Azure has not told, by number: whether they are spoken
        self._owed = 0  # outputs of the client's, each of which its own `response.create` may follow
        self._owed_s = 0.0
        self._number = 0

    @property
    def is_answering(self) -> bool:
        """Whether an answer is asked for or made, or a call of one has no output yet."""
        return bool(self._active or self._creates) or self.calls.is_acting

    def is_clients(self, name: str) -> bool:
        """Whether the client answers calls of this name that are made now."""
        known = [*(answer.tools for answer in self._active.values()), self._tools()]
        return any(name in tools and tools[name].by == "client" for tools in known)

    def reason_of(self, event: Event) -> Reason | None:
        """Why the broker, or its client, asked for the answer that has just begun; None: nobody did, or none has."""
        response = event.get("response")
        answer = self._active.get(str(response.get("id"))) if isinstance(response, dict) else None
        return None if answer is None or answer.create is None else answer.create.reason

    def due_s(self, now_s: float) -> float:
        """When `tick` has something to do next; infinity: nothing is known."""
        times = [*self.calls.times(), self._by_itself_s, self._blocked_s]
        if self.calls.is_acting:
            times.append(self._plays_until_s())
        times += [create.until_s for create in self._creates]
        if self._here and now_s >= self._plays_until_s() and self.calls.is_late(now_s):
            times.append(now_s + _LOOKS_AGAIN_S)  # what stood against it may end without a word of Azure's
        return min((each for each in times if each > now_s), default=math.inf)

    def tick(self, now_s: float) -> list[Action]:
        """Does what is due: an answer is asked for, a call has taken too long."""
        while self._creates and self._creates[0].until_s <= now_s:
            self._again(self._creates.popleft())
        return self.calls.expire(now_s) + self._next(now_s)

    # --- what is wanted

    def want(self, reason: Reason, response: dict[str, Any] | None, now_s: float) -> list[Action]:
        """Asks for an answer as soon as nobody speaks; `response` as in `response.create`, None: as the session is.

        A greeting is not wanted any more once the user has said something, nor is a failed answer once they speak.
        """
        waiting = [want for want in self._wants if want.reason == reason and want.is_plain == (not response)]
        if waiting and not response:  # one answer serves both
            return self._next(now_s)
        if len(waiting) >= _WISHES_AT_MOST:
            return [Refuse(ACTIVE_ALREADY, "too many answers are asked for at once")]
        if not (reason == "greeting" and self._items) and not (reason == "retry" and self._speaking):
            self._wants.append(_Want(reason, response, items=self._items))
        return self._next(now_s)

    def output_ready(self, call_id: str, text: str, now_s: float, *, ok: bool = True) -> list[Action]:
        """The output of a call that was to be run. It is sent at once, whoever speaks."""
        return self.calls.output_ready(call_id, text, now_s, ok=ok) + self._next(now_s)

    # --- the session

    def begin(self, dialect: Dialect, now_s: float, *, asked: frozenset[str] = frozenset()) -> list[Action]:
        """A session carries the talk. It knows the calls of earlier ones; their outputs follow.

        `asked` are the `event_id`s of the `response.create` that it was sent for what the earlier one still owed.
        """
        self._here, self._dialect = True, dialect
        if not self._leads():  # the page was told that we are gone, and asks by itself
            self._wants = deque(want for want in self._wants if want.reason != "page")
        done = self.calls.begin() + self.calls.expire(now_s)
        asked_for = tuple(batch for batch in self.calls if batch.asked)
        if asked:
            self._creates.append(_Create("retry", now_s, self._items, asked, self.calls.answered(), (), asked_for))
        else:  # the client has cancelled what was asked, or asks itself
            for batch in asked_for:
                self.calls.drop(batch)
        return done + self._next(now_s)

    def cut(self, *, lost: bool = True) -> None:
        """The session is gone: its answers are over, and what it was asked is asked of the next one.

        Where it is not `lost`, only our way to it is: what it does and tells meanwhile is not seen.
        """
        self._moved = self._moved or (self._here and lost)
        self._here = self._speaking = self._plays = False
        self._creates.clear()
        self._taken.clear()
        self._active.clear()
        self._by_itself_s = self._blocked_s = 0.0
        self._wants = deque(want for want in self._wants if want.reason != "retry")  # the next one is asked anyhow
        self._untold.clear()
        self.calls.cut(lost=lost)

    # --- what the client sends

    def client_sent(self, kind: str, event: Event, now_s: float) -> tuple[bool, list[Action]]:
        """Whether an event of the client's goes to Azure, and what is to be done at once.

        What becomes possible by it is done by `tick`, once the event has been sent.
        """
        if kind == "conversation.item.create":
            return self._client_item(event.get("item"), event, now_s)
        if kind in {"input_audio_buffer.commit", "input_text.done"}:
            self._user_turn(spoken=kind == "input_audio_buffer.commit")
        elif kind == "input_audio_buffer.clear":
            self._speaking, self._by_itself_s = False, 0.0
        elif kind == "response.create":
            return self._client_wish(dict(event), now_s)
        return True, []

    # --- what Azure sends

    def azure_sent(self, event: Event, now_s: float) -> list[Action]:
        """Takes a parsed event of Azure's."""
        kind, response_id = event.get("type"), str(event.get("response_id"))
        silent = (answer := self._active.get(response_id)) is not None and answer.silent
        done: list[Action] = []
        if kind == "input_audio_buffer.speech_started":
            self._speaking = True
            self._user_turn(spoken=True)
        elif kind in {"input_audio_buffer.speech_stopped", "input_audio_buffer.committed"}:
            by_itself = self._facts.detects and self._facts.answers_by_itself
            self._speaking, self._by_itself_s = False, now_s + _BY_ITSELF_S if by_itself else 0.0
            if kind == "input_audio_buffer.committed" and not self._facts.detects and self._listens and self._leads():
                self._user_turn(spoken=True)
                self._wants.append(_Want("page", items=self._items))
        elif kind == "input_audio_buffer.cleared":
            self._speaking, self._by_itself_s = False, 0.0
        elif kind == "response.created":
            if isinstance(stated := event.get("response"), dict):
                outside = "conversation_id" in stated and stated["conversation_id"] is None
                create = self._creates[0] if self._creates else None
                if create is not None and outside and create.reason != "client" and not create.outside:
                    create = None  # a client's own, which was under way
                if create is not None:
                    self._creates.popleft()
                    self._taken.update(dict.fromkeys(create.event_ids, create))
                self._by_itself_s = self._by_itself_s if outside else 0.0
                told_items = min(self._untold, default=self._items + 1) - 1
                answer = _AnswerUnderWay(self._tools(), told_items, self.calls.told(), outside, create)
                self._active[str(stated.get("id"))] = answer
        elif kind == "response.output_item.added":
            self.calls.add_output(event, now_s, silent=silent)
        elif kind == "response.function_call_arguments.done":
            self.calls.end_arguments(event, self._tools_of(answer), silent=silent)
        elif kind == "response.output_item.done":
            outside = answer is not None and answer.outside
            how = {"silent": silent, "outside": outside}
            done += self.calls.end_output(event.get("item"), response_id, now_s, self._tools_of(answer), **how)
        elif kind in {"response.mcp_call.completed", "response.mcp_call.failed"}:
            self.calls.end_mcp(str(event.get("item_id")))
        elif kind in _ITEM_TOLD:
            item = event.get("item")
            done += self.calls.note_item(item, now_s)
            if isinstance(item, dict) and item.get("role") == "user" and kind != "conversation.item.done":
                self._note_told(item.get("content"))
        elif kind == "response.done":
            done += self._end_answer(event.get("response"), now_s)
        elif kind == "output_audio_buffer.started":
            self._plays = True
        elif kind in {"output_audio_buffer.stopped", "output_audio_buffer.cleared"}:
            self._plays = False
        elif kind == "error":
            done += self._refused(event.get("error"), now_s)
        else:
            return []
        return done + self._next(now_s)

    def _tools_of(self, answer: _AnswerUnderWay | None) -> Mapping[str, Tool]:
        return self._tools() if answer is None else answer.tools

    # --- asking

    def _next(self, now_s: float) -> list[Action]:
        """Asks for the next answer, where nothing stands against it."""
        ready = self.calls.ready()
        if not self._here or self._active or self._creates or self._speaking:
            return []
        if now_s < self._by_itself_s or now_s < self._blocked_s:
            return []
        if not (ready or self._wants or self.calls.is_acting) or self._holds():
            return []
        if ready or self._wants:
            return [self._ask(ready, now_s)]
        if self._facts.interim or self._plays or now_s < self._plays_until_s():
            return []
        if (say := self.calls.late(now_s)) is None:
            return []
        told = f"A tool is still running. Say to the user exactly this, and nothing else: {say}"
        asked = {"instructions": f"{self._facts.instructions}\n\n{told}".strip(), "tool_choice": "none"}
        return [self._send(_Create("say", now_s, self._items), SAY_ID, asked)]

    def _ask(self, ready: list[CallBatch], now_s: float) -> Action:
        """One `response.create` for the finished batches and all wants for which any answer will do."""
        if not ready and not self._wants[0].is_plain:
            wants: tuple[_Want, ...] = (self._wants.popleft(),)
        else:
            wants = tuple(want for want in self._wants if want.is_plain)
            self._wants = deque(want for want in self._wants if not want.is_plain)
        create = _Create("tools" if ready else wants[0].reason, now_s, self._items, wants=wants, batches=tuple(ready))
        if ready or wants[0].is_plain:
            create.covers = self.calls.answered()
        if not ready and (event := next((want.event for want in wants if want.event), None)) is not None:
            create.event_ids = _ids(event)
            self._creates.append(create)
            return Send(event)
        response: dict[str, Any] = {}
        for want in wants:
            response |= want.response or {}
        if ready:
            for batch in ready:
                batch.asked = True
                response |= batch.wish
            self._rounds += 1
            response["tool_choice"] = "none" if self._rounds > _ROUNDS_AT_MOST else "auto"
        return self._send(create, CREATE_ID, response)

    def _send(self, create: _Create, prefix: str, response: dict[str, Any]) -> Action:
        self._number += 1
        event_id = f"{prefix}{self._number}"
        name = "output_modalities" if self._dialect == "ga" else "modalities"
        if self._moved and self._facts.modalities and name not in response:
            # What a new session was told is text, after which a model may answer in text alone.
            response = {**response, name: list(self._facts.modalities)}
        create.event_ids = frozenset({event_id})
        create.tools_off = response.get("tool_choice") == "none"
        create.outside = response.get("conversation") == "none"
        self._creates.append(create)
        stated = {"response": response} if response else {}
        return Send({"type": "response.create", "event_id": event_id, **stated})

    # --- answers

    def _end_answer(self, stated: Any, now_s: float) -> list[Action]:
        if not isinstance(stated, dict):
            return []
        response_id = str(stated.get("id"))
        answer = self._active.pop(response_id, None) or _AnswerUnderWay(self._tools())
        done: list[Action] = []
        for item in stated.get("output") or ():
            if isinstance(item, dict) and item.get("type") != "mcp_call":  # it may run on
                how = {"silent": answer.silent, "outside": answer.outside}
                done += self.calls.end_output(item, response_id, now_s, answer.tools, **how)
        self.calls.end_answer(response_id, cancelled=stated.get("status") == "cancelled")
        self._blocked_s = 0.0
        if answer.outside:
            return done
        for batch in self.calls:
            if batch.response_id != response_id and batch.is_complete and batch.answered <= answer.covers:
                self.calls.drop(batch)
        reason = None if answer.create is None else answer.create.reason
        if reason not in {"say", "greeting"}:  # a wish of the client's that has waited may be met
            self._wants = deque(
                want
                for want in self._wants
                if not ((want.event or want.reason == "page") and want.is_plain and want.items <= answer.items)
            )
        if reason == "tools":
            self._owed = 0
        return done

    def _refused(self, error: Any, now_s: float) -> list[Action]:
        """Azure refused something. What was refused since an answer is active is asked again after it."""
        if not isinstance(error, dict):
            return []
        code, event_id = error.get("code"), error.get("event_id")
        nameless = code == ACTIVE_ALREADY or str(error.get("param")).startswith("response")
        refused = (
            each
            for each in self._creates
            if event_id in each.event_ids or (event_id is None and nameless and not each.event_ids)
        )
        if (create := next(refused, None)) is not None:
            self._creates.remove(create)
        elif isinstance(event_id, str) and (create := self._taken.pop(event_id, None)) is not None:
            # Another answer was created first, and was taken for the one that is refused.
            for answer in self._active.values():
                if answer.create is create:
                    answer.create = None
        else:
            return []
        if create.reason == "client" and not create.wants:
            return []  # passed on as it came: the client hears of it
        if code == ACTIVE_ALREADY and all(want.tries < _TRIES for want in create.wants):
            if not self._active:
                self._blocked_s = now_s + _BLOCKED_S
            self._again(create)
            return []
        for batch in create.batches:
            self.calls.drop(batch)
        if create.reason == "say":
            return []
        return [Refuse("answer_failed", "Azure did not take the question: ask again", retryable=True)]

    def _again(self, create: _Create) -> None:
        """What was asked has to be asked once more."""
        for batch in create.batches:
            self.calls.ask_again(batch)
        for want in reversed(create.wants):
            want.tries += 1
            self._wants.appendleft(want)

    # --- the client

    def _note_told(self, content: Any) -> None:
        spoken = isinstance(content, list) and any(
            isinstance(part, dict) and part.get("type") == "input_audio" for part in content
        )
        number = next((number for number, by_voice in self._untold.items() if by_voice == spoken), None)
        if number is not None:
            del self._untold[number]
        elif self._listens:  # typed by a page that talks to Azure directly
            self._user_turn(spoken=spoken)
            del self._untold[self._items]
            is_question = isinstance(content, list) and any(
                isinstance(part, dict) and part.get("type") == "input_text" for part in content
            )
            if is_question and self._leads():  # an image alone asks nothing
                self._wants.append(_Want("page", items=self._items))

    def _user_turn(self, *, spoken: bool) -> None:
        self._rounds = self._owed = 0
        if spoken:  # what was noise, or is not committed, comes to no item
            self._untold = {number: by_voice for number, by_voice in self._untold.items() if not by_voice}
        self._items += 1
        self._untold[self._items] = spoken
        self._wants = deque(want for want in self._wants if want.reason not in {"greeting", "retry"})

    def _client_item(self, item: Any, event: Event, now_s: float) -> tuple[bool, list[Action]]:
        item = item if isinstance(item, dict) else {}
        if item.get("type") == "function_call_output":
            call_id = str(item.get("call_id"))
            if (told := self.calls.answered_by_client(call_id, now_s)) is not None:
                self._owed += 1
                self._owed_s = now_s + _OWED_S
                return True, [told]
            return False, [self._unwanted(call_id, event)]
        if item.get("type") == "mcp_approval_response":
            key = str(item.get("approval_request_id"))
            if self.calls.approved(key, approve=item.get("approve") is True, now_s=now_s):
                return True, []
            return False, [Refuse("unknown_approval", _NO_APPROVAL, _id(event))]
        if item.get("role") != "assistant":
            self._user_turn(spoken=False)
        return True, []

    def _unwanted(self, call_id: str, event: Event) -> Refuse:
        """What the client hears of an output that nobody waits for."""
        if self.calls.was_seen(call_id):
            return Refuse("call_answered", "this call has its output: yours is dropped", _id(event))
        return Refuse("unknown_call", "there is no such call: its output is dropped", _id(event))

    def _client_wish(self, event: dict[str, Any], now_s: float) -> tuple[bool, list[Action]]:
        """The client's own `response.create`: it goes on, waits, or is part of what the broker asks anyhow."""
        response = event.get("response")
        response = response if isinstance(response, dict) else {}
        for item in response.get("append_input_items") or ():  # Voice Live puts them into the conversation
            passes, actions = self._client_item(item, event, now_s)
            if not passes:
                return False, actions
        own = [*(response.get("input") or ()), *(response.get("input_items") or ())]
        for item in own:
            # What is read for this answer alone answers no call; a client may repeat the outputs of its own.
            call_id = str(item.get("call_id"))
            if item.get("type") == "function_call_output" and not self.calls.is_clients(call_id):
                return False, [self._unwanted(call_id, event)]
            if item.get("type") == "mcp_approval_response":
                return False, [Refuse("unknown_approval", _NO_APPROVAL, _id(event))]
        outside = response.get("conversation") == "none" or response.get("commit") is False
        goes_on = not outside and not own and not response.get("append_input_items")
        if self._owed and now_s < self._owed_s and goes_on:
            self._owed -= 1
            for batch in self.calls:
                if not batch.asked and not batch.cancelled:
                    batch.wish = response
                    break
            return False, []
        brokers = any(create.reason != "client" for create in self._creates)
        brokers = brokers or any(answer.is_brokers for answer in self._active.values())
        if not brokers or response.get("cancel_previous") is True:
            self._creates.append(_Create("client", now_s, self._items, _ids(event), self.calls.answered()))
            return True, []
        if not outside:  # the latest counts, as one answer is wanted
            self._wants = deque(want for want in self._wants if want.event is None or want.outside)
        if len(self._wants) >= _WISHES_AT_MOST:
            return False, [Refuse(ACTIVE_ALREADY, "too many answers are asked for at once", _id(event))]
        self._wants.append(_Want("client", response or None, event, self._items, outside))
        return False, []


def _id(event: Event) -> str | None:
    event_id = event.get("event_id")
    return event_id if isinstance(event_id, str) else None


def _ids(event: Event) -> frozenset[str]:
    return frozenset(filter(None, [_id(event)]))
