"""Whether callers' tokens can be verified: the keys of BROKER_ENTRA_TENANT_ID, fetched as the broker does."""

import asyncio
import time

import httpx

from strategies.outbound_proxy import ProxyFailedError
from token_broker.doctor.checks import Check, CheckStatus
from token_broker.doctor.hosts import STEP_S, ms_since
from token_broker.settings import Settings

__all__ = ["examine_tenant", "judge_keys"]


async def examine_tenant(settings: Settings, client: httpx.AsyncClient) -> Check | None:
    """Asks Entra for the tenant's keys. None where callers sign in otherwise."""
    if settings.auth != "entra":
        return None
    url = f"{settings.callers_authority}/{settings.entra_tenant_id}/discovery/v2.0/keys"
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(STEP_S), client.stream("GET", url) as answer:
            return judge_keys(answer.status_code, ms_since(began_s))
    except (httpx.HTTPError, OSError, TimeoutError) as error:
        silent = f"{settings.callers_authority} does not answer"
        finding = str(error) if isinstance(error, ProxyFailedError) else silent
        remediation = (
            "let the broker reach Entra, through BROKER_OUTBOUND_PROXY if need be, and check BROKER_ENTRA_AUTHORITY"
        )
        return Check("tenant", CheckStatus.FAILED, finding, ms_since(began_s), remediation)


def judge_keys(status: int, value: str) -> Check:
    """What Entra's status for the tenant's keys means."""
    name = "tenant"
    if status == 200:  # noqa: PLR2004
        return Check(name, CheckStatus.OK, "its keys, which callers' tokens are verified with, are there", value)
    if status in {400, 404}:
        remediation = (
            "correct BROKER_ENTRA_TENANT_ID (az account show prints it), or BROKER_ENTRA_AUTHORITY for its cloud"
        )
        return Check(name, CheckStatus.FAILED, "Entra knows no such tenant", f"HTTP {status}", remediation)
    return Check(
        name, CheckStatus.FAILED, "Entra gives no keys", f"HTTP {status}", "try again; then look at its status"
    )
