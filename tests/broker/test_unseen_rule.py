"""Which talks may go by transports that the broker cannot end: the rule of plans, by agent and settings."""

from typing import Any

import pytest

from tests.support.broker import make_settings
from token_broker.security.tokens import Narrowing, Owner
from token_broker.sessions.agent import Agent
from token_broker.sessions.unseen import UnseenRule

MINUTES, TOKENS = {"budget_minutes_per_day": 10}, {"budget_tokens_per_day": 10_000}
ENDS, ALLOW = {"voice_live_webrtc_ends": "on"}, {"unseen_talks": "allow"}
SEEN: dict[str, Any] = {"control": "required"}
OPEN: dict[str, Any] = {"guardrail": {"url": "https://x.example.com/g"}}
CLOSED: dict[str, Any] = {"guardrail": {"url": "https://x.example.com/g", "fail": "closed"}}
SHORT, ORIGIN = Narrowing(max_session_s=60), Narrowing(origin="https://x.example.com")


@pytest.mark.parametrize(
    ("keys", "settings", "narrowed", "knows_blocked", "permitted"),
    [
        ({}, {}, Narrowing(), True, (True, True)),
        ({}, {}, Narrowing(), False, (False, False)),
        ({}, ENDS, Narrowing(), False, (False, True)),
        ({}, MINUTES, Narrowing(), True, (False, False)),
        ({}, MINUTES | ALLOW, Narrowing(), True, (True, True)),
        ({}, MINUTES | ENDS, Narrowing(), True, (False, True)),
        ({}, TOKENS, Narrowing(), True, (False, False)),
        ({}, TOKENS | ENDS, Narrowing(), True, (False, False)),
        ({}, TOKENS | ENDS | ALLOW, Narrowing(), True, (True, True)),
        ({}, {}, SHORT, True, (False, False)),
        ({}, ENDS, SHORT, True, (False, True)),
        ({}, {}, ORIGIN, True, (False, True)),
        (SEEN, {}, Narrowing(), True, (False, False)),
        (SEEN, ENDS, Narrowing(), True, (False, True)),
        (OPEN, {}, Narrowing(), True, (False, False)),
        (OPEN, ENDS, Narrowing(), True, (False, True)),
        (CLOSED, ENDS, Narrowing(), True, (False, False)),
        ({"zones": ("eu",)}, ENDS, Narrowing(), True, (True, False)),
    ],
)
def test_rule_by_agent_and_settings(
    keys: dict[str, Any],
    settings: dict[str, Any],
    narrowed: Narrowing,
    knows_blocked: bool,
    permitted: tuple[bool, bool],
) -> None:
    """`permitted`: a talk that the broker never sees, and one by WebRTC that it signals."""
    agent = Agent(id="a", name="A", voices={"ga": "marin", "preview": "alloy"}, instructions="Be A.", **keys)
    owner = Owner("s" * 20, "anonymous", 1, narrowed=narrowed)
    rule = UnseenRule(make_settings(None, "https://x.services.ai.azure.com", **settings))
    assert (
        rule.permits(agent, owner, knows_blocked=knows_blocked),
        rule.permits_signalling(agent, owner, knows_blocked=knows_blocked),
    ) == permitted
