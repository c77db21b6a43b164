"""Doctor on Entra: the cloud of the endpoint, the audience of callers' tokens, and the tenant's keys."""

from typing import Any

import httpx
import pytest

from tests.doctor.support import settings_for
from tests.security.fakes import TENANT, Key, Tenant
from tests.support.serving import serve_app
from token_broker.doctor.checks import CheckStatus
from token_broker.doctor.configuration import examine_configuration, judge_audiences, judge_cloud
from token_broker.doctor.hosts import examine_tenant

GUID = "11111111-2222-3333-4444-777777777777"
US = "https://x.openai.azure.us"
PUBLIC = "https://x.openai.azure.com"


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [(US, "AzureUSGovernment"), ("https://x.services.ai.azure.cn", "AzureChinaCloud")],
)
def test_other_cloud_is_told(endpoint: str, name: str) -> None:
    (check,) = judge_cloud(settings_for(endpoint, key=None))
    assert check.status is CheckStatus.NOTE
    assert check.finding.startswith(f"{name}: tokens for https://")
    assert f"az cloud set --name {name}" in check.remediation


@pytest.mark.parametrize(
    ("values", "what_to_do"),
    [
        ({"endpoint": US, "entra_scope": "https://ai.azure.com/.default"}, "unset AZURE_VOICELIVE_ENTRA_SCOPE"),
        ({"endpoint": US, "authority_host": "login.microsoftonline.com"}, "unset AZURE_AUTHORITY_HOST"),
        ({"endpoint": PUBLIC, "entra_scope": "https://management.azure.com/.default"}, "AZURE_VOICELIVE_ENTRA_SCOPE"),
        ({"endpoint": PUBLIC, "entra_scope": "https://ai.azure.com"}, "https://ai.azure.com/.default"),
        ({"endpoint": PUBLIC, "authority_host": "https://login.microsoftonline.us/"}, "AZURE_AUTHORITY_HOST"),
    ],
)
def test_entra_of_another_cloud_is_a_warning(values: dict[str, Any], what_to_do: str) -> None:
    endpoint = values.pop("endpoint")
    (check,) = [
        check
        for check in judge_cloud(settings_for(endpoint, key=None, **values))
        if check.status is CheckStatus.WARNING
    ]
    assert what_to_do in check.remediation


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"entra_scope": "https://cognitiveservices.azure.com/.default"},
        {"authority_host": "login.windows.net"},
        {"authority_host": "https://login.microsoftonline.com/"},
    ],
)
def test_entra_that_fits_is_no_finding(values: dict[str, Any]) -> None:
    assert judge_cloud(settings_for(PUBLIC, key=None, **values)) == []


def test_key_needs_no_entra() -> None:
    assert judge_cloud(settings_for(PUBLIC, entra_scope="https://other.example/.default")) == []


@pytest.mark.parametrize(
    ("audience", "status"),
    [
        (GUID, CheckStatus.OK),
        (f"api://{GUID}", CheckStatus.OK),
        ("voice", CheckStatus.WARNING),
        (f"api://{GUID}/.default", CheckStatus.WARNING),
        (f"api://{GUID}/access_as_user", CheckStatus.WARNING),
        ("00000003-0000-0000-c000-000000000000", CheckStatus.WARNING),
        ("https://graph.microsoft.com/", CheckStatus.WARNING),
        ("https://cognitiveservices.azure.com", CheckStatus.WARNING),
    ],
)
def test_audience_is_judged(audience: str, status: CheckStatus) -> None:
    check = judge_audiences([audience])
    assert check.status is status
    assert ("BROKER_ENTRA_AUDIENCE" in check.remediation) == (status is CheckStatus.WARNING)


def test_each_audience_of_a_list_is_judged() -> None:
    check = judge_audiences([GUID, "https://graph.microsoft.com"])
    assert check.status is CheckStatus.WARNING
    assert check.finding == "https://graph.microsoft.com is another service"


def test_audience_is_no_matter_without_entra() -> None:
    checks = examine_configuration(settings_for(PUBLIC, entra_audience=("voice",)), looks_outside=False)
    assert "audience" not in {check.name for check in checks}


@pytest.mark.parametrize(
    ("tenant_id", "status", "word"),
    [(TENANT, CheckStatus.OK, "its keys"), (GUID, CheckStatus.FAILED, "knows no such tenant")],
)
async def test_tenants_keys_are_asked_for(tenant_id: str, status: CheckStatus, word: str) -> None:
    key = Key.make("first")
    async with serve_app(Tenant(key, keys=[key.jwk()])) as url, httpx.AsyncClient(trust_env=False) as client:
        settings = settings_for(None, auth="entra", entra_tenant_id=tenant_id, entra_authority=url)
        check = await examine_tenant(settings, client)
    assert check is not None
    assert (check.status, word in check.finding) == (status, True)


async def test_silent_entra_fails() -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        settings = settings_for(None, auth="entra", entra_tenant_id=TENANT, entra_authority="http://127.0.0.1:1")
        check = await examine_tenant(settings, client)
    assert check is not None
    assert (check.status, "BROKER_OUTBOUND_PROXY" in check.remediation) == (CheckStatus.FAILED, True)
