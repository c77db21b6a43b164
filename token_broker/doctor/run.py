"""Runs all checks at once, each in its own limit and all in one, and tells of each as it is done."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from strategies.credentials import TokenSource, azure_identity_source
from strategies.transport import make_tls_context, make_transport
from token_broker.azure import make_client
from token_broker.doctor.azure_checks import examine_azure
from token_broker.doctor.checks import Check, CheckStatus, Report
from token_broker.doctor.configuration import examine_configuration
from token_broker.doctor.outside import examine_broker
from token_broker.doctor.stores import examine_database, examine_zep
from token_broker.settings import Settings

__all__ = ["LIMIT_S", "run_doctor"]

LIMIT_S = 27.0  # and what is cut off has time to end: 30 s in all


async def run_doctor(
    settings: Settings,
    *,
    connect: bool,
    url: str | None,
    emit: Callable[[Check], None],
    source: TokenSource | None = None,
    limit_s: float = LIMIT_S,
) -> Report:
    """Every check that the settings call for; `emit` hears of each at once.

    `connect` holds a short silent talk; `url` is a deployed broker to look at from outside; `source` is where Entra's
    tokens come from. It raises nothing of what it finds.
    """
    report = Report()

    def tell(check: Check) -> None:
        report.checks.append(check)
        emit(check)

    for check in examine_configuration(settings, looks_outside=url is not None):
        tell(check)
    source = source or azure_identity_source(settings.entra_scope, client_id=settings.client_id)
    tls = make_tls_context()  # the broker's own: what doctor believes, it believes
    async with make_client(make_transport(tls=tls)) as client:
        parts: dict[str, Coroutine[Any, Any, None]] = {
            "azure": examine_azure(settings, tell, connect=connect, source=source, tls=tls),
            "stores": _examine_stores(settings, client, tell),
        }
        if url is not None:
            parts["url"] = examine_broker(url, client, tell, tls=tls)
        tasks = {asyncio.create_task(part, name=f"doctor {name}"): name for name, part in parts.items()}
        try:
            await asyncio.wait(tasks, timeout=limit_s)
        finally:
            for task, name in tasks.items():
                if (cut_off := _outcome(task, name, limit_s)) is not None:
                    tell(cut_off)
            await asyncio.wait(tasks, timeout=2)
    return report


async def _examine_stores(settings: Settings, client: httpx.AsyncClient, tell: Callable[[Check], None]) -> None:
    tell(await examine_database(settings))
    if (zep := await examine_zep(settings, client)) is not None:
        tell(zep)


def _outcome(task: asyncio.Task[None], name: str, limit_s: float) -> Check | None:
    """What is to be told of a part that did not come to its end."""
    if not task.done():
        task.cancel()
        return Check(
            name,
            CheckStatus.FAILED,
            f"cut off after {limit_s:g} s; what was not told was not tried",
            remediation="see above",
        )
    if not task.cancelled() and (error := task.exception()) is not None:
        return Check(
            name, CheckStatus.FAILED, f"the check itself failed ({type(error).__name__})", remediation="report this"
        )
    return None
