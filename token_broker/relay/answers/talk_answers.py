"""Does what the sequencer decides: sends events, runs calls, tells the client."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from strategies.session_model.agent_settings import Dialect
from token_broker.relay.answers.actions import Action, Reason, Refuse, Run, Send, Tell
from token_broker.relay.answers.sequencer import AnswerSequencer
from token_broker.tools.runner import ToolOutput

__all__ = ["AnswerHooks", "TalkAnswers"]


class Runs(Protocol):
    """Runs one call. It raises nothing but CancelledError, and ends within a bound of its own."""

    async def __call__(self, call: Run) -> ToolOutput: ...


@dataclass(frozen=True, slots=True)
class AnswerHooks:
    """What a talk does for its answers.

    `tell` tells the client of a call, `refuse` of something that was dropped. `run` runs a call. `start` runs a
    coroutine as one of the talk's tasks.
    """

    tell: Callable[[Tell], None]
    refuse: Callable[[Refuse], None]
    run: Runs
    start: Callable[[Coroutine[Any, Any, None], str], None]


class TalkAnswers:
    """One talk's. `aclose` stops its timer; the calls that run are tasks of the talk."""

    def __init__(self, sequencer: AnswerSequencer, hooks: AnswerHooks) -> None:
        self.sequencer = sequencer
        self._hooks = hooks
        self._send: Callable[[Mapping[str, Any]], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._once_answered: Callable[[], None] | None = None
        self._closed = False

    def once_answered(self, do: Callable[[], None]) -> None:
        """Calls `do` when every call has its output, that of the call under way too. The latest one counts."""
        self._once_answered = do

    def want(self, reason: Reason, response: dict[str, Any] | None = None) -> None:
        """Asks for an answer as soon as nobody speaks."""
        self._perform(self.sequencer.want(reason, response, self._loop.time()))

    def azure_sent(self, event: Mapping[str, Any]) -> None:
        """Takes a parsed event of Azure's."""
        self._perform(self.sequencer.azure_sent(event, self._loop.time()))

    def admits(self, kind: str, event: Mapping[str, Any]) -> bool:
        """Whether an event of the client's goes to Azure. `tick` has to follow, once it has been sent."""
        passes, actions = self.sequencer.client_sent(kind, event, self._loop.time())
        self._perform(actions)
        return passes

    def begin(
        self, dialect: Dialect, send: Callable[[Mapping[str, Any]], None], *, asked: frozenset[str] = frozenset()
    ) -> None:
        """A session carries the talk, to which `send` gives an event.

        `asked` are the ids of the `response.create` that it was sent for what the one before still owed.
        """
        self._send = send
        self._perform(self.sequencer.begin(dialect, self._loop.time(), asked=asked))

    def cut(self, *, lost: bool = True) -> None:
        """The session is gone; where it is not `lost`, only our way to it."""
        self._send = None
        self.sequencer.cut(lost=lost)

    def tick(self) -> None:
        """Does what is due."""
        self._perform(self.sequencer.tick(self._loop.time()))

    def aclose(self) -> None:
        """The talk is over: what Azure still tells changes nothing any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self) -> None:
        self._timer = None
        self.tick()

    def _perform(self, actions: list[Action]) -> None:
        if self._closed:
            return

        async def run(call: Run) -> None:
            output = await self._hooks.run(call)
            self._perform(self.sequencer.output_ready(call.call_id, output.text, self._loop.time(), ok=output.ok))

        for action in actions:
            match action:
                case Send(event=event):
                    assert self._send is not None  # noqa: S101  # nothing is sent after `cut`
                    self._send(event)
                case Run():
                    self._hooks.start(run(action), "talk-tool")
                case Tell():
                    self._hooks.tell(action)
                case Refuse():
                    self._hooks.refuse(action)
        if self._once_answered is not None and not self.sequencer.calls.is_acting:
            do, self._once_answered = self._once_answered, None
            do()
        now_s = self._loop.time()
        due_s = self.sequencer.due_s(now_s)
        if self._timer is not None:
            if self._timer.when() == due_s:
                return
            self._timer.cancel()
            self._timer = None
        if due_s < math.inf:
            self._timer = self._loop.call_at(due_s, self._wake)
