"""`GET /metrics`: what `Metrics` has counted, and what is read from the parts' own status at each scrape.

The relay and the memory count for themselves, at no cost a frame. Their status is what `/status` shows too, so that the
two can't disagree.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypedDict, get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from strategies.health import BreakerState, BreakerStatus, Capability
from strategies.pool import ResourceStatus
from strategies.voice_live_webrtc import WebRtcState
from token_broker.api.status import StatusSources
from token_broker.memory.memory_status import MemoryStatus
from token_broker.observability.events import Metrics
from token_broker.relay.counters import RelayStatus, ResourceUse
from token_broker.usage.budgets import BudgetCounts
from token_broker.web.openapi_document import Operation, ResponseSpec
from token_broker.web.requests import Problem

__all__ = ["METRICS_OPERATIONS", "MetricsState", "StateCollector", "get_metrics", "memory_metrics"]

_RELAYED = ("resource", "direction")
RESOURCE_HEALTH = ("good", "failing", "slow", "recovering")
_CLOSE_CODES = ("1000", "1009", "1011", "4400", "4401", "4403", "4408", "4410", "4429", "4502", "4503")


class MetricsState(TypedDict):
    """What this route uses of the lifespan's state."""

    status: StatusSources
    metrics: Metrics


async def get_metrics(request: Request[MetricsState]) -> Response:
    """All metrics, as text or, where it is asked for, as OpenMetrics. Problem 401 without the token."""
    sources = request.state["status"]
    if not sources.may_see_figures(request):
        detail = (
            "Metrics need a token where callers have to sign in: set BROKER_METRICS_TOKEN at the broker, and send it "
            "as Authorization: Bearer."
        )
        if sources.settings.metrics_token is not None:
            detail = "Send BROKER_METRICS_TOKEN as Authorization: Bearer."
        raise Problem(401, "metrics_token_needed", detail)
    try:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # prometheus_client compares the parts of an odd version with numbers, and fails
        encode, media_type = choose_encoder("")
    body = encode(request.state["metrics"].registry)
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


class StateCollector(Collector):
    """Metrics of the present state, read at each scrape."""

    def __init__(self, sources: StatusSources, *, version: str) -> None:
        self._sources = sources
        self._version = version

    def collect(self) -> Iterable[Metric]:
        sources = self._sources
        relay = sources.relay()
        yield InfoMetricFamily("token_broker_build", "The running version.", {"version": self._version})
        yield _gauge("draining", "1 while newcomers are sent elsewhere.", sources.drain.draining)
        yield _gauge("open_talks", "Places taken: proxied talks and relayed calls.", sources.talks.active)
        yield _gauge(
            "max_talks", "Places there are in this process; 0 is without limit.", sources.settings.max_sessions
        )
        skew = GaugeMetricFamily(
            "token_broker_clock_skew_seconds", "Our clock less Azure's, at the last mint.", labels=["resource"]
        )
        for name, skew_s in sources.plan_counters.clock_skew_at.items():
            skew.add_metric([name], skew_s)
        yield skew
        yield from _breakers(
            [
                *((each.resource or "", "strategy", each) for each in sources.strategies()),
                *((each.resource, "upstream", each) for each in relay.upstreams),
            ]
        )
        yield from _resources(sources.pool.snapshot())
        webrtc = GaugeMetricFamily(
            "token_broker_voice_live_webrtc",
            "1 for what is known of Voice Live by WebRTC at the resource.",
            labels=["resource", "state"],
        )
        for each in sources.availability.snapshot():
            for state in get_args(WebRtcState):
                webrtc.add_metric([each.resource, state], float(each.state == state))
        yield webrtc
        hedges = CounterMetricFamily(
            "token_broker_hedges",
            "Calls beside a silent one: asked at this resource, won by it, and calls undone since another was faster.",
            labels=["resource", "outcome"],
        )
        for (name, outcome), count in sources.chain.hedger.counts.items():
            hedges.add_metric([name, outcome], count)
        yield hedges
        yield _counter(
            "talks_asked", "Talks asked for, by proxy or relayed call; each counts once.", sources.talk_counters.asked
        )
        live = CounterMetricFamily(
            "token_broker_talks_live", "Talks that came about, of those, by resource.", labels=["resource"]
        )
        for name, count in sources.talk_counters.live_at.items():
            live.add_metric([name], count)
        yield live
        yield _counter(
            "talks_left", "Talks whose client left before they were live; not among those.", sources.talk_counters.left
        )
        yield from _relay(relay)
        yield from _usage_and_leases(sources)
        yield from memory_metrics(sources.memory.status())

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read a broker that is still being built."""
        return ()


def _breakers(breakers: Sequence[tuple[str, str, BreakerStatus]]) -> Iterator[Metric]:
    """Breakers and capabilities as one series a state, 1 for the present one; strategies and the proxy's upstreams."""
    labels = ["resource", "role", "name"]
    breaker = GaugeMetricFamily("token_broker_breaker_state", "1 for the breaker's state.", labels=[*labels, "state"])
    capability = GaugeMetricFamily(
        "token_broker_capability", "1 for what Azure has shown of the route.", labels=[*labels, "capability"]
    )
    attempts = CounterMetricFamily(
        "token_broker_upstream_attempts", "Times the proxy tried to connect.", labels=["resource", "name"]
    )
    successes = CounterMetricFamily(
        "token_broker_upstream_successes", "Times Azure took the talk.", labels=["resource", "name"]
    )
    for resource, role, status in breakers:
        name = [resource, role, status.name]
        for state in BreakerState:
            breaker.add_metric([*name, state.value], float(status.breaker is state))
        for shown in Capability:
            capability.add_metric([*name, shown.value], float(status.capability is shown))
        if role == "upstream":  # the strategies' attempts are counted as they happen, by outcome
            attempts.add_metric([resource, status.name], status.attempts)
            successes.add_metric([resource, status.name], status.successes)
    yield from (breaker, capability, attempts, successes)


def _resources(resources: Sequence[ResourceStatus]) -> Iterator[Metric]:
    """The resources' health, as one series a state, whether they are enabled, and the use of their quotas."""
    health = GaugeMetricFamily(
        "token_broker_resource_health", "1 for the resource's health.", labels=["resource", "health"]
    )
    enabled = GaugeMetricFamily("token_broker_resource_enabled", "0 while it is disabled.", labels=["resource"])
    load = GaugeMetricFamily(
        "token_broker_resource_quota_used", "Share of a known quota that is used.", labels=["resource", "quota"]
    )
    for each in resources:
        for shown in RESOURCE_HEALTH:
            health.add_metric([each.name, shown], float(each.health == shown))
        enabled.add_metric([each.name], float(each.enabled))
        for quota, share in each.load.items():
            load.add_metric([each.name, quota], share)
    yield from (health, enabled, load)


def _relay(relay: RelayStatus) -> Iterator[Metric]:
    yield _gauge("active_talks", "Proxied talks that run now.", relay.active)
    yield _counter("talks", "Proxied talks admitted.", relay.sessions)
    yield _by_resource("talks_ready", "Proxied talks that Azure took.", relay, lambda use: use.ready)
    yield _counter("agent_handoffs", "Handoffs to another agent within a talk.", relay.handoffs)
    resumes = CounterMetricFamily(
        "token_broker_talk_resumes",
        "Talks that went on at another session of Azure's, or failed to, by the resource that was lost.",
        labels=["resource", "reason"],
    )
    for resource, reasons in relay.resumes.items():
        for reason, count in reasons.items():
            resumes.add_metric([resource, reason], count)
    yield resumes
    yield _counter("turns", "Turns of proxied talks handed to the memory.", relay.turns)
    yield _counter("turns_lost", "Turns of proxied talks that the memory did not take.", relay.turns_lost)
    yield _by_resource(
        "failed_transcriptions",
        "User turns that Azure could not transcribe.",
        relay,
        lambda use: use.failed_transcriptions,
    )
    missing = GaugeMetricFamily(
        "token_broker_transcription_missing",
        "1 while users' words are not transcribed, since the transcription deployment does not exist.",
        labels=["resource"],
    )
    for resource in relay.resources:
        missing.add_metric([resource], resource in relay.transcription_missing)
    yield missing
    failed = CounterMetricFamily(
        "token_broker_failed_answers", "Answers that Azure did not finish, by its code.", labels=["resource", "code"]
    )
    for resource, use in relay.resources.items():
        for code, count in use.failed_answers.items():
            failed.add_metric([resource, code], count)
    yield failed
    left_out = CounterMetricFamily(
        "token_broker_settings_left_out",
        "Sessions that go on without a field of the agent's, which Azure refused.",
        labels=["resource", "agent", "field"],
    )
    for resource, agents in relay.settings_left_out.items():
        for agent, fields in agents.items():
            for name, count in fields.items():
                left_out.add_metric([resource, agent, name], count)
    yield left_out
    refused = CounterMetricFamily(
        "token_broker_sessions_refused",
        "Sessions that Azure did not give: it refused the agent's settings, or confirmed others.",
        labels=["resource", "agent"],
    )
    for resource, refusals in relay.sessions_refused.items():
        for agent, count in refusals.items():
            refused.add_metric([resource, agent], count)
    yield refused
    yield _counter("client_events_refused", "Events of clients that are not in the allowlist.", relay.refused_events)
    yield _counter("client_fields_left_out", "Fields taken out of clients' events.", relay.fields_left_out)
    yield _counter("answered_tool_calls", "Calls of tools in talks that have their outputs.", relay.tool_calls)
    yield _counter("failed_tool_calls", "Those of which the output is a failure.", relay.tool_calls_failed)
    yield _counter(
        "calls_ended_for_changes", "Calls hung up: their client kept changing the session.", relay.calls_ended
    )
    closes = CounterMetricFamily("token_broker_closes", "WebSockets closed, by code.", labels=["code"])
    # The known codes are shown at zero, so that the first close of a kind is seen as an increase.
    for code, count in sorted((dict.fromkeys(_CLOSE_CODES, 0) | relay.closes).items()):
        closes.add_metric([code], count)
    yield closes
    frames = CounterMetricFamily(
        "token_broker_relayed_frames", "Events relayed, by the resource that carried the talk.", labels=_RELAYED
    )
    size = CounterMetricFamily("token_broker_relayed_bytes", "Bytes of the events relayed.", labels=_RELAYED)
    for resource, use in relay.resources.items():
        frames.add_metric([resource, "to_azure"], use.to_azure_frames)
        frames.add_metric([resource, "to_client"], use.to_client_frames)
        size.add_metric([resource, "to_azure"], use.to_azure_bytes)
        size.add_metric([resource, "to_client"], use.to_client_bytes)
    yield from (frames, size)
    yield from _usage(relay)


def _usage(relay: RelayStatus) -> Iterator[Metric]:
    """What Azure bills, by resource."""
    responses = CounterMetricFamily(
        "token_broker_model_responses", "Responses of proxied talks.", labels=["resource", "agent"]
    )
    tokens = CounterMetricFamily(
        "token_broker_model_tokens",
        "Model tokens of proxied talks, as Azure counts them.",
        labels=["resource", "agent", "kind"],
    )
    transcriptions = CounterMetricFamily(
        "token_broker_transcriptions", "Transcriptions whose usage Azure reported.", labels=["resource"]
    )
    seconds = CounterMetricFamily(
        "token_broker_transcription_seconds", "Audio that Azure bills for transcribing.", labels=["resource"]
    )
    transcribing = CounterMetricFamily(
        "token_broker_transcription_tokens", "Tokens that Azure bills for transcribing.", labels=["resource", "kind"]
    )
    for resource, use in relay.resources.items():
        for agent, usage in use.usage_by_agent.items():
            responses.add_metric([resource, agent], usage.responses)
            tokens.add_metric([resource, agent, "input"], usage.input_tokens)
            tokens.add_metric([resource, agent, "output"], usage.output_tokens)
        billed = use.transcription_usage
        transcriptions.add_metric([resource], billed.transcriptions)
        seconds.add_metric([resource], billed.seconds)
        transcribing.add_metric([resource, "input"], billed.input_tokens)
        transcribing.add_metric([resource, "output"], billed.output_tokens)
    yield from (responses, tokens, transcriptions, seconds, transcribing)


def _usage_and_leases(sources: StatusSources) -> Iterator[Metric]:
    """What talks use, the budgets that bound them, and the leases on calls: of this replica."""
    ledger, counts = sources.ledger, sources.ledger.counts
    yield _counter("usage_written_rows", "Rows of the usage ledger that were written.", counts.written)
    yield _counter("usage_failed_writes", "Attempts to write usage that the store did not take.", counts.failed)
    yield _counter("usage_lost_talks", "Talks whose end was never written into the ledger.", counts.lost)
    yield _counter("usage_repeated_answers", "Answers that another replica had counted already.", counts.repeated)
    yield _gauge("usage_waiting_talks", "Talks that are over and wait for the ledger.", ledger.waiting)
    budgets = sources.budgets
    spent = BudgetCounts() if budgets is None else budgets.counts
    yield _counter("budget_refusals", "Requests refused, since nothing is left of a budget.", spent.refused)
    yield _counter("budget_unknown", "Requests refused, since nobody knew what is left of a budget.", spent.unknown)
    yield _counter("budget_ended_talks", "Talks that the end of a budget has ended.", spent.ended)
    unsettled = 0 if budgets is None else budgets.unsettled
    yield _gauge("budget_unsettled_talks", "Talks that are over and whose budget is not settled.", unsettled)
    leases = sources.leases
    yield _gauge("held_calls", "WebRTC calls that this replica holds.", len(leases))
    yield _counter("calls_taken", "Calls taken from replicas that were gone, or that left.", leases.counts.taken)
    yield _counter("calls_left", "Calls that another replica has taken.", leases.counts.lost)
    yield _counter("call_lease_failures", "Renewals of leases that the store did not take.", leases.counts.failed)


def memory_metrics(memory: MemoryStatus) -> Iterator[Metric]:
    """The memory's metrics."""
    yield _gauge("memory_store_up", "1 while the store answers.", memory.store == "open")
    yield from _sink_metrics(memory)
    yield _gauge(
        "memory_outbox_age_seconds", "How long ago the four above were read from the store.", memory.outbox_age_s
    )
    yield _gauge(
        "memory_blocked", "Principals and sessions that the operator has blocked, over all replicas.", memory.blocked
    )
    yield _gauge(
        "memory_blocklist_age_seconds", "How long ago the store was last asked who is blocked.", memory.blocklist_age_s
    )
    yield _gauge("memory_waiting_turns", "Turns that wait for their commit.", memory.waiting)
    yield _gauge("memory_buffered_turns", "Proxied turns that wait for the store.", memory.buffered)
    yield _gauge(
        "memory_disk_short", "1 while SQLite's disk has less free space than is to be kept.", memory.disk_is_short
    )
    yield _gauge("memory_disk_free_bytes", "Free space on SQLite's disk.", memory.disk_free_bytes)
    yield _counter("memory_stored_turns", "Turns committed.", memory.stored)
    yield _counter("memory_duplicate_turns", "Turns that were stored already.", memory.duplicates)
    yield _counter("memory_refused_turns", "Turns that the store refused.", memory.refused)
    yield _counter(
        "memory_full_session_turns",
        "Turns refused, since their session has as much as one may have.",
        memory.full_sessions,
    )
    yield _counter(
        "memory_short_of_disk_turns",
        "Turns refused for want of free disk; proxied ones come again.",
        memory.short_of_disk,
    )
    yield _counter("memory_overflowed_turns", "Proxied turns lost, since the buffer was full.", memory.overflowed)
    yield _counter("memory_commits", "Commits.", memory.commits)
    yield _counter("memory_failed_commits", "Commits that failed.", memory.failed_commits)
    yield _counter("memory_recalls", "Recalls asked for.", memory.recalls)
    yield _counter("memory_late_recalls", "Recalls that took longer than their budget.", memory.recalls_late)
    yield _counter("memory_failed_recalls", "Recalls that failed.", memory.recalls_failed)
    yield _counter(
        "memory_repeated_recalls", "Recalls answered with what was found a moment before.", memory.recalls_repeated
    )
    yield _counter(
        "memory_tickets_spent_locally",
        "Tickets that this process alone remembers as used.",
        memory.tickets_spent_locally,
    )


def _by_resource(name: str, text: str, relay: RelayStatus, value: Callable[[ResourceUse], float]) -> Metric:
    family = CounterMetricFamily(f"token_broker_{name}", text, labels=["resource"])
    for resource, use in relay.resources.items():
        family.add_metric([resource], value(use))
    return family


def _sink_metrics(memory: MemoryStatus) -> Iterator[Metric]:
    """By sink; where there is none the store is the memory, and the one series is `local`."""
    gauges = {
        "queued": ("queued_turns", "Turns that wait for delivery, over all replicas."),
        "oldest_age_s": ("oldest_queued_age_seconds", "Age of the oldest turn that waits, over all replicas."),
        "dead": ("dead_letters", "Turns that could not be delivered and are kept, over all replicas."),
        "pending_erasures": ("pending_erasures", "Erasures that the sink has not carried out, over all replicas."),
        "rests_for_s": ("sink_rests_seconds", "How long the sink is left alone, since it failed or asked for it."),
    }
    counters = {
        "delivered": ("delivered_turns", "Turns delivered."),
        "delivery_failures": ("delivery_failures", "Deliveries that failed and come again, or are dead."),
        "dropped_notices": ("dropped_notices", "Notices that the sink refused for good."),
    }
    for field, (name, text) in (gauges | counters).items():
        kind = CounterMetricFamily if field in counters else GaugeMetricFamily
        family = kind(f"token_broker_memory_{name}", text, labels=["sink"])
        for sink in memory.sinks:
            family.add_metric([sink.sink], float(getattr(sink, field)))
        if not memory.sinks:
            family.add_metric(["local"], float(getattr(memory, field, 0)))
        yield family


def _gauge(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(f"token_broker_{name}", text)
    if value is not None:
        family.add_metric([], float(value))
    return family


def _counter(name: str, text: str, value: float | None) -> Metric:
    family = CounterMetricFamily(f"token_broker_{name}", text)
    if value is not None:
        family.add_metric([], float(value))
    return family


METRICS_OPERATIONS = (
    Operation(
        name="get_metrics",
        method="get",
        path="/metrics",
        tag="Watching",
        summary="Metrics for Prometheus",
        description=(
            "In the text format, or in OpenMetrics where `Accept` asks for it. For whoever sends BROKER_METRICS_TOKEN, "
            "under any host name; for everybody only while that is unset and BROKER_AUTH is `none`."
        ),
        answers=(ResponseSpec(200, "All metrics.", media_type="text/plain"),),
        problems={401: ("metrics_token_needed",)},
        security=(None, "metricsToken"),
    ),
)
