"""Every fault of Azure's at every strategy: 200 within the budget, and a plan that works and names its strategy.

Each fault is tested at each strategy alone, which is asked first while the others are healthy, and at all at once.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio

from strategies.hedging import Hedger
from strategies.transport import make_transport
from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.machine import retry_if_host_busy
from tests.support.plans import MINT_PATHS, assert_usable
from token_broker.azure import build_chain, build_credentials, build_pool
from token_broker.simulator import RunningSimulator, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


@dataclass(frozen=True)
class Scenario:
    """A broker and an Azure of its own; `faulty` is the strategy that meets the fault, first in order, or None: all."""

    faulty: str | None
    azure: RunningSimulator
    broker: RunningBroker
    transport: httpx.AsyncBaseTransport


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scenarios(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Scenario]]:
    """One for each strategy and one for all; kept for the whole matrix, since a broker takes longer than a fault."""
    async with contextlib.AsyncExitStack() as stack:
        running = []
        for faulty in (*STRATEGIES, None):
            azure = await stack.enter_async_context(serve())
            order = dict.fromkeys([faulty or STRATEGIES[0], *STRATEGIES, "websocket_proxy"])
            settings = make_settings(tmp_path_factory.mktemp("matrix"), azure.base_url, token_strategies=tuple(order))
            broker = await stack.enter_async_context(run_broker(settings))
            transport = await stack.enter_async_context(make_transport())
            running.append(Scenario(faulty, azure, broker, transport))
        yield running


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.id for fault in FAULTS])
@retry_if_host_busy()
async def test_plan_survives_every_fault(fault: Fault, scenarios: list[Scenario]) -> None:
    async with asyncio.TaskGroup() as group:
        for scenario in scenarios:
            group.create_task(_meets(fault, scenario))


async def _meets(fault: Fault, scenario: Scenario) -> None:
    """What is faulty fails as it should; the next one wins, or the proxy where all are."""
    budget_s = 1.5 if fault.outcome == "timeout" else 6.0
    azure, broker = scenario.azure, scenario.broker
    _forget_the_past(scenario, budget_s)
    faulty = STRATEGIES if scenario.faulty is None else (scenario.faulty,)
    healthy = [name for name in STRATEGIES if name not in faulty]
    with azure.fault(fault.name, "/" if scenario.faulty is None else MINT_PATHS[scenario.faulty], **fault.options):
        answer = await broker.token()
    assert answer.took_s < budget_s + SLACK_S, scenario.faulty
    assert_usable(answer.plan, broker, azure)
    assert answer.plan["strategy"] == (healthy[0] if healthy else "websocket_proxy"), scenario.faulty
    assert answer.plan["degraded"] is not bool(healthy)
    shown = await broker.strategies()
    assert {(shown[name]["last_outcome"], shown[name]["successes"]) for name in faulty} == {(fault.outcome, 0)}
    assert [shown[name]["attempts"] for name in healthy] == [1, 0, 0][: len(healthy)]


def _forget_the_past(scenario: Scenario, budget_s: float) -> None:
    """Gives the broker breakers that know nothing yet, and so much time; and Azure no requests seen."""
    scenario.azure.simulator.log.clear()
    settings = scenario.broker.settings.model_copy(update={"token_budget_s": budget_s})
    chain = build_chain(settings, scenario.transport, build_credentials(settings), Hedger(build_pool(settings)))
    state = scenario.broker.state
    state["minting"] = dataclasses.replace(state["minting"], settings=settings, chain=chain)
    state["status"] = dataclasses.replace(state["status"], chain=chain)
