"""What token requests and SDP offers have in common: the agent, the chain, and the trace of the request."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from strategies.base import Grant
from strategies.chain import Chain, ChainResult
from token_broker.memory.types import Recall
from token_broker.observability.events import Observer
from token_broker.security.owner import Owner
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.sessions.plans import PlanMaker
from token_broker.settings import Settings
from token_broker.web.requests import Problem, correlation_id

__all__ = ["RETRY_AFTER_S", "Minting", "RequestTrace"]

RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class Minting:
    """The parts that mint for an agent and make a plan of the grant."""

    settings: Settings
    agents: AgentRegistry
    chain: Chain
    recall: Recall
    plans: PlanMaker
    observe: Observer

    def find_agent(self, agent_id: str | None) -> Agent:
        """The agent, or the default one for None. Raises Problem 404 naming the known ones."""
        agent = self.agents.get(self.agents.default if agent_id is None else agent_id)
        if agent is None:
            known = ", ".join(self.agents)
            raise Problem(404, "unknown_agent", f"There is no such agent; the known ones are {known}.")
        return agent

    def ensure_configured(self) -> None:
        """Raises Problem 503 where there is no Azure to talk to."""
        if self.settings.endpoint is None:
            raise Problem(
                503,
                "not_configured",
                "No Azure endpoint is configured: set AZURE_VOICELIVE_ENDPOINT.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )


@dataclass(slots=True)
class RequestTrace:
    """How far a request that asks the chain has come. Times are those of the monotonic clock."""

    scope: Scope
    model: str
    began_s: float = field(default_factory=time.monotonic)
    owner: Owner | None = None
    agent: Agent | None = None
    chain_began_s: float | None = None
    minted: ChainResult | None = None

    @property
    def grant(self) -> Grant | None:
        """What the chain has granted so far."""
        return self.minted.grant if self.minted else None

    @contextmanager
    def answered(self, status: int, tell: Callable[[int, str | None], None]) -> Iterator[None]:
        """Calls `tell` with the answer's status and problem code: `status` where the block ends well."""
        try:
            yield
        except Exception as error:  # not a cancellation: nobody got an answer then
            if isinstance(error, Problem):
                tell(error.status, error.code)
            else:
                tell(500, "internal_error")
            raise
        tell(status, None)

    def facts(self, status: int, code: str | None) -> dict[str, Any]:
        """The fields of `ChainRequestEnded`, for a request that is answered now."""
        return {
            "status": status,
            "code": code,
            "duration_s": time.monotonic() - self.began_s,
            "correlation_id": correlation_id(self.scope),
            "model": self.model,
            "agent_id": self.agent.id if self.agent else None,
            "session_id": self.owner.session_id if self.owner else None,
            "strategy": self.grant.strategy if self.grant else None,
            "chain_began_s": self.chain_began_s - self.began_s if self.minted and self.chain_began_s else 0.0,
            "attempts": self.minted.attempts if self.minted else (),
            "trace": self.scope["state"].get("trace"),
        }
