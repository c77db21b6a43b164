"""The calls of a talk's answers, and what is still missing before the model can go on from them. Pure.

A key names what an output is due for: the id of a function call, of a request for approval, or of the item of a call
that Azure makes itself at an MCP server.
"""

import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from token_broker.relay.answers.actions import Action, Refuse, Run, Send, Tell, Tool
from token_broker.security.limits import BoundedDict

__all__ = ["OUTPUT_ID", "CallBatch", "OpenCalls"]

Event = Mapping[str, Any]

OUTPUT_ID = "broker_output_"
"""The prefix of the `event_id` of an output that the broker sends."""

_CALLS_AT_MOST = 8
_SAY_AFTER_S = 0.7
_APPROVAL_S = 60.0
_MCP_S = 120.0  # Azure has limits of its own
_SEEN = 512
_EVENT_ID_CHARS = 64

_TOO_MANY = f"This call was not made: one answer may make at most {_CALLS_AT_MOST} calls. Repeat it if it is needed."
_TOOLS_OFF = "This call was not made: no tool may be used in this answer."
_NO_ANSWER = "The user's device did not answer this call in time."
_UNKNOWN = "There is no tool of this name. The tools are: {names}."
_TAKEN_OUT = "this call has its output from somebody else, or too late: yours was taken out of the conversation"


@dataclass(slots=True)
class _OpenCall:
    """A call, an approval (`tool` is None) or a call of Azure's own (no `name` either).

    `output` waits for a session while none is there.
    """

    key: str
    name: str
    began_s: float
    tool: Tool | None = None
    deadline_s: float = math.inf
    output: str | None = None


@dataclass(slots=True)
class CallBatch:
    """What one answer called: the calls that are `open`, and the keys of those that are `answered`.

    `asks`: the model has to be asked to go on. `acts`: something of it is the broker's or Azure's to do, not the
    client's alone. `asked`: the model was asked, and its answer is not over. `wish` is the client's own
    `response.create`, merged into the broker's.
    """

    response_id: str
    silent: bool = False
    """Whether tools were off in that answer: then it asks for nothing."""
    open: dict[str, _OpenCall] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    functions: int = 0
    ended: bool = False
    cancelled: bool = False
    asks: bool = False
    acts: bool = False
    asked: bool = False
    said: bool = False
    wish: dict[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is over, and all outputs are there."""
        return self.ended and not self.open

    def answer(self, key: str) -> None:
        """Its output is there, or Azure has it."""
        del self.open[key]
        self.answered.add(key)


class OpenCalls:
    """One talk's. `azure_session` gives the id of Azure's session; `tools` are those that the model had for the answer
    that makes the call.

    `listens`: the client talks to Azure directly. Then the model is asked to go on only where the broker, or Azure
    itself, has done something, unless the broker `leads`: then it asks for that client too.

    `page_writes`: the client can write into the conversation past the broker, as every one that talks to Azure directly
    can. An output of its own to a call that is not its own, or that has one, is taken out: each call has one.
    """

    def __init__(
        self,
        azure_session: Callable[[], str],
        *,
        listens: bool = False,
        leads: Callable[[], bool] = lambda: False,
        page_writes: bool = False,
    ) -> None:
        self._azure_session = azure_session
        self._listens = listens
        self._page_writes = page_writes or listens
        self._leads = leads
        self._here = False
        self._batches: dict[str, CallBatch] = {}
        self._told = BoundedDict[str, None](_SEEN)  # keys whose outputs Azure has told of
        self._seen = BoundedDict[tuple[str, str], bool](_SEEN)  # calls by session and id: whether they are the client's
        self._outputs = BoundedDict[tuple[str, str], str](_SEEN)  # the item of a call's one output, where pages write
        self._taken_out = BoundedDict[str, None](_SEEN)  # items of other outputs
        self._names = BoundedDict[str, str](_SEEN)  # of calls under way, by item
        self._faults = BoundedDict[str, str](_SEEN)  # why calls are not made, by id

    def __iter__(self) -> Iterator[CallBatch]:
        return iter(list(self._batches.values()))

    @property
    def is_acting(self) -> bool:
        """Whether a call or an approval waits for its output: then Azure owes nothing."""
        return any(batch.open for batch in self)

    def answered(self) -> frozenset[str]:
        """The keys that have their outputs, and of which the model has not gone on yet."""
        return frozenset().union(*(batch.answered for batch in self))

    def told(self) -> frozenset[str]:
        """The keys of whose outputs Azure has told, so that any answer from now on goes on from them."""
        return frozenset(self._told)

    def ready(self) -> list[CallBatch]:
        """The batches from which the model is to be asked to go on. Forgets those that need nothing more."""
        for batch in self:
            is_ours = batch.acts or not self._listens or self._leads()
            if batch.is_complete and (batch.cancelled or not batch.asks or not is_ours):
                self.drop(batch)
        return [batch for batch in self if batch.is_complete and not batch.asked]

    def drop(self, batch: CallBatch) -> None:
        """Nothing more is to be done about it."""
        self._batches.pop(batch.response_id, None)

    def ask_again(self, batch: CallBatch) -> None:
        """The model was not asked after all, which may have been taken for answered."""
        batch.asked = False
        self._batches[batch.response_id] = batch

    def withholds(self, call_id: str) -> bool:
        """Whether the client does not get a call that would have been its own: it is not made."""
        return call_id in self._faults

    # --- time

    def times(self) -> list[float]:
        """When `expire` or `late` may have something to do."""
        times = [call.deadline_s for batch in self for call in batch.open.values()]
        return times + [
            call.began_s + _SAY_AFTER_S
            for batch in self
            for call in batch.open.values()
            if not batch.said and call.tool is not None and call.tool.say
        ]

    def is_late(self, now_s: float) -> bool:
        """Whether `late` has words for a call, whatever stands against saying them now."""
        return any(
            call.tool is not None and call.tool.say and call.began_s + _SAY_AFTER_S <= now_s
            for batch in self
            if not (batch.said or batch.cancelled or batch.silent)
            for call in batch.open.values()
        )

    def expire(self, now_s: float) -> list[Action]:
        """Gives the calls that have taken too long their outputs: that they were not answered."""
        done: list[Action] = []
        for batch in self:
            for call in [each for each in batch.open.values() if each.deadline_s <= now_s]:
                if call.tool is None and not self._here:
                    continue  # whoever joins again refuses it
                batch.acts = batch.asks = True
                call.deadline_s = math.inf
                if call.tool is not None:
                    call.output = _NO_ANSWER
                    done += self._give(batch, call)
                else:
                    batch.answer(call.key)
                    if not call.name:
                        continue
                    refusal = {"approval_request_id": call.key, "approve": False, "reason": "nobody answered in time"}
                    done.append(_item("mcp_approval_response", call.key, refusal))
                done.append(Tell(call.name, call.key, "failed", (now_s - call.began_s) * 1000))
        return done

    def late(self, now_s: float) -> str | None:
        """What to say to the user since a call takes long, once for all calls of an answer."""
        for batch in self:
            if batch.said or batch.cancelled or batch.silent or not batch.ended:
                continue
            for call in batch.open.values():
                if call.tool is not None and call.tool.say and call.began_s + _SAY_AFTER_S <= now_s:
                    batch.said = True
                    return call.tool.say
        return None

    # --- the session

    def begin(self) -> list[Action]:
        """A session is there, which knows the calls: gives it the outputs that have come meanwhile."""
        self._here = True
        done: list[Action] = []
        for batch in self:
            for call in [each for each in batch.open.values() if each.output is not None]:
                done += self._give(batch, call)
        self._told.clear()
        self._told.update(dict.fromkeys(self.answered()))
        return done

    def cut(self, *, lost: bool = True) -> None:
        """The session is gone, or only our way to it. Approvals and calls of Azure's own end with a session that is
        `lost`: then the model has to be asked again.
        """
        self._here = False
        self._told.clear()
        for batch in self:
            batch.ended = True
            for call in [each for each in batch.open.values() if lost and each.tool is None]:
                del batch.open[call.key]
                batch.asks = batch.acts = True

    # --- what Azure sends

    def add_output(self, event: Event, now_s: float, *, silent: bool) -> None:
        """An answer begins an output."""
        item, response_id = event.get("item"), str(event.get("response_id"))
        if not isinstance(item, dict):
            return
        kind = item.get("type")
        if kind == "function_call":
            self._names[str(item.get("id"))] = str(item.get("name"))
        elif kind == "mcp_call":
            self._begin_mcp(item, self._batch(response_id, silent=silent), now_s)
        elif kind == "message" and (batch := self._batches.get(response_id)) and not batch.functions:
            batch.asks = False  # Azure itself goes on from its calls at MCP servers

    def end_arguments(self, event: Event, tools: Mapping[str, Tool], *, silent: bool) -> None:
        """A call has all its arguments: judges it before a client can see them."""
        name = str(event.get("name") or self._names.get(str(event.get("item_id")), ""))
        batch = self._batches.get(str(event.get("response_id")))
        number = 1 if batch is None else batch.functions + 1
        fault = _fault(tools, name, str(event.get("arguments", "")), number, silent=silent)
        if fault is not None:
            self._faults[str(event.get("call_id"))] = fault

    def end_output(
        self, item: Any, response_id: str, now_s: float, tools: Mapping[str, Tool], *, silent: bool, outside: bool
    ) -> list[Action]:
        """An output of an answer is over. A call that is complete is made, unless it has been told before."""
        if not isinstance(item, dict):
            return []
        kind, key, name = item.get("type"), str(item.get("id")), str(item.get("name"))
        if kind == "mcp_call":
            self.end_mcp(key)
        elif kind == "mcp_approval_request":
            batch = self._batch(response_id, silent=silent)
            if key not in batch.answered:
                batch.open.setdefault(key, _OpenCall(key, name, now_s, None, now_s + _APPROVAL_S))
                batch.acts = True
        call_id, arguments = str(item.get("call_id")), item.get("arguments")
        identity = (self._azure_session(), call_id)
        is_call = kind == "function_call" and item.get("status", "completed") == "completed"
        if not is_call or outside or identity in self._seen:
            return []
        batch = self._batch(response_id, silent=silent)
        batch.functions += 1
        batch.asks = not batch.silent
        tool = tools.get(name)
        self._seen[identity] = tool is not None and tool.by == "client"
        call = batch.open[call_id] = _OpenCall(call_id, name, now_s, tool)
        arguments = arguments if isinstance(arguments, str) else ""
        fault = self._faults.get(call_id) or _fault(tools, name, arguments, batch.functions, silent=batch.silent)
        if tool is None or fault is not None:
            batch.acts = True
            call.output = self._faults[call_id] = fault or ""
            return [*self._give(batch, call), Tell(name, call_id, "failed", 0.0)]
        if tool.by == "client":
            call.deadline_s = now_s + tool.timeout_s
            return [Tell(name, call_id, "running")]
        batch.acts = True
        return [Tell(name, call_id, "running"), Run(tool, call_id, arguments, identity[0])]

    def end_answer(self, response_id: str, *, cancelled: bool) -> None:
        """An answer is over: after this no call of it is told."""
        if (batch := self._batches.get(response_id)) is not None:
            batch.ended = True
            batch.cancelled = cancelled

    def end_mcp(self, key: str) -> None:
        """A call of Azure's own is over."""
        for batch in self:
            if key in batch.open:
                batch.answer(key)
                batch.asks = True
                self._told[key] = None

    def note_item(self, item: Any, now_s: float) -> list[Action]:
        """The conversation has an item."""
        if not isinstance(item, dict):
            return []
        kind = item.get("type")
        if kind == "function_call_output":
            return self._note_output(str(item.get("call_id")), item.get("id"), now_s)
        if kind == "mcp_approval_response":
            self._told[key := str(item.get("approval_request_id"))] = None
            if self._listens:
                self.approved(key, approve=item.get("approve") is True, now_s=now_s)
        elif kind == "mcp_call":
            for batch in self:
                if str(item.get("approval_request_id")) in batch.open:
                    self._begin_mcp(item, batch, now_s)
        return []

    # --- outputs

    def output_ready(self, call_id: str, text: str, now_s: float, *, ok: bool) -> list[Action]:
        """The output of a call that was to be run. It is sent at once, whoever speaks."""
        for batch in self:
            call = batch.open.get(call_id)
            if call is not None and call.output is None:
                call.output = text
                told = Tell(call.name, call_id, "done" if ok else "failed", (now_s - call.began_s) * 1000)
                return [*self._give(batch, call), told]
        return []

    def answered_by_client(self, call_id: str, now_s: float) -> Tell | None:
        """The client answers a call that is its own; None: it has no such call open."""
        for batch in self:
            call = batch.open.get(call_id)
            if call is not None and call.output is None and call.tool is not None and call.tool.by == "client":
                batch.answer(call_id)
                return Tell(call.name, call_id, "done", (now_s - call.began_s) * 1000)
        return None

    def was_seen(self, call_id: str) -> bool:
        """Whether this talk had such a call."""
        return any(seen == call_id for _, seen in self._seen)

    def is_clients(self, call_id: str) -> bool:
        """Whether this talk had such a call, and left it to the client."""
        return any(seen == call_id and clients for (_, seen), clients in self._seen.items())

    def approved(self, key: str, *, approve: bool, now_s: float) -> bool:
        """Somebody decides about a call at an MCP server; False: nobody waits for that."""
        for batch in self:
            call = batch.open.get(key)
            if call is None or call.tool is not None or not call.name:
                continue
            if approve:  # Azure makes the call now, and tells of it
                call.deadline_s, call.name = now_s + _MCP_S, ""
            else:
                batch.answer(key)
                batch.asks = True
            return True
        return False

    # --- parts of the above

    def _note_output(self, key: str, item_id: object, now_s: float) -> list[Action]:
        """The conversation has an output of the call `key`. Azure may tell of each twice."""
        told = self.answered_by_client(key, now_s) if self._page_writes else None
        identity = (self._azure_session(), key)
        if self._page_writes and isinstance(item_id, str) and identity in self._seen:
            if self._seen[identity]:  # the first one of the client's
                self._outputs.setdefault(identity, item_id)
            if self._outputs.get(identity) != item_id:
                if item_id in self._taken_out:
                    return []
                self._taken_out[item_id] = None
                delete = {"type": "conversation.item.delete", "event_id": f"{OUTPUT_ID}taken_out", "item_id": item_id}
                return [Send(delete), Refuse("call_answered", _TAKEN_OUT)]
        if any(key in batch.open for batch in self):
            return []  # a page wrote it: the broker's own output is yet to come
        self._told[key] = None
        return [] if told is None else [told]

    def _batch(self, response_id: str, *, silent: bool) -> CallBatch:
        if (batch := self._batches.get(response_id)) is None:
            batch = self._batches[response_id] = CallBatch(response_id, silent)
        return batch

    def _give(self, batch: CallBatch, call: _OpenCall) -> list[Action]:
        """Sends an output, where a session is there to take it."""
        if not self._here:
            return []
        batch.answer(call.key)
        fields = {"call_id": call.key, "output": call.output or ""}
        if self._page_writes:  # an id that the page can't take before
            fields = {"id": f"broker{secrets.token_hex(12)}", **fields}
            self._outputs[self._azure_session(), call.key] = fields["id"]
        return [_item("function_call_output", call.key, fields)]

    def _begin_mcp(self, item: Event, batch: CallBatch, now_s: float) -> None:
        key, approval = str(item.get("id")), str(item.get("approval_request_id"))
        if any(key in each.open or key in each.answered for each in self):
            return
        for each in self:  # what was waited for is this call now
            if each.open.pop(approval, None) is not None and each is not batch:
                each.asks = each.asks or each.functions > 0
        batch.open[key] = _OpenCall(key, "", now_s, None, now_s + _MCP_S)
        batch.acts = True


def _fault(tools: Mapping[str, Tool], name: str, arguments: str, number: int, *, silent: bool) -> str | None:
    """Why a call is not made; None: it is. `number`: which call of its answer it is."""
    tool = tools.get(name)
    if silent:
        return _TOOLS_OFF
    if number > _CALLS_AT_MOST:
        return _TOO_MANY
    if tool is None:
        return _UNKNOWN.format(names=", ".join(sorted(tools)) or "none")
    return tool.fault(arguments)


def _item(kind: str, key: str, fields: Mapping[str, Any]) -> Send:
    event_id = f"{OUTPUT_ID}{key}"[:_EVENT_ID_CHARS]
    return Send({"type": "conversation.item.create", "event_id": event_id, "item": {"type": kind, **fields}})
