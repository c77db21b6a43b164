"""The guardrail: the operator's own server sees each of the user's words before the agent answers them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from token_broker.hooks.sender import HookSender
from token_broker.observability.events import GuardrailAsked, Observer, null_observer
from token_broker.security.tokens import Owner
from token_broker.sessions.agent import Agent
from token_broker.web.requests import uuid7

__all__ = ["GUARDRAIL_KEEPALIVE_S", "GuardrailClient", "HttpGuardrail", "Verdict", "WordSource", "parse_verdict"]

log = structlog.get_logger(__name__)

WordSource = Literal["speech", "typed"]

GUARDRAIL_KEEPALIVE_S = 60.0
"""A check has 300 ms: no time for a new connection each time. Where one has just ended, the check is made again."""

_MAX_ANSWER_BYTES = 65_536
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with the user's words. `text` replaces them; `say` is said where they are refused.

    `failed`: the server did not decide, and `action` is what the agent's `fail` has for that: "open" allows, "closed"
    refuses.
    """

    action: Literal["allow", "replace", "refuse"]
    text: str | None = None
    say: str | None = None
    failed: bool = False


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


_Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=32_768)]


class _Decision(BaseModel):
    """Other keys are ignored, so that a server may say more."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)


class _Allow(_Decision):
    action: Literal["allow"]


class _Replace(_Decision):
    action: Literal["replace"]
    text: _Words


class _Refuse(_Decision):
    action: Literal["refuse"]
    say: _Words | None = None


_VERDICTS: TypeAdapter[_Allow | _Replace | _Refuse] = TypeAdapter(
    Annotated[_Allow | _Replace | _Refuse, Field(discriminator="action")]
)


def parse_verdict(body: str) -> Verdict | None:
    """The verdict that a 2xx carries; None where it is none."""
    try:
        answer = _VERDICTS.validate_json(body)
    except ValidationError:
        return None
    match answer:
        case _Replace(text=text):
            return Verdict("replace", text=text)
        case _Refuse(say=say):
            return Verdict("refuse", say=say)
        case _:
            return Verdict("allow")
