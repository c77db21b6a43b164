"""Whatever Azure does, at whichever strategy: 200, a plan that works, inside the budget, and honest about who won.

Each fault stands at each strategy alone (it is asked first, the others are healthy) and at all of them at once.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker import make_settings, run_broker
from tests.support.plans import MINT_PATHS, assert_usable
from token_broker.simulator import serve

BUDGET_S = 2.0
SLACK_S = 0.25
STRATEGIES = tuple(MINT_PATHS)


@dataclass(frozen=True)
class Fault:
    """One of the simulator's, and the outcome that `/status` then shows of a strategy that meets it."""

    id: str
    name: str
    outcome: str
    options: dict[str, Any] = field(default_factory=dict)


def _status(code: int, outcome: str, id_: str = "", **options: Any) -> Fault:
    return Fault(id_ or f"status-{code}", "status", outcome, {"code": code, **options})


def _ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


USELESS_EXPIRIES: dict[str, Any] = {
    "null": None,
    "iso-past": _ago(60).isoformat(),
    "unix-past": int(_ago(60).timestamp()),
    "iso-in-two-days": _ago(-172_800).isoformat(),
    "unix-in-two-days": int(_ago(-172_800).timestamp()),
    "text": "tomorrow",
    "number-as-text": str(int(_ago(-60).timestamp())),
    "empty": "",
    "true": True,
    "negative": -1,
    "zero": 0,
    "milliseconds": int(_ago(-60).timestamp() * 1000),
    "huge": 10**30,
    "huge-float": 1e300,
    "year-9999": "9999-12-31T23:59:59Z",
    "list": [1],
    "object": {},
}

FAULTS = [
    Fault("accepts-and-never-answers", "hang", "timeout"),
    Fault("answers-too-late", "slow", "timeout", {"seconds": 30}),
    Fault("drips-headers", "slow", "timeout", {"seconds": 30, "part": "headers"}),
    Fault("drips-body", "slow", "timeout", {"seconds": 30, "part": "body"}),
    Fault("reset-before-answer", "reset", "transient"),
    Fault("reset-after-headers", "reset", "transient", {"at": "headers"}),
    Fault("reset-in-body", "reset", "transient", {"at": "body"}),
    _status(400, "rejected"),
    _status(
        400,
        "permanent",
        "api-version-refused",
        body={"error": {"code": "BadRequest", "message": "API version not supported"}},
    ),
    _status(400, "permanent", "operation-unsupported", body={"error": {"code": "OpperationNotSupported"}}),
    _status(401, "misconfigured"),
    _status(403, "misconfigured", "keys-off"),
    _status(403, "misconfigured", "denied", body={"error": {"code": "PermissionDenied", "message": "no"}}),
    _status(404, "permanent"),
    _status(408, "transient"),
    _status(429, "rate_limited", "rate-limited"),
    _status(429, "rate_limited", "retry-after-short", headers={"retry-after-ms": "20"}),
    _status(429, "rate_limited", "retry-after-beyond-budget", headers={"Retry-After": "3600"}),
    _status(429, "rate_limited", "retry-after-past", headers={"Retry-After": format_datetime(_ago(3600), usegmt=True)}),
    _status(429, "rate_limited", "retry-after-no-number", headers={"Retry-After": "soon"}),
    _status(429, "rate_limited", "retry-after-nan", headers={"Retry-After": "nan", "retry-after-ms": "inf"}),
    _status(429, "rate_limited", "retry-after-negative", headers={"Retry-After": "-5"}),
    _status(500, "transient"),
    _status(502, "transient", "gateway-html", body="<html>", headers={"Content-Type": "text/html"}),
    _status(503, "transient"),
    _status(504, "transient"),
    _status(204, "malformed"),
    _status(202, "malformed", body={"value": "ek_not_yet"}),
    _status(418, "rejected"),
    _status(500, "transient", "error-of-nothing", body=[]),
    _status(500, "transient", "error-in-pieces", body={"error": "nested text"}),
    *(
        Fault(f"redirect-{code}", "redirect", "malformed", {"location": "/openai/v1/elsewhere", "code": code})
        for code in (301, 302, 303, 307, 308)
    ),
    *(
        Fault(f"json-{form}", "malformed_json", "malformed", {"form": form})
        for form in ("truncated", "html", "text", "empty")
    ),
    *(
        Fault(f"value-{form}", "missing_value", "malformed", {"form": form})
        for form in ("missing", "null", "empty", "blank", "number", "object")
    ),
    Fault("expires-missing", "expires_at", "malformed"),
    Fault("expired", "expired", "malformed"),
    *(Fault(f"expires-{id_}", "expires_at", "malformed", {"value": value}) for id_, value in USELESS_EXPIRIES.items()),
    Fault("50-megabytes", "huge_body", "malformed"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.id for fault in FAULTS])
async def test_whatever_azure_does_the_plan_works_in_time_and_names_its_winner(fault: Fault, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_at_all(fault, tmp_path))
        for faulty in STRATEGIES:
            group.create_task(_at_one(fault, faulty, tmp_path))


async def _at_one(fault: Fault, faulty: str, directory: Path) -> None:
    """The faulty strategy is asked first; the next one wins."""
    others = [name for name in STRATEGIES if name != faulty]
    order = (faulty, *others, "websocket_proxy")
    async with serve() as azure:
        settings = make_settings(directory, azure.base_url, token_budget_s=BUDGET_S, token_strategies=order)
        async with run_broker(settings) as broker:
            with azure.fault(fault.name, MINT_PATHS[faulty], **fault.options):
                answer = await broker.token()
            assert answer.took_s < BUDGET_S + SLACK_S, faulty
            assert_usable(answer.plan, broker, azure)
            assert (answer.plan["strategy"], answer.plan["degraded"]) == (others[0], False), faulty
            shown = await broker.strategies()
            assert (shown[faulty]["last_outcome"], shown[faulty]["successes"]) == (fault.outcome, 0), faulty
            assert (shown[others[0]]["last_outcome"], shown[others[1]]["attempts"]) == ("minted", 0), faulty


async def _at_all(fault: Fault, directory: Path) -> None:
    """Nothing mints; the proxy is left."""
    async with serve() as azure:
        settings = make_settings(directory, azure.base_url, token_budget_s=BUDGET_S)
        async with run_broker(settings) as broker:
            with azure.fault(fault.name, **fault.options):
                answer = await broker.token()
            assert answer.took_s < BUDGET_S + SLACK_S
            assert_usable(answer.plan, broker, azure)
            assert (answer.plan["strategy"], answer.plan["degraded"]) == ("websocket_proxy", True)
            shown = await broker.strategies()
            assert {shown[name]["last_outcome"] for name in STRATEGIES} == {fault.outcome}
