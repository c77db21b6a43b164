"""Counters of the relay, for `/status` and `/metrics`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strategies.health import BreakerStatus
from token_broker.security.limits import BoundedDict

__all__ = ["Directions", "RelayCounters", "RelayStatus", "TalkCounters", "Usage"]

_PRINCIPALS_KEPT = 10_000  # anonymous principals are addresses: without a limit they would grow it for ever


@dataclass(slots=True)
class Usage:
    """Tokens as `response.done` reports them, and the number of responses."""

    responses: int = 0
    total_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, usage: Mapping[str, Any]) -> None:
        """Adds the `usage` of one response; a value that is not a number counts as 0."""
        self.responses += 1
        self.total_tokens += _tokens(usage, "total_tokens")
        self.input_tokens += _tokens(usage, "input_tokens")
        self.output_tokens += _tokens(usage, "output_tokens")

    def snapshot(self) -> dict[str, int]:
        """The JSON form."""
        return {
            "responses": self.responses,
            "total_tokens": self.total_tokens,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }


@dataclass(frozen=True, slots=True)
class Directions:
    """A count for each direction."""

    to_azure: int
    to_client: int


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """The relay since the process began, as `/status` shows it and metrics read it.

    `closes` are by close code. `refused_events` are clients' events that are not in the allowlist, `fields_left_out`
    fields that were taken out of clients' events, `calls_ended` calls that were hung up since their client changed the
    agent's session repeatedly. Bytes are those of events, not of WebSocket frames.
    """

    active: int
    open_or_relayed: int
    sessions: int
    ready: int
    handoffs: int
    closes: dict[str, int]
    frames: Directions
    bytes: Directions
    turns: int
    turns_lost: int
    failed_transcriptions: int
    refused_events: int
    fields_left_out: int
    calls_ended: int
    usage: Usage
    usage_by_agent: dict[str, Usage]
    upstreams: list[BreakerStatus]
    # Not everybody who may see the rest may see principals: with a default, the schema does not require it.
    usage_by_principal: dict[str, Usage] = field(default_factory=dict)


@dataclass(slots=True)
class TalkCounters:
    """One talk's counters. Bytes are characters of JSON, which is ASCII except for transcripts."""

    to_azure_frames: int = 0
    to_azure_bytes: int = 0
    to_client_frames: int = 0
    to_client_bytes: int = 0
    turns: int = 0
    turns_lost: int = 0
    failed_transcriptions: int = 0
    refused_events: int = 0
    fields_left_out: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(slots=True)
class RelayCounters:
    """The process's counters. `done` sums the talks that are over; `totals` adds the running ones."""

    sessions: int = 0
    ready: int = 0
    handoffs: int = 0
    calls_ended: int = 0  # because their client kept changing the agent's session
    done: TalkCounters = field(default_factory=TalkCounters)
    closes: Counter[int] = field(default_factory=Counter)
    usage_by_agent: dict[str, Usage] = field(default_factory=dict)
    usage_by_principal: BoundedDict[str, Usage] = field(default_factory=lambda: BoundedDict(_PRINCIPALS_KEPT))

    def count_usage_of(self, event: Mapping[str, Any], *, principal: str, agent_id: str, talk: TalkCounters) -> None:
        """Counts the usage of a `response.done` for the talk, its agent and its principal (the latest 10,000)."""
        response = event.get("response")
        usage = response.get("usage") if isinstance(response, dict) else None
        if not isinstance(usage, dict):
            return
        talk.usage.add(usage)
        self.usage_by_agent.setdefault(agent_id, Usage()).add(usage)
        principals_usage = self.usage_by_principal.get(principal) or Usage()
        principals_usage.add(usage)
        self.usage_by_principal[principal] = principals_usage

    def finish(self, talk: TalkCounters, code: int) -> None:
        """Adds a finished talk, and counts its close code."""
        self.closes[code] += 1
        self.add(talk)

    def add(self, talk: TalkCounters) -> None:
        """Adds a finished talk that had no WebSocket of the client's."""
        _add(self.done, talk)

    def totals(self, running: list[TalkCounters]) -> TalkCounters:
        """The counters of all talks, the running ones included."""
        total = TalkCounters()
        for talk in (self.done, *running):
            _add(total, talk)
        return total


def _add(total: TalkCounters, talk: TalkCounters) -> None:
    for name in TalkCounters.__slots__:
        if name != "usage":
            setattr(total, name, getattr(total, name) + getattr(talk, name))
    for name in Usage.__slots__:
        setattr(total.usage, name, getattr(total.usage, name) + getattr(talk.usage, name))


def _tokens(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
