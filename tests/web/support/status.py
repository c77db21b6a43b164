"""What a broker's `/status` says that has two resources, one of them in trouble."""

from typing import Any

__all__ = ["HEALTH"]

_STRATEGY = {
    "breaker": "closed", "capability": "available", "last_outcome": "minted", "last_status": None, "last_ago_s": 2.0,
    "retry_in_s": None, "why": None, "attempts": 40, "successes": 39,
    "latency_ms": {"p50": 180.0, "p95": 420.0, "p99": 600.0},
}  # fmt: skip
_MISSING: dict[str, Any] = _STRATEGY | {
    "breaker": "open", "capability": "missing", "successes": 0, "why": "404 Resource not found; asked again in 300 s"
}  # fmt: skip
HEALTH = {
    "endpoint": "https://x.openai.azure.com", "model": "gpt-realtime", "active_sessions": 3, "clock_skew_s": 12.0,
    "agents": {"elena": {}, "marcus": {}},
    "strategies": [
        {"name": "ga", "resource": "eastus2"} | _STRATEGY,
        {"name": "unified", "resource": "eastus2"} | _MISSING,
        {"name": "websocket_proxy", "resource": None},
    ],
    "resources": [
        {"name": "eastus2", "enabled": True, "health": "failing", "why": "the connection is refused", "zone": "us"},
        {"name": "swedencentral", "enabled": False, "health": "good", "load": {"mints_per_minute": 0.4}, "zone": "eu"},
    ],
    "relay": {"turn_latency_ms": {"p50": 620.0, "p95": 1_140.0, "p99": 1_900.0}},
    "outbox": {"queued": 7, "oldest_age_s": 3.2, "delivered": 1_204, "dead": 1},
    "slo": {
        "aim": 0.9999, "requests": 41, "usable_plans": 41, "degraded_plans": 2, "ratio": 1.0,
        "talks": {"asked": 20, "live": 19, "ratio": 0.95},
    },
}  # fmt: skip
