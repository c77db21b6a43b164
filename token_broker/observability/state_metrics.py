"""Metrics of what is: read at each scrape from what the broker says of itself.

The relay and the memory count for themselves, at no cost a frame; here their figures get names. `read` gives the same
document as `/status` in full, so that the two can't disagree.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from strategies.health import BreakerState, Capability

__all__ = ["StateCollector"]

State = Mapping[str, Any]

_CLOSE_CODES = ("1000", "1009", "1011", "4400", "4401", "4403", "4408", "4410", "4429", "4502", "4503")

# Figures of the memory: its name in `/status`'s `outbox`, ours, what it says.
_MEMORY_GAUGES = (
    ("queued", "memory_queued_turns", "Turns that wait for delivery, over all replicas."),
    ("oldest_age_s", "memory_oldest_queued_age_seconds", "Age of the oldest turn that waits, over all replicas."),
    ("dead", "memory_dead_letters", "Turns that could not be delivered and are kept, over all replicas."),
    ("figures_age_s", "memory_figures_age_seconds", "How long ago the store was last asked for the three above."),
    ("blocked", "memory_blocked", "Principals and sessions that the operator has blocked, over all replicas."),
    ("blocklist_age_s", "memory_blocklist_age_seconds", "How long ago the store was last asked who is blocked."),
    ("waiting", "memory_waiting_turns", "Turns that wait for their commit."),
    ("buffered", "memory_buffered_turns", "Proxied turns that wait for the store."),
    ("disk_is_short", "memory_disk_short", "1 while SQLite's disk has less free space than is to be kept."),
    ("disk_free_bytes", "memory_disk_free_bytes", "Free space on SQLite's disk."),
)
_MEMORY_COUNTERS = (
    ("stored", "memory_stored_turns", "Turns committed."),
    ("duplicates", "memory_duplicate_turns", "Turns that were stored already."),
    ("refused", "memory_refused_turns", "Turns that the store refused."),
    ("full_sessions", "memory_full_session_turns", "Turns refused, since their session has as much as one may have."),
    ("short_of_disk", "memory_short_of_disk_turns", "Turns refused for want of free disk; proxied ones come again."),
    ("overflowed", "memory_overflowed_turns", "Proxied turns lost, since the buffer was full."),
    ("commits", "memory_commits", "Commits."),
    ("failed_commits", "memory_failed_commits", "Commits that failed."),
    ("delivered", "memory_delivered_turns", "Turns delivered."),
    ("delivery_failures", "memory_delivery_failures", "Deliveries that failed and come again, or are dead."),
    ("recalls", "memory_recalls", "Recalls asked for."),
    ("recalls_late", "memory_late_recalls", "Recalls that took longer than their budget."),
    ("recalls_failed", "memory_failed_recalls", "Recalls that failed."),
    ("recalls_repeated", "memory_repeated_recalls", "Recalls answered with what was found a moment before."),
    ("tickets_spent_locally", "memory_tickets_spent_locally", "Tickets that this process alone remembers as used."),
)


class StateCollector(Collector):
    """Names the figures of `read()`; a part that is missing there has its metrics without samples."""

    def __init__(self, read: Callable[[], State], *, version: str) -> None:
        self._read = read
        self._version = version

    def collect(self) -> Iterable[Metric]:
        state = self._read()
        relay = state.get("relay") or {}
        yield InfoMetricFamily("token_broker_build", "The running version.", {"version": self._version})
        yield from _process(state)
        yield from _breakers([*_named("strategy", state), *_named("upstream", state)])
        yield from _relay(relay)
        yield from _usage(relay.get("usage_by_agent") or {})
        yield from _memory(state.get("outbox") or {})

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read a broker that is still being built."""
        return ()


def _process(state: State) -> Iterator[Metric]:
    yield _gauge("draining", "1 while newcomers are sent elsewhere.", state.get("draining"))
    yield _gauge("open_talks", "Places taken: proxied talks and relayed calls.", state.get("open_talks"))
    yield _gauge("max_talks", "Places there are in this process; 0 is without limit.", state.get("max_talks"))
    yield _gauge("clock_skew_seconds", "Our clock less Azure's, at the last mint.", state.get("clock_skew_s"))


def _named(role: str, state: State) -> list[tuple[str, State]]:
    breakers = state.get("strategies") if role == "strategy" else (state.get("relay") or {}).get("upstreams")
    return [(role, breaker) for breaker in breakers or () if "breaker" in breaker]


def _breakers(breakers: Sequence[tuple[str, State]]) -> Iterator[Metric]:
    """Breakers and capabilities as one series a state, 1 for the present one; strategies and the proxy's upstreams."""
    labels = ["role", "name"]
    breaker = GaugeMetricFamily("token_broker_breaker_state", "1 for the breaker's state.", labels=[*labels, "state"])
    capability = GaugeMetricFamily(
        "token_broker_capability", "1 for what Azure has shown of the route.", labels=[*labels, "capability"]
    )
    attempts = CounterMetricFamily(
        "token_broker_upstream_attempts", "Times the proxy tried to connect.", labels=["name"]
    )
    successes = CounterMetricFamily("token_broker_upstream_successes", "Times Azure took the talk.", labels=["name"])
    for role, snapshot in breakers:
        name = [role, str(snapshot["name"])]
        for state in BreakerState:
            breaker.add_metric([*name, state.value], float(snapshot["breaker"] == state.value))
        for shown in Capability:
            capability.add_metric([*name, shown.value], float(snapshot["capability"] == shown.value))
        if role == "upstream":  # the strategies' attempts are counted as they happen, by outcome
            attempts.add_metric(name[1:], snapshot["attempts"])
            successes.add_metric(name[1:], snapshot["successes"])
    yield from (breaker, capability, attempts, successes)


def _relay(relay: State) -> Iterator[Metric]:
    yield _gauge("active_talks", "Proxied talks that run now.", relay.get("active"))
    for name, text, key in (
        ("talks", "Proxied talks admitted.", "sessions"),
        ("talks_ready", "Proxied talks that Azure took.", "ready"),
        ("agent_handoffs", "Handoffs to another agent within a talk.", "handoffs"),
        ("turns", "Turns of proxied talks handed to the memory.", "turns"),
        ("turns_lost", "Turns of proxied talks that the memory did not take.", "turns_lost"),
        ("failed_transcriptions", "User turns that Azure could not transcribe.", "failed_transcriptions"),
        ("client_events_refused", "Events of clients that are not in the allowlist.", "refused_events"),
        ("client_fields_left_out", "Fields taken out of clients' events.", "fields_left_out"),
        ("calls_ended_for_changes", "Calls hung up: their client kept changing the session.", "calls_ended"),
    ):
        yield _counter(name, text, relay.get(key))
    closes = CounterMetricFamily("token_broker_closes", "WebSockets closed, by code.", labels=["code"])
    if relay:
        counted = dict.fromkeys(_CLOSE_CODES, 0) | relay.get("closes", {})
        for code, count in sorted(counted.items()):
            closes.add_metric([code], count)
    yield closes
    for key, text in (("frames", "Events relayed."), ("bytes", "Bytes of the events relayed.")):
        family = CounterMetricFamily(f"token_broker_relayed_{key}", text, labels=["direction"])
        for direction, count in (relay.get(key) or {}).items():
            family.add_metric([direction], count)
        yield family


def _usage(by_agent: Mapping[str, State]) -> Iterator[Metric]:
    responses = CounterMetricFamily("token_broker_model_responses", "Responses of proxied talks.", labels=["agent"])
    tokens = CounterMetricFamily(
        "token_broker_model_tokens", "Model tokens of proxied talks, as Azure counts them.", labels=["agent", "kind"]
    )
    for agent, usage in by_agent.items():
        responses.add_metric([agent], usage["responses"])
        tokens.add_metric([agent, "input"], usage["input_tokens"])
        tokens.add_metric([agent, "output"], usage["output_tokens"])
    yield from (responses, tokens)


def _memory(outbox: State) -> Iterator[Metric]:
    store = GaugeMetricFamily("token_broker_memory_store_up", "1 while the store answers.")
    if "store" in outbox:
        store.add_metric([], float(outbox["store"] == "open"))
    yield store
    for key, name, text in _MEMORY_GAUGES:
        yield _gauge(name, text, outbox.get(key))
    for key, name, text in _MEMORY_COUNTERS:
        yield _counter(name, text, outbox.get(key))


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
