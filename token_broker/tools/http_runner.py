"""Runs the calls of an agent's tools: one signed POST a call, or a search of the memory.

A call is claimed in the store before it is posted, so that it is made once across reconnects and replicas. It is
repeated freely while nothing of it was sent; afterwards only where its tool is `idempotent`. Whatever goes wrong, the
model is told so in one of a few sentences: an agent that hears nothing falls silent.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

import structlog
from pydantic_core import to_json

from token_broker.hooks.sender import HookAnswer, HookFailure, HookSender
from token_broker.memory.context import MAX_BLOCK_BYTES, fitting_lines
from token_broker.memory.store_errors import StoreError
from token_broker.memory.tool_claims import CallId, ClaimedCall
from token_broker.memory.types import Remembered, replace_unstorable
from token_broker.observability.events import Observer, ToolOutcome, ToolRan, null_observer
from token_broker.security.tokens import Owner
from token_broker.sessions.agent import Agent
from token_broker.sessions.agent_tools import BUILTIN_PARAMETERS, FunctionTool, HttpRun, compiled_schema
from token_broker.tools.arguments import bound_arguments, checked_arguments, faults_in
from token_broker.tools.runner import ToolCall, ToolOutput

__all__ = ["Claims", "HttpToolRunner", "SearchesMemory", "call_webhook_id"]

log = structlog.get_logger(__name__)

_PER_TALK = 8  # as many as one answer may call
_PER_PROCESS = 128  # half the connections: the guardrail never waits behind tools
_ATTEMPTS = 3
_PAUSES_S = (0.1, 0.4)  # before the second attempt, and before the third
_POLL_S = 0.2  # for the output of a call that another replica makes
_NOTE_S = 10.0
_NOTE_AFTER_S = 0.02  # the output goes to the talk first: a thread of the store's takes time from the event loop
_CLOSE_S = 3.0
_RECALLED = 5
_FRAME_BYTES = 64  # of each: its speaker, its day, and the marks of JSON
_PASSING = frozenset({408, 425, 429})  # the other 4xx are final

_REASONS: Mapping[HookFailure, tuple[ToolOutcome, str]] = {
    "refused": ("unreachable", "The tool's address may not be called. Nothing was done."),
    "unreachable": ("unreachable", "The tool can't be reached now. Nothing was done."),
    "redirect": ("error", "The tool answered with a redirect, which is not followed. Nothing is known of a result."),
    "too_large": ("too_large", "The tool ran, but its answer is too large to be read."),
    "timeout": ("timeout", "The tool did not answer in time."),
    "broken": ("error", "The connection to the tool broke off before its answer was complete."),
}
_UNKNOWN = "It is unknown whether it took effect: say so, and don't call it again unless the user asks for it."
_UNSENT = "The tool can't be reached in time now. Nothing was done."
_NO_STORE = "The tool can't be run now, since the call can't be recorded. Nothing was done."
_BUSY = "Too many tools are running. Nothing was done; it may be called again later."
_NOT_OURS = "Nothing runs this tool. Nothing was done."
_ERASED = "This session was erased. Nothing was done."
_NO_MEMORY = "Nothing is remembered here."
_DONE = "Done."


class Claims(Protocol):
    """`ToolClaims`, as far as it is needed here. Every method raises StoreError."""

    async def claim(self, call: CallId, *, timeout_s: float) -> str | ClaimedCall: ...
    async def find(self, call: CallId) -> ClaimedCall: ...
    async def take_over(self, call: CallId, *, timeout_s: float) -> str | None: ...
    async def finish(self, call: CallId, holder: str, output: str | None, *, ok: bool) -> None: ...


class SearchesMemory(Protocol):
    """The part of the memory that the built-in tool `recall` asks."""

    async def search(self, owner: Owner, query: str, *, limit: int = 5) -> Sequence[Remembered]:
        """What the owner's turns say about `query`, best first. Never raises, and bounds itself."""
        ...


@dataclass(slots=True)
class _Running:
    """A call under way in this process, and how many wait for it: it is cancelled with the last."""

    task: "asyncio.Task[ToolOutput]"
    waiting: int = 0


@dataclass(slots=True)
class _TalkPlaces:
    """How many calls of a talk run, and who waits for a place."""

    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PER_TALK))
    calls: int = 0


@dataclass(frozen=True, slots=True)
class _Result:
    """An output, with what metrics and log call it. `known` False: nobody knows what the call did."""

    outcome: ToolOutcome
    text: str
    known: bool = True

    @property
    def ok(self) -> bool:
        return self.outcome in {"done", "repeated"}


class HttpToolRunner:
    """See `ToolRunner`. Without `sender` no agent has an HTTP tool; without `claims` none is run.

    `store_timeout_s` bounds each claim.
    """

    def __init__(
        self,
        sender: HookSender | None,
        claims: Claims | None,
        memory: SearchesMemory | None,
        *,
        store_timeout_s: float = 5.0,
        observe: Observer = null_observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sender = sender
        self._claims = claims
        self._memory = memory
        self._store_timeout_s = store_timeout_s
        self._observe = observe
        self._clock = clock
        self._running: dict[CallId, _Running] = {}
        self._tasks: set[asyncio.Task[ToolOutput]] = set()  # those that are being cancelled, too
        self._talks: dict[str, _TalkPlaces] = {}
        self._places = asyncio.Semaphore(_PER_PROCESS)
        self._notes: set[asyncio.Task[None]] = set()
        self._recall_parameters = compiled_schema(BUILTIN_PARAMETERS["recall"][1])

    async def run(self, call: ToolCall) -> ToolOutput:
        """See `ToolRunner`. A call that is told twice here is made once, and both get its output."""
        call_id = CallId(call.owner.session_id, call.talk_id, call.azure_session, call.call_id)
        running = self._running.get(call_id)
        if running is None:
            running = self._running[call_id] = _Running(asyncio.create_task(self._measured(call, call_id)))
            self._tasks.add(running.task)
            running.task.add_done_callback(self._tasks.discard)
        running.waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            if not running.waiting:
                # Who is told of the call from now on asks the store: a task that is being cancelled has no output.
                self._running.pop(call_id, None)
                running.task.cancel()

    async def aclose(self) -> None:
        """Ends the calls under way: what came of them is noted as unknown, as far as the store takes it in time."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=_CLOSE_S)
        if self._notes:
            await asyncio.wait(tuple(self._notes), timeout=_CLOSE_S)
        for note in tuple(self._notes):
            note.cancel()

    async def _measured(self, call: ToolCall, call_id: CallId) -> ToolOutput:
        began_s = self._clock()
        tool = _functions(call.agent).get(call.name)
        is_known = tool is not None or call.name in call.agent.builtin_tools
        outcome: ToolOutcome = "cancelled"
        try:
            result = await (self._recall(call) if tool is None else self._function(tool, call, call_id))
            outcome = result.outcome
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # a fault of ours must not leave the talk silent
            log.error(
                "tool_broke", agent_id=call.agent.id, tool=call.name if is_known else "?", error=type(error).__name__
            )
            result, outcome = _Result("error", f"The tool failed. {_UNKNOWN}", known=False), "error"
        finally:
            duration_s = self._clock() - began_s
            name = call.name if is_known else "unknown"
            self._observe(ToolRan(call.agent.id, name, outcome, duration_s))
            log.info(
                "tool_ran",
                session_id=call.owner.session_id,
                agent_id=call.agent.id,
                tool=name,
                call_id=call.call_id[:64],
                outcome=outcome,
                duration_ms=round(duration_s * 1000, 1),
            )
        return ToolOutput(result.text, result.ok, round(duration_s * 1000, 1))

    async def _recall(self, call: ToolCall) -> _Result:
        """The built-in tool `recall`; every other name is one that this agent does not have."""
        if call.name != "recall" or call.name not in call.agent.builtin_tools:
            names = [*_functions(call.agent), *call.agent.builtin_tools]
            there_are = f"The tools are: {', '.join(names)}." if names else "There are no tools."
            return _Result("no_tool", f"There is no such tool. {there_are} Nothing was called.")
        asked = faults_in(self._recall_parameters, call.arguments)
        if isinstance(asked, str):
            return _Result("wrong_arguments", asked)
        if self._memory is None:
            return _Result("error", _NO_MEMORY)
        found = await self._memory.search(call.owner, asked["query"], limit=_RECALLED)
        texts = fitting_lines([each.text for each in found], MAX_BLOCK_BYTES - _RECALLED * _FRAME_BYTES)
        remembered = [
            {"said_by": each.role, "when": each.when.date().isoformat(), "text": text}
            for each, text in zip(found, texts, strict=False)
        ]
        while len(to_json(remembered)) > MAX_BLOCK_BYTES - _FRAME_BYTES:  # quotation marks take two bytes in JSON
            remembered.pop()
        return _Result("done", to_json({"found": remembered}).decode())

    async def _function(self, tool: FunctionTool, call: ToolCall, call_id: CallId) -> _Result:
        if not isinstance(tool.run, HttpRun) or self._sender is None:
            return _Result("no_tool", _NOT_OURS)
        arguments = checked_arguments(tool, call.arguments)
        if isinstance(arguments, str):
            return _Result("wrong_arguments", arguments)
        payload = to_json(
            {
                "type": "tool.call",
                "tool": tool.name,
                "arguments": bound_arguments(tool, arguments, call.owner),
                "call_id": call.call_id,
                "session_id": call.owner.session_id,
                "agent_id": call.agent.id,
                "principal": call.owner.principal,
                "user_id": call.owner.user_id,
            }
        )
        until_s = self._clock() + tool.run.timeout_s
        try:
            async with self._place(call.talk_id, tool.run.timeout_s):
                return await self._once(tool.run, payload, call_id, until_s)
        except _BusyError:
            return _Result("busy", _BUSY)

    @contextlib.asynccontextmanager
    async def _place(self, talk_id: str, timeout_s: float) -> AsyncIterator[None]:
        """A place among the calls of its talk, and among those of the process. Raises _BusyError when it is late."""
        talk = self._talks.setdefault(talk_id, _TalkPlaces())
        talk.calls += 1
        try:
            async with contextlib.AsyncExitStack() as places:
                try:
                    async with asyncio.timeout(timeout_s):
                        await places.enter_async_context(talk.places)
                        await places.enter_async_context(self._places)
                except TimeoutError:
                    raise _BusyError from None
                yield
        finally:
            talk.calls -= 1
            if not talk.calls:
                self._talks.pop(talk_id, None)

    async def _once(self, run: HttpRun, payload: bytes, call_id: CallId, until_s: float) -> _Result:
        """Makes the call if it is ours to make; else what came of it."""
        claims = self._claims
        if claims is None:
            return _Result("no_store", _NO_STORE)
        left_s = max(0.0, until_s - self._clock())
        try:
            async with asyncio.timeout(min(self._store_timeout_s, left_s)):
                claimed = await claims.claim(call_id, timeout_s=run.timeout_s)
        except (StoreError, TimeoutError):
            return _Result("no_store", _NO_STORE)
        if isinstance(claimed, str):
            return await self._claimed(run, payload, call_id, claimed, until_s)
        found = claimed
        while found.state == "running" and self._clock() < until_s:  # another process makes the call
            await asyncio.sleep(_POLL_S)
            # Whoever makes the call may reach the store when we can't.
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(self._store_timeout_s):
                    found = await claims.find(call_id)
        if found.state == "done":
            return _Result("repeated" if found.ok else "error", found.output or _DONE)
        if found.state == "erased":
            return _Result("no_store", _ERASED)
        if run.idempotent and found.state == "unknown":
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(self._store_timeout_s):
                    holder = await claims.take_over(call_id, timeout_s=run.timeout_s)
                if holder is not None:
                    return await self._claimed(run, payload, call_id, holder, self._clock() + run.timeout_s)
        return _Result("unknown", f"The tool was called before. {_UNKNOWN}", known=False)

    async def _claimed(self, run: HttpRun, payload: bytes, call_id: CallId, holder: str, until_s: float) -> _Result:
        """Posts a call that is ours, and notes what came of it beside the answer: a talk doesn't wait for the note."""
        assert self._sender is not None  # noqa: S101  # `_function` has looked
        answer = HookAnswer(failure="timeout")  # where no time was left
        result = _Result("cancelled", "", known=False)
        try:
            for attempt in range(_ATTEMPTS):
                if (left_s := until_s - self._clock()) <= 0:
                    break
                answer = await self._sender.post(
                    run.url,
                    payload,
                    webhook_id=call_webhook_id(call_id),
                    timeout_s=left_s,
                    max_bytes=run.max_output_bytes,
                    headers=run.headers,
                )
                wait_s = pause_before_repeating(answer, run, attempt)
                if wait_s is None or self._clock() + wait_s >= until_s:
                    break
                await asyncio.sleep(wait_s)
            result = result_of(answer, run)
        finally:
            self._note(call_id, holder, result)
        return result

    def _note(self, call_id: CallId, holder: str, result: _Result) -> None:
        async def note(claims: Claims) -> None:
            await asyncio.sleep(_NOTE_AFTER_S)
            try:
                async with asyncio.timeout(_NOTE_S):
                    await claims.finish(call_id, holder, result.text if result.known else None, ok=result.ok)
            except (StoreError, TimeoutError) as error:
                # The claim runs out by itself: whoever is told of the call then knows that its outcome is unknown.
                log.warning("tool_output_not_noted", session_id=call_id.session_id, error=type(error).__name__)

        if self._claims is not None:
            task = asyncio.create_task(note(self._claims))
            self._notes.add(task)
            task.add_done_callback(self._notes.discard)


class _BusyError(Exception):
    """No place was free in time."""


def pause_before_repeating(answer: HookAnswer, run: HttpRun, attempt: int) -> float | None:
    """How long to wait before the next attempt; None where this was the last. `attempt` counts from 0."""
    if answer.ok or attempt + 1 >= _ATTEMPTS or answer.failure in {"refused", "redirect", "too_large"}:
        return None
    pause_s = _PAUSES_S[attempt]
    if not answer.sent:
        return pause_s
    if not run.idempotent or answer.failure == "timeout":
        return None
    if answer.failure is None and answer.status in range(400, 500) and answer.status not in _PASSING:
        return None
    return max(pause_s, answer.retry_after_s or 0.0)


def result_of(answer: HookAnswer, run: HttpRun) -> _Result:
    """What the model is told of the last answer."""
    if answer.ok:
        text = replace_unstorable(answer.body)
        return _Result("done", text if text.strip() else _DONE)
    if answer.failure is not None:
        outcome, text = _REASONS[answer.failure]
        if not answer.sent:
            return _Result(outcome, _UNSENT if answer.failure == "timeout" else text)
        if answer.failure in {"timeout", "broken"} and not run.idempotent:
            return _Result("unknown", f"{text} {_UNKNOWN}")
        return _Result(outcome, text)
    failed = answer.status is None or answer.status >= 500  # noqa: PLR2004
    if failed and not run.idempotent:
        return _Result("error", f"The tool failed (HTTP {answer.status}). {_UNKNOWN}")
    return _Result("error", f"The tool {'failed' if failed else 'refused the call'} (HTTP {answer.status}).")


def call_webhook_id(call: CallId) -> str:
    """The id of a call's hook: the same in every repetition, and for no other call."""
    digest = sha256()
    for part in (call.talk_id, call.azure_session, call.call_id):
        digest.update(f"{len(part)}:{part}".encode())
    return f"call_{digest.hexdigest()[:32]}"


def _functions(agent: Agent) -> dict[str, FunctionTool]:
    tools: Iterable[object] = agent.tools
    return {tool.name: tool for tool in tools if isinstance(tool, FunctionTool)}
