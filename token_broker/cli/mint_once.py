"""`token-broker token`: mints once without a running broker, and prints a report in which every token is masked."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from strategies.base import Attempt
from token_broker.azure import (
    build_availability,
    build_chain,
    build_connector,
    build_credentials,
    build_hedger,
    build_pool,
)
from token_broker.bootstrap import signing_keys
from token_broker.observability.logging import fingerprint
from token_broker.security.tokens import ANONYMOUS, Owner, TokenSigner
from token_broker.sessions.agents import ensure_resources, load_agents
from token_broker.sessions.plans import PlanMaker, TalkSpecs
from token_broker.settings import Settings, SettingsError
from token_broker.web.requests import uuid7

__all__ = ["MintReport", "UnknownAgentError", "mint_once", "print_report"]

_WIDTH_IN_A_PIPE = 160  # rich would assume 80 columns, and break most reasons


class UnknownAgentError(ValueError):
    """The agent is unknown. The message names the known ones."""


@dataclass(frozen=True, slots=True)
class MintReport:
    """What a mint brought. `plan` is masked, and None where nothing was minted and the chain has no proxy."""

    plan: dict[str, Any] | None
    attempts: tuple[Attempt, ...]


async def mint_once(settings: Settings, agent_id: str | None) -> MintReport:
    """Mints with the chain of the settings. Raises UnknownAgentError, and SettingsError where no endpoint is set."""
    from strategies.transport import make_tls_context, make_transport

    if not settings.resources:
        raise SettingsError(["AZURE_VOICELIVE_ENDPOINT: unset; name the resource to mint at"])
    agents = load_agents(settings.agents_file)
    agent = agents.get(agent_id or agents.default)
    if agent is None:
        raise UnknownAgentError(f"there is no agent {agent_id!r}; the known ones are {', '.join(agents)}")
    deadline_s = time.monotonic() + settings.token_budget_s
    owner = Owner(uuid7(), ANONYMOUS, time.time_ns() // 1_000_000)
    pool = build_pool(settings)
    ensure_resources(agents, pool.resources)
    plans = PlanMaker(settings, TokenSigner(signing_keys(settings)), pool)
    credentials = build_credentials(settings)
    try:
        hedger = build_hedger(settings, pool)
        connector = build_connector(settings, credentials, make_tls_context(), hedger)
        availability = build_availability(settings, connector)
        availability.start()
        async with make_transport(proxy=settings.proxy) as transport:
            result = await build_chain(settings, transport, credentials, hedger, availability=availability).mint(
                TalkSpecs(settings, owner, None).of(agent, seen=False),
                wanted=agent.wanted(owner.session_id),
                deadline_s=deadline_s,
                sockets_only="this agent talks over WebSockets only" if agent.sockets_only else "",
                signals=plans.unseen.permits_signalling(agent, owner, knows_blocked=True),
            )
        await availability.aclose()
        await connector.aclose()
    finally:
        for each in credentials.values():
            await each.aclose()
    if result.grant is None:
        return MintReport(None, result.attempts)
    plan = plans.make(
        result.grant,
        owner=owner,
        agent=agent,
        public_base=settings.public_url or f"http://{settings.host}:{settings.port}",
        correlation_id=uuid7(),
    )
    return MintReport(_masked(plan.model_dump(mode="json")), result.attempts)


def print_report(report: MintReport, *, as_json: bool) -> None:
    """Prints JSON, or a table of the attempts and the plan: coloured on a terminal, plain in a pipe."""
    if as_json:
        attempts = [asdict(attempt) for attempt in report.attempts]
        sys.stdout.write(json.dumps({"plan": report.plan, "attempts": attempts}, indent=2) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE, highlight=False)
    table = Table(
        "resource", "strategy", "outcome", "status", "ms", "tries", "why", title="Attempts", title_justify="left"
    )
    for attempt in report.attempts:
        style = "green" if attempt.outcome in {"minted", "granted"} else "yellow"
        table.add_row(
            attempt.resource,
            attempt.strategy,
            f"[{style}]{attempt.outcome}[/]",
            str(attempt.status or ""),
            f"{attempt.duration_ms:.0f}",
            str(attempt.tries),
            attempt.why,
        )
    console.print(table)
    if report.plan is None:
        console.print("[red]No plan: nothing was minted, and websocket_proxy is not in BROKER_TOKEN_STRATEGIES.[/]")
        return
    console.print_json(data=report.plan)


def _masked(value: Any, name: str = "") -> Any:
    """The plan with every token, ours and Azure's, replaced by its fingerprint."""
    match value:
        case dict():
            return {key: _masked(item, key) for key, item in value.items()}
        case list():
            return [_masked(item, name) for item in value]
        case str() if name in {"token", "session_token"} or value.startswith(("ticket.", "openai-insecure-api-key.")):
            return f"(masked, fingerprint {fingerprint(value)})"
    return value
