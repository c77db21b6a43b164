"""The guardrail: the operator's own server sees each of the user's words before the agent answers them."""

import time
from collections.abc import Callable
from typing import Literal, Protocol

import structlog

from token_broker.hooks.sender import HookSender
from token_broker.observability.events import GuardrailAsked, Observer, null_observer
from token_broker.security.tokens import Owner
from token_broker.sessions.agent import Agent
from token_broker.tools.verdict import Verdict, parse_verdict
from token_broker.web.requests import uuid7

__all__ = ["GUARDRAIL_KEEPALIVE_S", "GuardrailClient", "HttpGuardrail", "WordSource"]

log = structlog.get_logger(__name__)

WordSource = Literal["speech", "typed"]

GUARDRAIL_KEEPALIVE_S = 60.0
"""A check has 300 ms: no time for a new connection each time. Where one has just ended, the check is made again."""

_MAX_ANSWER_BYTES = 65_536
_ATTEMPTS = 2


class GuardrailClient(Protocol):
    """Asks the guardrail of an agent."""

    async def check(self, agent: Agent, owner: Owner, text: str, source: WordSource) -> Verdict:
        """The verdict on `text`, within the guardrail's own time. Raises nothing but CancelledError.

        An agent without a guardrail allows everything.
        """
        ...


class HttpGuardrail:
    """See `GuardrailClient`. One signed POST a check; whatever is no clear verdict is a failure."""

    def __init__(
        self,
        sender: HookSender,
        *,
        observe: Observer = null_observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sender = sender
        self._observe = observe
        self._clock = clock

    async def check(self, agent: Agent, owner: Owner, text: str, source: WordSource) -> Verdict:
        guardrail = agent.guardrail
        if guardrail is None:
            return Verdict("allow")
        payload = {
            "type": "guardrail.check",
            "session_id": owner.session_id,
            "agent_id": agent.id,
            "principal": owner.principal,
            "text": text,
            "source": source,
        }
        began_s, webhook_id = self._clock(), f"guardrail_{uuid7()}"
        until_s = began_s + guardrail.timeout_ms / 1000
        for _ in range(_ATTEMPTS):
            answer = await self._sender.post(
                guardrail.url,
                payload,
                webhook_id=webhook_id,
                timeout_s=until_s - self._clock(),
                max_bytes=_MAX_ANSWER_BYTES,
            )
            if answer.failure != "broken" or self._clock() >= until_s:
                break
        verdict = parse_verdict(answer.body) if answer.ok else None
        duration_s = self._clock() - began_s
        self._observe(GuardrailAsked(agent.id, "failed" if verdict is None else verdict.action, duration_s))
        if verdict is not None:
            return verdict
        log.warning(
            "guardrail_failed",
            session_id=owner.session_id,
            agent_id=agent.id,
            failure="malformed" if answer.ok else answer.failure or f"HTTP {answer.status}",
            action="refuse" if guardrail.fail == "closed" else "allow",
            duration_ms=round(duration_s * 1000, 1),
        )
        return Verdict("refuse" if guardrail.fail == "closed" else "allow", failed=True)
