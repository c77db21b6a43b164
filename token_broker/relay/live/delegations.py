"""Work that GPT-Live delegates: functions that its Responses backend calls, and tasks that it hands to us.

A backend's call gets its output as an item, and the backend goes on once all outputs of an answer are there. A task for
us has no text (docs/azure.md §12.3): what the user has said since the last one goes to the agent's one tool that takes
a text, and its output is told to GPT-Live, which says it in its own words.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from token_broker.relay.answers.actions import Run, Tell, Tool
from token_broker.relay.answers.agent_calls import AgentCalls
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.event_text import compact
from token_broker.security.limits import BoundedDict
from token_broker.sessions.agent import Agent
from token_broker.sessions.agent_tools import delegate_of

__all__ = ["Delegations", "context_appends", "greeting_appends"]

_CALLS_AT_MOST = 8  # of one answer
_ROUNDS_AT_MOST = 5  # without a word of the user's
_CONTEXT_CHARS = 1_500  # GPT-Live takes 500 tokens at once
_CONTEXTS_AT_MOST = 12
_KEPT = 256
_NOBODY = "Nobody can do this here. Say so in one short sentence, and go on."
_TOO_MANY = "Too many functions were called at once: answer with what you have."
_ENOUGH = "No more functions can be called for now: answer with what you have."
_UNANSWERED = "The page has not answered in time. Say so briefly, and go on."


@dataclass(slots=True)
class _Answering:
    """One answer of the backend: its calls without an output yet, and whether it has ended."""

    calls: int = 0
    waiting: set[str] = field(default_factory=set)
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class _ClientCall:
    """A call that the client answers, as it is told of it."""

    answer: _Answering
    event: Mapping[str, Any]


def greeting_appends(greeting: str) -> list[dict[str, Any]]:
    """Events that have the agent speak first."""
    text = f"The conversation begins, and you speak first. Say this now, then let the user speak: {greeting}"
    return context_appends("instructions", text, None, name="greeting")


def context_appends(kind: str, text: str, delegation_id: str | None, *, name: str) -> list[dict[str, Any]]:
    """Events that tell GPT-Live a text, in pieces that it takes. `name` begins their ids."""
    pieces = [text[at : at + _CONTEXT_CHARS] for at in range(0, len(text), _CONTEXT_CHARS)][:_CONTEXTS_AT_MOST]
    return [
        {
            "type": f"session.{kind}.append",
            "event_id": f"{OWN_EVENT_IDS}{name}_{number}",
            "delegation_id": delegation_id,
            "content": piece,
        }
        for number, piece in enumerate(pieces)
    ]


class Delegations:
    """One talk's. `send` gives Azure an event; `tell` says what becomes of a call; `words` are the user's latest.

    `typed` keeps what the user has typed, by the client's own id of it where there is one.
    """

    def __init__(
        self,
        agent: Agent,
        calls: AgentCalls,
        *,
        send: Callable[[Mapping[str, Any]], None],
        tell: Callable[[Tell], None],
        words: Callable[[], str],
        typed: Callable[[str, str | None], None],
        start: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._agent = agent
        self._calls = calls
        self._send = send
        self._tell = tell
        self._words = words
        self._keep_typed = typed
        self._start = start
        self._session = ""
        self._delegate = delegate_of(agent.tools)
        self._answers = BoundedDict[str, _Answering](_KEPT)
        self._current = BoundedDict[str, str](_KEPT)  # the answer under way, by delegation
        self._of_client = BoundedDict[str, _ClientCall](_KEPT)  # calls without an output yet
        self._tasks_of_client = BoundedDict[str, None](_KEPT)
        self._seen = BoundedDict[str, None](_KEPT)
        self._hidden_items = BoundedDict[str, None](_KEPT)
        self._rounds = 0
        self._running = 0
        self._typed = False

    @property
    def is_acting(self) -> bool:
        """Whether a tool runs."""
        return self._running > 0

    @property
    def calls_of_client(self) -> list[Mapping[str, Any]]:
        """Azure's events about the calls that the client has not answered yet."""
        return [call.event for call in self._of_client.values()]

    def begin(self, session_id: str) -> None:
        """Another session of Azure's: it knows nothing of what was open."""
        self._session = session_id
        self._answers.clear()
        self._current.clear()
        self._of_client.clear()
        self._tasks_of_client.clear()

    def user_spoke(self) -> None:
        """The user goes on: functions may be called anew."""
        self._rounds = 0

    # --- what Azure sends

    def created(self, event: Mapping[str, Any]) -> bool:
        """Takes a `session.delegation.created`. True: its task is the client's."""
        delegation = event.get("delegation")
        if not isinstance(delegation, dict) or delegation.get("target") != "client":
            return False
        delegation_id = delegation.get("id")
        if not isinstance(delegation_id, str) or delegation_id in self._seen:
            return False
        self._seen[delegation_id] = None
        if self._delegate is not None:
            name, argument = self._delegate
            self._start(self._run_task(delegation_id, name, argument, self._words()), "live-task")
            return False
        if any(tool.by == "client" for tool in self._calls.tools().values()):
            self._tasks_of_client[delegation_id] = None
            return True
        self._tell_result(delegation_id, _NOBODY)
        return False

    def backend_sent(self, event: Mapping[str, Any]) -> bool:
        """Takes a `response.event`. True: it is nothing of the broker's own, and its client may see it."""
        nested = event.get("event")
        if not isinstance(nested, dict):
            return False
        kind, delegation_id = nested.get("type"), str(event.get("delegation_id"))
        response, item = nested.get("response"), nested.get("item")
        if kind == "response.created" and isinstance(response, dict):
            self._current[delegation_id] = str(response.get("id"))
        answer_id = self._current.get(delegation_id, delegation_id)
        if kind == "response.output_item.done" and isinstance(item, dict) and item.get("type") == "function_call":
            return self._called(item, answer_id, event)
        if kind in {"response.completed", "response.failed", "response.incomplete"}:
            answer = self._answers.get(answer_id)
            if answer is not None:
                answer.has_ended = True
                self._go_on(answer)
        if isinstance(item, dict) and item.get("type") != "message":
            tool = self._calls.tools().get(str(item.get("name")))
            is_clients = item.get("type") == "function_call" and tool is not None and tool.by == "client"
            if not is_clients and isinstance(item.get("id"), str):
                self._hidden_items[item["id"]] = None
            return is_clients
        return nested.get("item_id") not in self._hidden_items

    # --- what the client sends

    def takes_output(self, call_id: object) -> bool:
        """The client's output of a call; False where no such call is open for it."""
        call = self._of_client.pop(call_id, None) if isinstance(call_id, str) else None
        if call is None:
            return False
        assert isinstance(call_id, str)  # noqa: S101  # it was a key
        call.answer.waiting.discard(call_id)
        # After the output, which the caller sends.
        asyncio.get_running_loop().call_soon(self._go_on, call.answer)
        return True

    def takes_context(self, delegation_id: object) -> bool:
        """Whether the client may tell something about this task: only about one that is left to it."""
        return isinstance(delegation_id, str) and delegation_id in self._tasks_of_client

    def typed(self, text: str, item_id: str | None) -> None:
        """The user typed something."""
        self._rounds = 0
        self._typed = True
        self._keep_typed(text, item_id)

    def takes_create(self) -> bool:
        """Whether the client's `response.create` asks about what was typed."""
        typed, self._typed = self._typed, False
        return typed

    # --- inside

    def _called(self, item: Mapping[str, Any], answer_id: str, event: Mapping[str, Any]) -> bool:
        """A whole call. True: the client answers it."""
        call_id, name, arguments = item.get("call_id"), str(item.get("name")), item.get("arguments")
        if not isinstance(call_id, str) or f"{self._session} {call_id}" in self._seen:
            return False
        if item.get("status", "completed") != "completed":
            return False
        self._seen[f"{self._session} {call_id}"] = None
        if (answer := self._answers.get(answer_id)) is None:
            answer = self._answers[answer_id] = _Answering()
        answer.calls += 1
        answer.waiting.add(call_id)
        arguments = arguments if isinstance(arguments, str) else ""
        tool = self._calls.tools().get(name)
        refusal = _TOO_MANY if answer.calls > _CALLS_AT_MOST else _ENOUGH if self._rounds >= _ROUNDS_AT_MOST else ""
        if tool is None and not refusal:
            refusal = f"There is no such function; there are {', '.join(self._calls.tools()) or 'none'}."
        if refusal or tool is None:
            self._output(answer, call_id, refusal)
            return False
        if tool.by == "client":
            if (fault := tool.fault(arguments)) is not None:
                self._output(answer, call_id, fault)
                return False
            self._of_client[call_id] = _ClientCall(answer, event)
            self._start(self._await_client(call_id, tool.timeout_s), "live-client-call")
            return True
        self._start(self._run_call(answer, Run(tool, call_id, arguments, self._session)), "live-call")
        return False

    async def _run_call(self, answer: _Answering, run: Run) -> None:
        self._output(answer, run.call_id, await self._run(run))

    async def _run_task(self, delegation_id: str, name: str, argument: str, words: str) -> None:
        tool = self._calls.tools()[name]
        run = Run(tool, delegation_id, compact({argument: words}), self._session)
        self._tell_result(delegation_id, await self._run(run))

    async def _run(self, run: Run) -> str:
        tool: Tool = run.tool
        began_s = time.monotonic()
        self._running += 1
        self._tell(Tell(tool.name, run.call_id, "running"))
        try:
            output = await self._calls.run(run)
        finally:
            self._running -= 1
        took_ms = (time.monotonic() - began_s) * 1000
        self._tell(Tell(tool.name, run.call_id, "done" if output.ok else "failed", took_ms))
        return output.text

    async def _await_client(self, call_id: str, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)
        call = self._of_client.pop(call_id, None)
        if call is not None:
            self._output(call.answer, call_id, _UNANSWERED)

    def _output(self, answer: _Answering, call_id: str, text: str) -> None:
        item = {"type": "function_call_output", "call_id": call_id, "output": text}
        self._send({"type": "response.item.create", "event_id": f"{OWN_EVENT_IDS}output_{call_id}"[:512], "item": item})
        answer.waiting.discard(call_id)
        self._go_on(answer)

    def _go_on(self, answer: _Answering) -> None:
        """Has the backend go on, once: the answer has ended, and every call of it has its output."""
        if answer.calls and answer.has_ended and not answer.waiting:
            answer.calls = 0
            self._rounds += 1
            self._send({"type": "response.create", "event_id": f"{OWN_EVENT_IDS}go_on_{self._rounds}"})

    def _tell_result(self, delegation_id: str, text: str) -> None:
        for event in context_appends("commentary", text, delegation_id, name=f"result_{delegation_id[:64]}"):
            self._send(event)
