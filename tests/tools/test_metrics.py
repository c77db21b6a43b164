"""Calls and checks are counted by names that the agents' file has, and shown at zero before the first."""

import pytest

from token_broker.observability.events import GuardrailAsked, Metrics, ToolRan

CALLS, CALL_SECONDS = "token_broker_tool_calls_total", "token_broker_tool_call_duration_seconds"
CHECKS, CHECK_SECONDS = "token_broker_guardrail_checks_total", "token_broker_guardrail_check_duration_seconds"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_expected_series_begin_at_zero(metrics: Metrics) -> None:
    metrics.expect_tools([("elena", "order_status")], ["marcus"])
    read = metrics.registry.get_sample_value
    assert read(CALLS, {"agent": "elena", "tool": "order_status", "outcome": "done"}) == 0
    assert read(f"{CALL_SECONDS}_count", {"agent": "elena", "tool": "order_status"}) == 0
    assert read(CHECKS, {"agent": "marcus", "outcome": "failed"}) == 0
    assert read(f"{CHECK_SECONDS}_count", {"agent": "marcus"}) == 0


def test_calls_and_checks_are_counted(metrics: Metrics) -> None:
    for seconds in (0.5, 1.5):
        metrics(ToolRan("elena", "order_status", "done", seconds))
    metrics(ToolRan("elena", "unknown", "no_tool", 0.001))
    metrics(GuardrailAsked("marcus", "refuse", 0.04))
    read = metrics.registry.get_sample_value
    assert read(CALLS, {"agent": "elena", "tool": "order_status", "outcome": "done"}) == 2
    assert read(CALLS, {"agent": "elena", "tool": "unknown", "outcome": "no_tool"}) == 1
    assert read(f"{CALL_SECONDS}_sum", {"agent": "elena", "tool": "order_status"}) == 2
    assert read(CHECKS, {"agent": "marcus", "outcome": "refuse"}) == 1
    assert read(f"{CHECK_SECONDS}_sum", {"agent": "marcus"}) == 0.04
