"""Decides for one talk when Azure is asked for an answer, and what becomes of the calls in its answers. Pure.

Azure's and the client's events go in, and the time in seconds of any steady clock; actions come out. An answer is asked
for while nobody speaks and no other answer is made: Azure refuses a `response.create` beside an active answer, and two
in a row would answer the same words twice. What the broker wants asked waits here until then. The model is asked once
to go on from all calls of an answer, when that answer is over and every call has its output.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from strategies.base import Dialect
from token_broker.relay.answers.actions import Action, Reason, Refuse, Run, Send, Tell, Tool
from token_broker.relay.answers.batches import Batch, Call
from token_broker.relay.resume.session_facts import SessionFacts
from token_broker.security.limits import BoundedDict

__all__ = ["CREATE_ID", "OUTPUT_ID", "SAY_ID", "SEQUENCER_EVENTS", "AnswerSequencer"]

Event = Mapping[str, Any]

CREATE_ID, SAY_ID, OUTPUT_ID = "broker_create_", "broker_say_", "broker_output_"
"""Prefixes of the `event_id`s of what the sequencer sends: an answer, the words for a wait, the output of a call."""

_CALLS_AT_MOST = 8
_ROUNDS_AT_MOST = 5
_WISHES_AT_MOST = 8
_TRIES = 5
_SAY_AFTER_S = 0.7
_APPROVAL_S = 60.0
_MCP_S = 120.0  # Azure has limits of its own
_BY_ITSELF_S = 5.0  # after speech, for the answer of turn detection
_CREATED_S = 10.0
_SEEN = 512
SEQUENCER_EVENTS = frozenset({
    "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
    "input_audio_buffer.cleared", "response.created", "response.output_item.added", "response.output_item.done",
    "response.mcp_call.completed", "response.mcp_call.failed", "response.done", "conversation.item.created",
    "conversation.item.added", "conversation.item.done", "error",
    "output_audio_buffer.started", "output_audio_buffer.stopped", "output_audio_buffer.cleared",
})  # fmt: skip
"""Azure's events that have to be parsed for `azure_sent`."""

_ITEM_TOLD = frozenset({"conversation.item.created", "conversation.item.added", "conversation.item.done"})
_ACTIVE = "conversation_already_has_active_response"

_TOO_MANY = f"This call was not made: one answer may make at most {_CALLS_AT_MOST} calls. Repeat it if it is needed."
_TOOLS_OFF = "This call was not made: no tool may be used in this answer."
_NO_ANSWER = "The user's device did not answer this call in time."
_UNKNOWN = "There is no tool of this name. The tools are: {names}."


@dataclass(slots=True)
class _Want:
    """An answer that is to be asked for. `event`: the client's own wish, as it sent it."""

    reason: Reason
    response: dict[str, Any] | None = None
    event: dict[str, Any] | None = None
    items: int = 0
    tries: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether any answer to the conversation is what is wanted."""
        return not self.response


@dataclass(slots=True)
class _Create:
    """A `response.create` under way, of these ids. Before it were sent `items` of the user's, and what it `covers`."""

    reason: Reason
    event_ids: frozenset[str]
    sent_s: float
    items: int
    covers: frozenset[str] = frozenset()
    wants: tuple[_Want, ...] = ()
    batches: tuple[Batch, ...] = ()
    tools_off: bool = False


@dataclass(slots=True)
class _Answer:
    """An answer that Azure makes. `reason` is None where the broker did not ask for it."""

    reason: Reason | None = None
    covers: frozenset[str] = frozenset()
    outside: bool = False
    tools_off: bool = False
    create: _Create | None = field(default=None)


class AnswerSequencer:
    """One talk's. `tools` gives the current agent's functions by name; somebody else keeps the `facts` of the session.

    `holds`: the user's audio is not committed, and no turn detection commits it. `plays_until_s`: until then an answer
    may still be heard. `listens`: the client talks to Azure directly, over WebRTC, and asks itself for an answer to its
    own outputs.
    """

    def __init__(
        self,
        tools: Callable[[], Mapping[str, Tool]],
        *,
        facts: SessionFacts,
        holds: Callable[[], bool] = lambda: False,
        plays_until_s: Callable[[], float] = lambda: 0.0,
        listens: bool = False,
    ) -> None:
        self._tools = tools
        self._facts = facts
        self._holds = holds
        self._plays_until_s = plays_until_s
        self._listens = listens
        self._here = False
        self._dialect: Dialect = "ga"
        self._moved = False
        self._batches: dict[str, Batch] = {}
        self._active: dict[str, _Answer] = {}
        self._create: _Create | None = None
        self._wants: deque[_Want] = deque()
        self._told: set[str] = set()  # keys whose outputs Azure has told of
        self._seen = BoundedDict[tuple[str, str], str](_SEEN)  # calls by session and id, and what became of them
        self._speaking = False
        self._by_itself_s = 0.0  # until then, turn detection may ask for the answer to what was said
        self._blocked_s = 0.0  # until then, or the end of an answer, nothing is asked: Azure refused
        self._plays = False
        self._rounds = 0
        self._owed = 0  # the client's outputs that its own `response.create` may follow
        self._items = 0  # of the user's, spoken and typed
        self._number = 0

    # --- what a clock and a pause ask

    @property
    def is_idle(self) -> bool:
        """Whether no call, approval or answer of the broker's is open: a talk may move."""
        return not (self._batches or self._wants or self._create)

    @property
    def is_acting(self) -> bool:
        """Whether a call or an approval waits for its output: then Azure owes nothing."""
        return any(batch.open for batch in self._batches.values())

    def due_s(self, now_s: float) -> float:
        """When `tick` has something to do next; infinity: nothing is known."""
        times = [call.deadline_s for batch in self._batches.values() for call in batch.open.values()]
        for batch in self._batches.values():
            if not batch.said and not self._facts.interim:
                times += [each.began_s + _SAY_AFTER_S for each in batch.open.values() if each.tool and each.tool.say]
        if self._batches or self._wants:
            times += [self._by_itself_s, self._blocked_s, self._plays_until_s()]
        if self._create is not None:
            times.append(self._create.sent_s + _CREATED_S)
        return min((each for each in times if each > now_s), default=math.inf)

    def tick(self, now_s: float) -> list[Action]:
        """Does what is due: an answer is asked for, a call has taken too long."""
        done: list[Action] = []
        if self._create is not None and now_s - self._create.sent_s >= _CREATED_S:
            self._create = None  # Azure told nothing of it; the clock of the talk decides about the session
        for batch in list(self._batches.values()):
            for call in [each for each in batch.open.values() if each.deadline_s <= now_s]:
                done += self._expire(batch, call, now_s)
        return done + self._next(now_s)

    # --- what is wanted

    def want(self, reason: Reason, response: dict[str, Any] | None, now_s: float) -> list[Action]:
        """Asks for an answer as soon as nobody speaks; `response` as in `response.create`, None: as the session is."""
        if reason == "greeting" and self._items:
            return []
        self._wants.append(_Want(reason, response))
        return self._next(now_s)

    def output_ready(self, call_id: str, text: str, now_s: float, *, ok: bool = True) -> list[Action]:
        """The output of a call that was to be run. It is sent at once, whoever speaks."""
        for batch in self._batches.values():
            if (call := batch.open.get(call_id)) is not None and call.output is None:
                told = Tell(call.name, call_id, "done" if ok else "failed", (now_s - call.began_s) * 1000)
                call.output = text
                return [*self._give(batch, call), told, *self._next(now_s)]
        return []

    # --- the session

    def begin(self, dialect: Dialect, now_s: float, *, asked: frozenset[str] = frozenset()) -> list[Action]:
        """A session carries the talk. It knows the calls of earlier ones; their outputs follow.

        `asked` are the `event_id`s of the `response.create` that it was sent for what the earlier one still owed.
        """
        self._here, self._dialect = True, dialect
        done: list[Action] = []
        answered: set[str] = set()
        for batch in self._batches.values():
            for call in [each for each in batch.open.values() if each.output is not None]:
                done += self._give(batch, call)
            answered |= batch.answered
        self._told = set(answered)
        if asked:
            asked_for = tuple(batch for batch in self._batches.values() if batch.asked)
            self._create = _Create("retry", asked, now_s, self._items, frozenset(answered), (), asked_for)
        else:  # the client has cancelled what was asked, or asks itself
            for batch in [each for each in self._batches.values() if each.asked]:
                self._drop(batch)
        return done + self._next(now_s)

    def cut(self) -> None:
        """The session is gone: its answers are over, and what it was asked is asked of the next one."""
        self._moved = self._here or self._moved
        self._here = False
        self._create = None
        self._active.clear()
        self._told.clear()
        self._speaking = self._plays = False
        self._by_itself_s = self._blocked_s = 0.0
        for batch in list(self._batches.values()):
            batch.ended = True
            for call in [each for each in batch.open.values() if each.tool is None]:
                del batch.open[call.key]  # approvals and calls of Azure's own do not outlive their session
                batch.asks = batch.asks or batch.functions > 0
            if batch.is_over:
                self._drop(batch)

    # --- what the client sends

    def client_sent(self, kind: str, event: Event, now_s: float) -> tuple[bool, list[Action]]:
        """Whether an event of the client's goes to Azure, and what is to be done at once.

        What becomes possible by it is done by `tick`, once the event has been sent.
        """
        if kind == "conversation.item.create":
            item = event.get("item")
            item = item if isinstance(item, dict) else {}
            if item.get("type") == "function_call_output":
                return self._client_output(str(item.get("call_id")), event, now_s)
            if item.get("type") == "mcp_approval_response":
                return self._client_approval(item, event, now_s)
            self._user_turn()
        elif kind in {"input_audio_buffer.commit", "input_text.done"}:
            self._user_turn()
        elif kind == "input_audio_buffer.clear":
            self._speaking, self._by_itself_s = False, 0.0
        elif kind == "response.create":
            return self._client_wish(dict(event), now_s)
        return True, []

    # --- what Azure sends

    def azure_sent(self, event: Event, now_s: float) -> list[Action]:
        """Takes a parsed event of Azure's."""
        kind = event.get("type")
        done: list[Action] = []
        if kind == "input_audio_buffer.speech_started":
            self._speaking = True
            self._user_turn()
        elif kind in {"input_audio_buffer.speech_stopped", "input_audio_buffer.committed"}:
            by_itself = self._facts.detects and self._facts.answers_by_itself
            self._speaking = False
            self._by_itself_s = now_s + _BY_ITSELF_S if by_itself else 0.0
        elif kind == "input_audio_buffer.cleared":
            self._speaking, self._by_itself_s = False, 0.0
        elif kind == "response.created":
            self._begin_answer(event.get("response"))
        elif kind == "response.output_item.added":
            self._add_output(event, now_s)
        elif kind == "response.output_item.done":
            done += self._end_output(event.get("item"), str(event.get("response_id")), now_s)
        elif kind in {"response.mcp_call.completed", "response.mcp_call.failed"}:
            self._mcp_ended(str(event.get("item_id")))
        elif kind in _ITEM_TOLD:
            self._note_item(event.get("item"), now_s)
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

    # --- asking

    def _next(self, now_s: float) -> list[Action]:
        """Asks for the next answer, where nothing stands against it."""
        if not self._here or self._active or self._create is not None or self._speaking or self._holds():
            return []
        if now_s < self._by_itself_s or now_s < self._blocked_s:
            return []
        ready = [batch for batch in self._batches.values() if batch.is_ready and (batch.acts or not self._listens)]
        if ready or self._wants:
            return [self._ask(ready, now_s)]
        if self._facts.interim or self._plays or now_s < self._plays_until_s():
            return []
        for batch in self._batches.values():
            if (call := batch.waits_long(now_s, _SAY_AFTER_S)) is not None and call.tool is not None:
                batch.said = True
                told = f'Say to the user exactly this, and nothing else: "{call.tool.say}"'
                instructions = f"{self._facts.instructions}\n\n{told}".strip()
                create = _Create("say", frozenset(), now_s, self._items)
                return [self._send(create, SAY_ID, {"instructions": instructions, "tool_choice": "none"})]
        return []

    def _ask(self, ready: list[Batch], now_s: float) -> Action:
        """One `response.create` for the finished batches and all wants for which any answer will do."""
        if not ready and not self._wants[0].is_plain:
            wants: tuple[_Want, ...] = (self._wants.popleft(),)
        else:
            wants = tuple(want for want in self._wants if want.is_plain)
            self._wants = deque(want for want in self._wants if not want.is_plain)
        if not ready and (event := next((want.event for want in wants if want.event), None)) is not None:
            self._create = _Create("client", _ids(event), now_s, self._items, self._answered(), wants)
            return Send(event)
        response: dict[str, Any] = {}
        for want in wants:
            response |= want.response or {}
        if ready:
            for batch in ready:
                batch.asked = True
                response |= batch.wish or {}
            self._rounds += 1
            response["tool_choice"] = "none" if self._rounds > _ROUNDS_AT_MOST else "auto"
        covers = self._answered() if ready or wants[0].is_plain else frozenset[str]()
        create = _Create("tools" if ready else wants[0].reason, frozenset(), now_s, self._items, covers, wants)
        create.batches = tuple(ready)
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
        self._create = create
        stated = {"response": response} if response else {}
        return Send({"type": "response.create", "event_id": event_id, **stated})

    def _answered(self) -> frozenset[str]:
        return frozenset().union(*(batch.answered for batch in self._batches.values()))

    # --- answers

    def _begin_answer(self, stated: Any) -> None:
        if not isinstance(stated, dict):
            return
        outside = "conversation_id" in stated and stated["conversation_id"] is None
        create, self._create = self._create, None
        if create is None:
            answer = _Answer(None, frozenset(self._told), outside)
        else:
            answer = _Answer(create.reason, create.covers, outside, create.tools_off, create)
        if not outside:
            self._by_itself_s = 0.0
        self._active[str(stated.get("id"))] = answer

    def _end_answer(self, stated: Any, now_s: float) -> list[Action]:
        if not isinstance(stated, dict):
            return []
        response_id = str(stated.get("id"))
        done: list[Action] = []
        for item in stated.get("output") or ():
            if isinstance(item, dict) and item.get("type") == "function_call":
                done += self._end_output(item, response_id, now_s)
        answer = self._active.pop(response_id, None)
        self._blocked_s = 0.0
        if (batch := self._batches.get(response_id)) is not None:
            batch.ended = True
            batch.cancelled = stated.get("status") == "cancelled"
            if batch.is_over:
                self._drop(batch)
        if answer is not None and not answer.outside:
            for each in list(self._batches.values()):
                # What it was asked to go on from, or what lay before it when turn detection asked for it.
                if each.ended and not each.open and each.response_id != response_id and each.answered <= answer.covers:
                    self._drop(each)
            if answer.create is not None and answer.covers == answer.create.covers:
                since = answer.create.items
                self._wants = deque(
                    want for want in self._wants if want.event is None or not want.is_plain or want.items > since
                )
            if answer.reason == "tools":
                self._owed = 0
        return done

    def _drop(self, batch: Batch) -> None:
        self._batches.pop(batch.response_id, None)
        self._told -= batch.answered

    # --- calls

    def _batch(self, response_id: str) -> Batch:
        if (batch := self._batches.get(response_id)) is None:
            answer = self._active.get(response_id)
            batch = self._batches[response_id] = Batch(response_id, silent=answer is not None and answer.tools_off)
        return batch

    def _add_output(self, event: Event, now_s: float) -> None:
        item = event.get("item")
        response_id = str(event.get("response_id"))
        if not isinstance(item, dict):
            return
        if item.get("type") == "mcp_call":
            self._mcp_began(item, self._batch(response_id), now_s)
        elif item.get("type") == "message" and (batch := self._batches.get(response_id)) and not batch.functions:
            batch.asks = False  # Azure itself goes on from its calls at MCP servers

    def _end_output(self, item: Any, response_id: str, now_s: float) -> list[Action]:
        if not isinstance(item, dict):
            return []
        kind = item.get("type")
        if kind == "mcp_call":
            self._mcp_ended(str(item.get("id")))
        elif kind == "mcp_approval_request":
            batch, key = self._batch(response_id), str(item.get("id"))
            batch.open.setdefault(key, Call(key, str(item.get("name")), now_s, None, now_s + _APPROVAL_S))
            batch.acts = True
        elif kind == "function_call" and item.get("status", "completed") == "completed":
            return self._take_call(item, response_id, now_s)
        return []

    def _take_call(self, item: Event, response_id: str, now_s: float) -> list[Action]:
        answer = self._active.get(response_id)
        call_id, name = str(item.get("call_id")), str(item.get("name"))
        arguments = item.get("arguments")
        arguments = arguments if isinstance(arguments, str) else ""
        if (self._facts.session_id, call_id) in self._seen or (answer is not None and answer.outside):
            return []
        self._seen[self._facts.session_id, call_id] = response_id
        batch = self._batch(response_id)
        batch.functions += 1
        tool, fault = self.judged(name, arguments, response_id, number=batch.functions)
        call = Call(call_id, name, now_s, tool)
        batch.open[call_id] = call
        batch.asks = not batch.silent
        if tool is None or fault is not None:
            batch.acts = True
            call.output = fault or ""
            return [Tell(name, call_id, "failed", 0.0), *self._give(batch, call)]
        if tool.by == "client":
            call.deadline_s = now_s + tool.timeout_s
            return [Tell(name, call_id, "running")]
        batch.acts = True
        return [Tell(name, call_id, "running"), Run(tool, call_id, arguments, self._facts.session_id)]

    def judged(
        self, name: str, arguments: str, response_id: str, *, number: int | None = None
    ) -> tuple[Tool | None, str | None]:
        """The tool of a call, and why it is not called. `number`: which call of its answer it is; None: the next."""
        batch, answer = self._batches.get(response_id), self._active.get(response_id)
        if number is None:
            number = 1 if batch is None else batch.functions + 1
        tools = self._tools()
        tool = tools.get(name)
        if (batch is not None and batch.silent) or (answer is not None and answer.tools_off):
            return tool, _TOOLS_OFF
        if number > _CALLS_AT_MOST:
            return tool, _TOO_MANY
        if tool is None:
            return None, _UNKNOWN.format(names=", ".join(sorted(tools)) or "none")
        return tool, tool.fault(arguments) if tool.by == "client" else None

    def _give(self, batch: Batch, call: Call) -> list[Action]:
        """Sends an output, where a session is there to take it."""
        if not self._here:
            return []
        batch.open.pop(call.key, None)
        batch.answered.add(call.key)
        item = {"type": "function_call_output", "call_id": call.key, "output": call.output}
        event = {"type": "conversation.item.create", "event_id": f"{OUTPUT_ID}{call.key}"[:64], "item": item}
        if batch.is_over:
            self._drop(batch)
        return [Send(event)]

    def _expire(self, batch: Batch, call: Call, now_s: float) -> list[Action]:
        told = Tell(call.name, call.key, "failed", (now_s - call.began_s) * 1000)
        batch.acts = True
        call.deadline_s = math.inf
        if call.tool is not None:
            call.output = _NO_ANSWER
            return [*self._give(batch, call), told]
        del batch.open[call.key]
        batch.answered.add(call.key)
        batch.asks = True
        if call.name == "":  # a call of Azure's own that never ended
            return []
        item = {"type": "mcp_approval_response", "approval_request_id": call.key, "approve": False}
        item["reason"] = "nobody answered in time"
        event_id = f"{OUTPUT_ID}{call.key}"[:64]
        return [Send({"type": "conversation.item.create", "event_id": event_id, "item": item}), told]

    # --- calls that Azure makes at MCP servers

    def _mcp_began(self, item: Event, batch: Batch, now_s: float) -> None:
        key, approval = str(item.get("id")), item.get("approval_request_id")
        for each in list(self._batches.values()):
            if key in each.open or key in each.answered:
                return
            if each is not batch and each.open.pop(str(approval), None) is not None and each.ended:
                each.asks = each.functions > 0 or bool(each.answered)
                if not each.open and not each.asks:
                    self._drop(each)
        batch.open.pop(str(approval), None)
        batch.open[key] = Call(key, "", now_s, None, now_s + _MCP_S)
        batch.acts = True

    def _mcp_ended(self, key: str) -> None:
        for batch in self._batches.values():
            if batch.open.pop(key, None) is not None:
                batch.answered.add(key)
                self._told.add(key)
                batch.asks = True

    def _note_item(self, item: Any, now_s: float) -> None:
        if not isinstance(item, dict):
            return
        kind = item.get("type")
        if kind == "function_call_output":
            self._told.add(key := str(item.get("call_id")))
            if self._listens:
                self._answered_by_page(key, clients_only=True)
        elif kind == "mcp_approval_response":
            self._told.add(key := str(item.get("approval_request_id")))
            if self._listens:
                self._approved(key, approve=item.get("approve") is True, now_s=now_s)
        elif kind == "mcp_call" and (approval := item.get("approval_request_id")) is not None:
            for batch in list(self._batches.values()):
                if str(approval) in batch.open:
                    self._mcp_began(item, batch, now_s)

    def _answered_by_page(self, key: str, *, clients_only: bool) -> Call | None:
        for batch in self._batches.values():
            call = batch.open.get(key)
            if call is not None and call.tool is not None and (call.tool.by == "client" or not clients_only):
                del batch.open[key]
                batch.answered.add(key)
                return call
        return None

    def _approved(self, key: str, *, approve: bool, now_s: float) -> bool:
        for batch in self._batches.values():
            call = batch.open.get(key)
            if call is None or call.tool is not None:
                continue
            if approve:  # Azure makes the call now, and tells of it
                call.deadline_s, call.name = now_s + _MCP_S, ""
            else:
                del batch.open[key]
                batch.answered.add(key)
                batch.asks = True
            return True
        return False

    # --- the client

    def _user_turn(self) -> None:
        self._rounds = self._owed = 0
        self._items += 1
        self._wants = deque(want for want in self._wants if want.reason != "greeting")

    def _client_output(self, call_id: str, event: Event, now_s: float) -> tuple[bool, list[Action]]:
        if (call := self._answered_by_page(call_id, clients_only=True)) is None:
            answered = any(key[1] == call_id for key in self._seen)
            code, why = ("call_answered", "has its output") if answered else ("unknown_call", "is not open here")
            return False, [Refuse(code, f"this call {why}: the output is dropped", _event_id(event))]
        self._owed += 1
        told = Tell(call.name, call_id, "done", (now_s - call.began_s) * 1000)
        return True, [told]

    def _client_approval(self, item: Event, event: Event, now_s: float) -> tuple[bool, list[Action]]:
        key = str(item.get("approval_request_id"))
        if not self._approved(key, approve=item.get("approve") is True, now_s=now_s):
            why = "no approval of this id is awaited: the answer is dropped"
            return False, [Refuse("unknown_approval", why, _event_id(event))]
        return True, []

    def _client_wish(self, event: dict[str, Any], now_s: float) -> tuple[bool, list[Action]]:
        """The client's own `response.create`: it goes on, waits, or is part of what the broker asks anyhow."""
        response = event.get("response")
        response = response if isinstance(response, dict) else {}
        outside = response.get("conversation") == "none"
        if self._owed and not outside:
            self._owed -= 1
            for batch in self._batches.values():
                if not batch.asked and not batch.cancelled:
                    batch.wish = response
                    break
            return False, []
        own = any(answer.reason not in {None, "client"} for answer in self._active.values())
        if self._create is not None and self._create.reason != "client":
            own = True
        if not own:
            if not self._active:
                self._create = _Create("client", _ids(event), now_s, self._items, self._answered())
            return True, []
        if not outside:
            self._wants = deque(want for want in self._wants if want.event is None or _is_outside(want.event))
        if len(self._wants) >= _WISHES_AT_MOST:
            return False, [Refuse(_ACTIVE, "too many answers are asked for at once", _event_id(event))]
        self._wants.append(_Want("client", response or None, event, self._items))
        return False, []

    def _refused(self, error: Any, now_s: float) -> list[Action]:
        """Azure refused something. What was refused since an answer is active is asked again after it."""
        if not isinstance(error, dict):
            return []
        code, event_id = error.get("code"), error.get("event_id")
        create = self._create
        if create is not None and (event_id in create.event_ids or (not create.event_ids and code == _ACTIVE)):
            self._create = None
        else:
            # Another answer was created first, and was taken for the one that is refused.
            taken = (each for each in self._active.values() if each.create and event_id in each.create.event_ids)
            if (answer := next(taken, None)) is None or answer.create is None:
                return []
            create, answer.create, answer.reason = answer.create, None, None
            answer.covers, answer.tools_off = frozenset(self._told), False
        if create.reason == "client" and not create.wants:
            return []  # the client's own, which hears of it
        if code != _ACTIVE or any(want.tries >= _TRIES for want in create.wants):
            for batch in create.batches:
                self._drop(batch)
            if create.reason == "say":
                return []
            return [Refuse("answer_failed", "Azure did not take the question: ask again", None, retryable=True)]
        if not self._active:
            self._blocked_s = now_s + _CREATED_S
        for batch in create.batches:
            batch.asked = False
        for want in reversed(create.wants):
            want.tries += 1
            self._wants.appendleft(want)
        return []


def _event_id(event: Event) -> str | None:
    event_id = event.get("event_id")
    return event_id if isinstance(event_id, str) else None


def _is_outside(event: Event) -> bool:
    response = event.get("response")
    return isinstance(response, dict) and response.get("conversation") == "none"


def _ids(event: Event) -> frozenset[str]:
    return frozenset(filter(None, [_event_id(event)]))
