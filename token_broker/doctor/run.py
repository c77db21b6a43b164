"""Runs all checks at once, each within its own limit and all within one, and reports each as it is done."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from strategies.credentials import TokenSource, azure_identity_source
from strategies.transport import make_tls_context, make_transport
from token_broker.azure import make_client
from token_broker.doctor.azure_checks import examine_azure
from token_broker.doctor.checks import Check, CheckStatus, Report, about_resource
from token_broker.doctor.configuration import examine_configuration
from token_broker.doctor.hosts import STEP_S, examine_tenant
from token_broker.doctor.outside import examine_broker
from token_broker.doctor.stores import examine_database, examine_sinks
from token_broker.doctor.verdicts import judge_hook
from token_broker.hooks.sender import HookSender, hook_client
from token_broker.sessions.agents import AgentsFileError, load_agents
from token_broker.settings import ResourceSettings, Settings, SettingsError
from token_broker.tools.configured_hooks import configured_hooks, hook_secrets
from token_broker.tools.ping import ping_hooks

__all__ = ["LIMIT_S", "run_doctor"]

LIMIT_S = 27.0  # leaves the cancelled checks time to end within the 30 s that the command promises
_CANCEL_S = 2.0


async def run_doctor(
    settings: Settings,
    *,
    connect: bool,
    url: str | None,
    emit: Callable[[Check], None],
    pings_hooks: bool = False,
    source: TokenSource | None = None,
    limit_s: float = LIMIT_S,
) -> Report:
    """Makes every check that the settings call for, and calls `emit` with each at once.

    `connect` holds a short silent talk; `pings_hooks` asks the servers of agents' hooks; `url` is a deployed broker to
    check from outside; `source` is where Entra tokens come from. It raises nothing: what goes wrong is a finding.
    """
    report = Report()

    def tell(check: Check) -> None:
        report.checks.append(check)
        emit(check)

    for check in examine_configuration(settings, looks_outside=url is not None):
        tell(check)
    tls = make_tls_context()  # the broker's own context, so that doctor trusts exactly what the broker trusts
    async with make_client(make_transport(tls=tls, proxy=settings.proxy)) as client:

        async def examine_stores() -> None:
            tell(await examine_database(settings))
            for check in await examine_sinks(settings, client):
                tell(check)

        async def examine_sign_in() -> None:
            if (tenant := await examine_tenant(settings, client)) is not None:
                tell(tenant)

        async def examine_hooks() -> None:
            try:  # what is wrong with the file or the secret is told elsewhere
                agents = load_agents(settings.agents_file).values()
                secrets = hook_secrets(settings, agents)
            except (AgentsFileError, SettingsError):
                return
            hooks = configured_hooks(agents)
            if not hooks:
                tell(Check("hooks", CheckStatus.NOTE, "no agent has a tool, guardrail or summary with a URL"))
                return
            async with hook_client(tls=tls, proxy=settings.proxy) as poster:
                async for hook, answer, took_ms in ping_hooks(hooks, HookSender(poster, secrets), timeout_s=STEP_S):
                    tell(judge_hook(hook.name, answer, f"{took_ms:.0f} ms"))

        def tell_of(resource: ResourceSettings) -> Callable[[Check], None]:
            return lambda check: tell(about_resource(check, resource, is_only=len(settings.resources) == 1))

        azure: dict[str, Coroutine[Any, Any, None]] = {}
        for each in settings.resources:
            of = each.settings
            tokens = source or azure_identity_source(  # as the broker itself would get them for this resource
                of.azure_scope, client_id=of.client_id, authority=of.azure_authority, proxy=of.proxy
            )
            name = "azure" if len(settings.resources) == 1 else f"azure {each.name}"
            azure[name] = examine_azure(of, tell_of(each), connect=connect, source=tokens, tls=tls)
        parts: dict[str, Coroutine[Any, Any, None]] = {
            **azure,
            "stores": examine_stores(),
            "callers": examine_sign_in(),
        }
        if pings_hooks:
            parts["hooks"] = examine_hooks()
        if url is not None:
            parts["url"] = examine_broker(url, client, tell, settings=settings, tls=tls)
        tasks = {asyncio.create_task(part, name=f"doctor {name}"): name for name, part in parts.items()}
        try:
            # Not a TaskGroup: it would cancel the other parts if one fails.
            await asyncio.wait(tasks, timeout=limit_s)
        finally:
            for task, name in tasks.items():
                if not task.done():
                    task.cancel()
                    finding = f"cut off after {limit_s:g} s; checks that are not listed were not made"
                    tell(Check(name, CheckStatus.FAILED, finding, remediation="see above"))
                elif not task.cancelled() and (error := task.exception()) is not None:
                    finding = f"the check itself failed ({type(error).__name__})"
                    tell(Check(name, CheckStatus.FAILED, finding, remediation="report this"))
            # Cancelled parts close their sockets here, before the client that they share is closed.
            await asyncio.wait(tasks, timeout=_CANCEL_S)
    return report
