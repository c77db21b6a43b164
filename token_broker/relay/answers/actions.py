"""What the sequencer wants done, and what it knows of an agent's tools. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Action", "Reason", "Refuse", "Run", "Send", "Tell", "Tool", "ToolState"]

Reason = Literal["greeting", "guardrail", "say", "handoff", "retry", "client", "page", "tools"]
"""Why an answer is asked for."""
ToolState = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the agent's, and who runs it: the broker over HTTP, the broker by itself, or the client.

    `say` is spoken while it takes long. `timeout_s` is the time that a client has; `fault` says what is wrong with the
    arguments that it would get, or that they fit (None). `agent_id` says whose tool it is: another agent may have the
    talk by the time it runs.
    """

    name: str
    by: Literal["http", "builtin", "client"]
    say: str | None = None
    timeout_s: float = 20.0
    fault: Callable[[str], str | None] = lambda _arguments: None
    agent_id: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """An event for Azure."""

    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A call that the broker runs now. Its output is due at `output_ready`, whatever becomes of it."""

    tool: Tool
    call_id: str
    arguments: str
    azure_session: str


@dataclass(frozen=True, slots=True)
class Tell:
    """What a client that knows the broker's events hears of a call. `duration_ms` is None while it runs."""

    name: str
    call_id: str
    state: ToolState
    duration_ms: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Those of `broker.tool`."""
        took = {} if self.duration_ms is None else {"duration_ms": round(self.duration_ms)}
        return {"name": self.name, "call_id": self.call_id, "state": self.state, **took}


@dataclass(frozen=True, slots=True)
class Refuse:
    """The client sent something that is dropped, or an answer that it waits for does not come."""

    code: str
    message: str
    event_id: str | None = None
    retryable: bool = False


Action = Send | Run | Tell | Refuse
