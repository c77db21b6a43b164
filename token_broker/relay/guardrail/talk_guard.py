"""Does what the checks of a talk's words decide: asks the hook, sends events, wants answers."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from token_broker.relay.event_text import compact
from token_broker.relay.guardrail.held import AnswerWish, held_changes
from token_broker.relay.guardrail.word_checks import (
    AskHook,
    DropEvent,
    DropTurn,
    ForwardEvent,
    GuardAction,
    KeepTurn,
    SendEvent,
    WantAnswer,
    WordChecks,
)
from token_broker.security.tokens import Owner
from token_broker.sessions.agents import Agent
from token_broker.tools.guardrail import GuardrailClient, WordSource
from token_broker.tools.verdict import Verdict

__all__ = ["GuardHooks", "NoHook", "TalkGuard"]

log = structlog.get_logger("token_broker.relay")

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GuardHooks:
    """What a talk does for its guardrail.

    `send` sends an event of the broker's, `forward` one of the client's that has waited. `want` asks for an answer,
    with these fields of a `response.create`. `keep` and `drop` decide on a turn, `refuse` tells the client of what was
    dropped. `instructions` are the agent's now. `settled` follows whatever was done: an answer may be possible now.
    """

    send: Callable[[Event], None]
    forward: Callable[[Event], None]
    want: Callable[[dict[str, Any] | None], None]
    keep: Callable[[Event], None]
    drop: Callable[[str], None]
    refuse: Callable[[DropEvent], None]
    instructions: Callable[[], str]
    settled: Callable[[], None]
    start: Callable[[Coroutine[Any, Any, None], str], None]


class NoHook:
    """Where no hook was set up: each check fails, as the agent has it for that."""

    async def check(self, agent: Agent, owner: Owner, text: str, source: WordSource) -> Verdict:
        del owner, text, source
        closed = agent.guardrail is not None and agent.guardrail.fail == "closed"
        return Verdict("refuse" if closed else "allow", failed=True)


class TalkGuard:
    """One talk's. While its agent has no guardrail, everything passes."""

    def __init__(self, hook: GuardrailClient, owner: Owner, agent: Agent, hooks: GuardHooks) -> None:
        self._hook = hook
        self._owner = owner
        self._hooks = hooks
        self._agent = agent
        self._checks = WordChecks()
        self._wish = AnswerWish()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self.follow(agent)

    @property
    def is_on(self) -> bool:
        """Whether words are checked: the agent has a guardrail, and the talk goes on."""
        return self._agent.guardrail is not None and not self._is_over

    @property
    def is_checking(self) -> bool:
        """Whether no answer may be asked for, since words wait for their verdict."""
        return self._checks.is_checking

    def follow(self, agent: Agent) -> None:
        """Has that agent's words checked from now on."""
        was_on, self._agent = self.is_on, agent
        self._wish.begin(agent.turn_detection)
        self._checks.by_itself = self._wish.by_itself
        if (guardrail := agent.guardrail) is not None:
            self._checks.fails_open = guardrail.fail == "open"
            self._checks.hook_s = guardrail.timeout_ms / 1000
        elif was_on:
            self._perform(self._checks.release())

    def for_azure(self, event: Event, message: str) -> str:
        """A client's `session.update`, which is `message`, for a session that never answers by itself."""
        session = event.get("session")
        if not isinstance(session, dict):
            return message
        self._wish.note(session)
        self._checks.by_itself = self._wish.by_itself
        return compact({**event, "session": held_changes(session)}) if self.is_on else message

    def for_client(self, event: dict[str, Any]) -> dict[str, Any]:
        """One of Azure's events that show the session, with the client's own wish in it."""
        return self._wish.shown(event) if self.is_on and "session" in event else event

    def admits(self, kind: str, event: Event, chars: int) -> bool:
        """Whether a client's event goes on now; otherwise it waits for a verdict, or was dropped."""
        if not self.is_on:
            return True
        passes, actions = self._checks.client_sent(kind, event, self._loop.time(), chars=chars)
        self._perform(actions)
        return passes

    def azure_sent(self, event: Event) -> bool:
        """Takes a parsed event of Azure's. Whether the turn that it finishes may be kept now."""
        if not self.is_on:
            return True
        keeps, actions = self._checks.azure_sent(event, self._loop.time())
        self._perform(actions)
        return keeps

    def cut(self) -> None:
        """The session is gone."""
        self._checks.cut()

    def begin(self) -> None:
        """A session carries the talk."""
        self._perform(self._checks.begin(self._loop.time()))

    def aclose(self) -> None:
        """The talk is over: what was said is kept, and nothing is checked any more."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        for action in self._checks.release():
            if isinstance(action, KeepTurn):
                self._hooks.keep(action.event)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._checks.tick(self._loop.time()))

    def _perform(self, actions: list[GuardAction]) -> None:
        hooks = self._hooks
        for action in actions:
            match action:
                case AskHook():
                    hooks.start(self._ask(action, self._agent), "talk-guardrail")
                case SendEvent(event=event):
                    hooks.send(event)
                case ForwardEvent(event=event):
                    hooks.forward(event)
                case WantAnswer(say=None):
                    hooks.want(None)
                case WantAnswer(say=say):
                    instructions = f"{hooks.instructions()}\n\n{say}".strip()
                    hooks.want({"instructions": instructions, "tool_choice": "none"})
                case KeepTurn(event=event):
                    hooks.keep(event)
                case DropTurn(item_id=item_id):
                    hooks.drop(item_id)
                case DropEvent():
                    log.warning("guardrail_refusal", session_id=self._owner.session_id, code=action.code)
                    hooks.refuse(action)
        if actions:
            hooks.settled()
        due_s = self._checks.due_s
        if self._timer is not None:
            if self._timer.when() == due_s:
                return
            self._timer.cancel()
            self._timer = None
        if due_s < math.inf:
            self._timer = self._loop.call_at(due_s, self._tick)

    async def _ask(self, ask: AskHook, agent: Agent) -> None:
        verdict = await self._hook.check(agent, self._owner, ask.text, ask.source)
        self._perform(self._checks.judged(ask.number, verdict, self._loop.time()))
