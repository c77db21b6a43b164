"""The guardrail: the operator's own server sees each of the user's words before the agent answers them."""

from dataclasses import dataclass
from typing import Literal, Protocol

from token_broker.security.tokens import Owner
from token_broker.sessions.agents import Agent

__all__ = ["GuardrailClient", "Verdict", "WordSource"]

WordSource = Literal["speech", "typed"]


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
        """The verdict on `text`, within the guardrail's own time. Raises nothing but CancelledError."""
        ...
