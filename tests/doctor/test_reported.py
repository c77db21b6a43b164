"""Misconfigurations that people reported: the doctor names each, and says in one line what to do."""

from collections.abc import AsyncIterator, Callable
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from pydantic import SecretStr

from tests.doctor.support import diagnose, named, settings_for
from token_broker.doctor.checks import Check, CheckStatus
from token_broker.doctor.configuration import examine_configuration, judge_cloud
from token_broker.doctor.stores import examine_zep
from token_broker.doctor.verdicts import judge_region, judge_transcription_model
from token_broker.settings import Settings

TODAY = date(2026, 11, 28)
US = "https://x.services.ai.azure.us"
BAD = {CheckStatus.WARNING, CheckStatus.FAILED}


def configured(name: str, **values: Any) -> Check | None:
    """The check of that name about these settings alone."""
    checks = examine_configuration(settings_for("http://127.0.0.1:1", **values), looks_outside=False)
    return next((check for check in checks if check.name == name), None)


def cloud(settings: Settings) -> Check | None:
    return next((check for check in judge_cloud(settings) if check.status in BAD), None)


ENTRA = {"auth": "entra", "entra_tenant_id": "t"}
REPORTED: dict[str, tuple[Callable[[], Check | None], str]] = {
    "B29 audience of no form": (lambda: configured("audience", entra_audience="api://voice", **ENTRA), "AUDIENCE"),
    "B34 scope of another cloud": (
        lambda: cloud(settings_for(US, key=None, entra_scope="https://ai.azure.com/.default")),
        "unset AZURE_VOICELIVE_ENTRA_SCOPE",
    ),
    "B34 authority of another cloud": (
        lambda: cloud(settings_for(US, key=None, authority_host="login.microsoftonline.com")),
        "unset AZURE_AUTHORITY_HOST",
    ),
    "classic whisper on GA": (lambda: judge_transcription_model("whisper-1", TODAY), "gpt-4o-mini-transcribe"),
    "region without the model": (lambda: judge_region("West US 3", "gpt-realtime"), "Sweden Central"),
}


def says_what_to_do(check: Check | None, word: str) -> None:
    assert check is not None
    assert check.status in BAD
    assert word in check.remediation
    assert "\n" not in f"{check.finding}{check.remediation}"
    assert len(check.remediation) <= 240


@pytest.mark.parametrize("row", REPORTED)
def test_reported_setting_is_named(row: str) -> None:
    examine, word = REPORTED[row]
    says_what_to_do(examine(), word)


async def test_way_out_by_a_proxy_alone_is_hinted_at() -> None:
    # B10; with a proxy that is set, tests/doctor/test_ways.py.
    report = await diagnose(settings_for("https://nobody.invalid"))
    says_what_to_do(named(report, "dns nobody.invalid"), "BROKER_OUTBOUND_PROXY")


async def test_malformed_agents_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "agents.toml").write_text("default = 'y'\n[agents.y]\nname = 'Y'\nvoice = 'alloy'\n")
    report = await diagnose(settings_for("http://127.0.0.1:1", agents_file=tmp_path / "agents.toml"))
    check = named(report, "agents")
    assert check.status is CheckStatus.FAILED
    assert "\n" not in check.remediation
    assert check.remediation


@pytest.fixture
async def zep_without_routes() -> AsyncIterator[str]:
    """Something that answers everything with 404, as another service at that address does."""
    runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_zep_without_routes_is_told(zep_without_routes: str) -> None:
    # N8
    settings = settings_for(None, zep_api_key=SecretStr("key"), zep_api_url=zep_without_routes)
    async with httpx.AsyncClient() as client:
        says_what_to_do(await examine_zep(settings, client), "ZEP_API_URL")
