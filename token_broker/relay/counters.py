"""Counters of the relay, for `/status` and `/metrics`."""

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from strategies.health import BreakerStatus, Latencies
from token_broker.relay.transcripts.failed_answers import FailedAnswer
from token_broker.security.limits import BoundedDict

__all__ = [
    "TURNS_KEPT",
    "USAGE_EVENTS",
    "Directions",
    "RelayCounters",
    "RelayStatus",
    "ResourceUse",
    "TalkCounters",
    "TranscriptionUsage",
    "UpstreamStatus",
    "Usage",
]

log = structlog.get_logger("token_broker.relay")

_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
_NOT_TRANSCRIBED = "conversation.item.input_audio_transcription.failed"
USAGE_EVENTS = frozenset({"response.done", _TRANSCRIBED, _NOT_TRANSCRIBED})
"""Azure's events that say what it bills: a response, or the transcription of what the user said, which may fail."""

TURNS_KEPT = 512
"""So many of the latest turns' latencies are kept, for percentiles."""

_BOOKED = ("to_azure_frames", "to_azure_bytes", "to_client_frames", "to_client_bytes", "failed_transcriptions")
_NO_DEPLOYMENT = "DeploymentNotFound"
_FAILURE_CODES = 50  # Azure's own codes are fewer; a label must not grow without bound
_OTHER = "other"
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


@dataclass(slots=True)
class TranscriptionUsage:
    """What Azure bills for transcribing users, apart from the model: by tokens or by the second, as the model has it.

    `transcriptions` are those whose usage Azure reported; Voice Live reports none.
    """

    transcriptions: int = 0
    seconds: float = 0.0
    total_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, usage: Mapping[str, Any]) -> None:
        """Adds the `usage` of one transcription; a value that is not a number counts as 0."""
        self.transcriptions += 1
        seconds = usage.get("seconds")
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < math.inf:
            self.seconds += seconds
        self.total_tokens += _tokens(usage, "total_tokens")
        self.input_tokens += _tokens(usage, "input_tokens")
        self.output_tokens += _tokens(usage, "output_tokens")

    def snapshot(self) -> dict[str, float]:
        """The JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Directions:
    """A count for each direction."""

    to_azure: int
    to_client: int


@dataclass(frozen=True, slots=True)
class UpstreamStatus(BreakerStatus):
    """The breaker of one of the proxy's upstreams at one resource."""

    resource: str


@dataclass(slots=True)
class ResourceUse:
    """What talks had of one Azure resource. `ready` are the talks that it took first."""

    ready: int = 0
    to_azure_frames: int = 0
    to_azure_bytes: int = 0
    to_client_frames: int = 0
    to_client_bytes: int = 0
    failed_transcriptions: int = 0
    usage_by_agent: dict[str, Usage] = field(default_factory=dict)
    transcription_usage: TranscriptionUsage = field(default_factory=TranscriptionUsage)
    failed_answers: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """The relay since the process began, as `/status` shows it and metrics read it.

    `resumes` are by the resource that was lost and by reason, `failed` among them; `closes` are by close code,
    `failed_answers` by Azure's code for what went wrong. `transcription_missing` are the resources whose last
    transcription failed because there is no such deployment: nothing that users say there is kept. `settings_left_out`
    are the sessions that go on without a field of the agent's that Azure refused, by resource, agent and field;
    `sessions_refused` those that came to nothing, by resource and agent. `refused_events` are clients' events that are
    not in the allowlist, `fields_left_out` fields that were taken out of clients' events, `calls_ended` calls that were
    hung up since their client changed the agent's session repeatedly. `tool_calls` are the calls of tools in answers
    that have their outputs, the clients' own among them. `turn_latency_ms` are the waits for answers, from the end of
    the user's speech to the first sound, of the last 512 turns. Bytes are those of events, not of WebSocket frames.
    """

    active: int
    open_or_relayed: int
    sessions: int
    ready: int
    handoffs: int
    resumes: dict[str, dict[str, int]]
    closes: dict[str, int]
    frames: Directions
    bytes: Directions
    turns: int
    turns_lost: int
    failed_transcriptions: int
    transcription_missing: list[str]
    failed_answers: dict[str, int]
    settings_left_out: dict[str, dict[str, dict[str, int]]]
    sessions_refused: dict[str, dict[str, int]]
    refused_events: int
    fields_left_out: int
    tool_calls: int
    tool_calls_failed: int
    calls_ended: int
    usage: Usage
    transcription_usage: TranscriptionUsage
    usage_by_agent: dict[str, Usage]
    turn_latency_ms: Latencies
    resources: dict[str, ResourceUse]
    upstreams: list[UpstreamStatus]
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
    failed_answers: int = 0
    refused_events: int = 0
    fields_left_out: int = 0
    tool_calls: int = 0
    tool_calls_failed: int = 0
    usage: Usage = field(default_factory=Usage)
    transcription: TranscriptionUsage = field(default_factory=TranscriptionUsage)
    booked_to_azure_frames: int = 0  # what `RelayCounters.book` has counted for a resource, of each
    booked_to_azure_bytes: int = 0
    booked_to_client_frames: int = 0
    booked_to_client_bytes: int = 0
    booked_failed_transcriptions: int = 0


@dataclass(slots=True)
class RelayCounters:
    """The process's counters. `done` sums the talks that are over; `totals` adds the running ones."""

    sessions: int = 0
    ready: int = 0
    handoffs: int = 0
    resumes: Counter[tuple[str, str]] = field(default_factory=Counter)  # by resource and reason, and those that failed
    calls_ended: int = 0  # because their client kept changing the agent's session
    done: TalkCounters = field(default_factory=TalkCounters)
    listened: dict[str, TalkCounters] = field(default_factory=dict)  # of each call that is listened to
    closes: Counter[int] = field(default_factory=Counter)
    failed_answers: Counter[str] = field(default_factory=Counter)
    usage_by_agent: dict[str, Usage] = field(default_factory=dict)
    usage_by_principal: BoundedDict[str, Usage] = field(default_factory=lambda: BoundedDict(_PRINCIPALS_KEPT))
    resources: dict[str, ResourceUse] = field(default_factory=dict)
    transcription_missing: set[str] = field(default_factory=set)
    turn_latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=TURNS_KEPT))

    def use_of(self, resource: str) -> ResourceUse:
        """What talks had of that resource."""
        return self.resources.setdefault(resource, ResourceUse())

    def book(self, talk: TalkCounters, resource: str) -> None:
        """Counts for the resource what the talk relayed since the last call: it has carried the talk meanwhile."""
        use = self.use_of(resource)
        for name in _BOOKED:
            total = getattr(talk, name)
            setattr(use, name, getattr(use, name) + total - getattr(talk, f"booked_{name}"))
            setattr(talk, f"booked_{name}", total)

    def count_usage_of(
        self, event: Mapping[str, Any], *, principal: str, agent_id: str, talk: TalkCounters, resource: str
    ) -> None:
        """Counts the usage of one of `USAGE_EVENTS`, which `resource` sent.

        A transcription's counts for the talk, a response's also for its agent and its principal (the latest 10,000).
        """
        kind = event.get("type")
        if kind == _NOT_TRANSCRIBED:
            error = event.get("error")
            if isinstance(error, dict) and error.get("code") == _NO_DEPLOYMENT:
                if resource not in self.transcription_missing:
                    log.error("transcription_deployment_missing", resource=resource, agent_id=agent_id)
                self.transcription_missing.add(resource)
                self.use_of(resource)
            return
        if kind == _TRANSCRIBED:
            self.transcription_missing.discard(resource)
            if isinstance(transcription := event.get("usage"), dict):
                talk.transcription.add(transcription)
                self.use_of(resource).transcription_usage.add(transcription)
            return
        response = event.get("response")
        usage = response.get("usage") if isinstance(response, dict) else None
        if not isinstance(usage, dict):
            return
        talk.usage.add(usage)
        self.usage_by_agent.setdefault(agent_id, Usage()).add(usage)
        self.use_of(resource).usage_by_agent.setdefault(agent_id, Usage()).add(usage)
        principals_usage = self.usage_by_principal.get(principal) or Usage()
        principals_usage.add(usage)
        self.usage_by_principal[principal] = principals_usage

    def count_failed_answer(self, failed: FailedAnswer, talk: TalkCounters, *, resource: str) -> None:
        """Counts an answer that `resource` did not finish, by its code."""
        talk.failed_answers += 1
        known = failed.code in self.failed_answers or len(self.failed_answers) < _FAILURE_CODES
        code = failed.code if known else _OTHER
        self.failed_answers[code] += 1
        self.use_of(resource).failed_answers[code] += 1

    def count_resume(self, resource: str, outcome: str) -> None:
        """Counts a talk that lost its session at this resource, by the reason, or as `failed`."""
        self.resumes[resource, outcome] += 1

    def resumes_by_resource(self) -> dict[str, dict[str, int]]:
        """The resumes by reason, for each resource that was lost."""
        found: dict[str, dict[str, int]] = {}
        for (resource, reason), count in self.resumes.items():
            found.setdefault(resource, {})[reason] = count
        return found

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


def _add(total: Any, part: Any) -> None:
    """Adds each number of `part`, and of the counters within it, to that of `total`."""
    for name in part.__slots__:
        value = getattr(part, name)
        if isinstance(value, int | float):
            setattr(total, name, getattr(total, name) + value)
        else:
            _add(getattr(total, name), value)


def _tokens(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
