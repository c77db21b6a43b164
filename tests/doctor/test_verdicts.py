"""Verdicts on what the simulator does not show: denied access, regions, retirements, the exit code."""

from datetime import UTC, date, datetime

import pytest
from pydantic import SecretStr

from strategies.base import EphemeralGrant
from strategies.errors import KeysDisabledError, MintError, MisconfiguredError
from tests.doctor.support import settings_for
from token_broker.doctor.checks import Check, CheckStatus, KnownIssue, Report
from token_broker.doctor.configuration import examine_configuration
from token_broker.doctor.verdicts import (
    AzureNames,
    Probe,
    judge_error,
    judge_key,
    judge_mints,
    judge_region,
    judge_retirement,
    judge_transcription_model,
)

APPLICATION = "0cfd7d1e-8c3f-4b6a-9d55-2f8f1c0b7a11"
AZURE = AzureNames.of("zimax.openai.azure.com", model="gpt-realtime", api_version="2025-10-01")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MisconfiguredError("x", status=403), ["network rules", "az role assignment create"]),
        (MisconfiguredError("x", status=401, code="PermissionDenied"), ["Cognitive Services OpenAI User"]),
        (MisconfiguredError("x", status=401), ["--name zimax"]),
        (KeysDisabledError("x", status=403), ["AZURE_VOICELIVE_AUTH=entra"]),
    ],
)
def test_refused_credential_is_explained(error: MintError, words: list[str]) -> None:
    check = judge_error("mint ga", error, AZURE, "5 ms")
    assert check.known_issue is KnownIssue.UNAUTHORIZED
    assert all(word in check.remediation for word in words)


@pytest.mark.parametrize(
    ("region", "status"),
    [
        ("East US 2", CheckStatus.OK),
        ("eastus2", CheckStatus.OK),
        ("Sweden Central", CheckStatus.OK),
        ("South India", CheckStatus.OK),
        ("West US 3", CheckStatus.WARNING),
        ("West Europe", CheckStatus.WARNING),
        ("<script>", CheckStatus.WARNING),
    ],
)
def test_region_is_judged(region: str, status: CheckStatus) -> None:
    check = judge_region(region, "my-deployment")
    assert check is not None
    assert check.status is status
    assert "<" not in check.value


@pytest.mark.parametrize(
    ("region", "status"),
    [
        ("Sweden Central", CheckStatus.WARNING),
        ("swedencentral", CheckStatus.WARNING),
        ("East US 2", CheckStatus.OK),
        ("West Europe", CheckStatus.WARNING),
    ],
)
def test_region_that_refuses_a_model_is_told(region: str, status: CheckStatus) -> None:
    check = judge_region(region, "gpt-realtime-2.1-mini")
    assert check is not None
    assert check.status is status
    assert "Sweden Central" not in check.remediation or region == "West Europe"


@pytest.mark.parametrize(
    ("audiences", "status", "accepted"),
    [
        ([f"api://{APPLICATION}"], CheckStatus.OK, f"{APPLICATION}, api://{APPLICATION}"),
        ([APPLICATION, "api://voice"], CheckStatus.OK, f"{APPLICATION}, api://{APPLICATION}, api://voice"),
        (["api://voice"], CheckStatus.WARNING, "api://voice"),  # v2 tokens never carry it
    ],
)
def test_accepted_audiences_are_said(audiences: list[str], status: CheckStatus, accepted: str) -> None:
    settings = settings_for("http://127.0.0.1:1", auth="entra", entra_tenant_id="t", entra_audience=",".join(audiences))
    (check,) = (check for check in examine_configuration(settings, looks_outside=False) if check.name == "audience")
    assert check.status is status
    assert f"the audiences {accepted}" in check.finding
    assert ("BROKER_ENTRA_AUDIENCE" in check.remediation) == (status is CheckStatus.WARNING)


def test_unnamed_region_is_not_guessed() -> None:
    assert judge_region(None, "gpt-realtime") is None


@pytest.mark.parametrize(
    ("today", "status", "word"),
    [
        (date(2026, 11, 28), CheckStatus.OK, "not near"),
        (date(2027, 1, 1), CheckStatus.WARNING, "within 60 days"),
        (date(2027, 3, 2), CheckStatus.WARNING, "within 60 days"),
        (date(2027, 3, 3), CheckStatus.WARNING, "is retired"),
    ],
)
def test_near_retirement_is_a_warning(today: date, status: CheckStatus, word: str) -> None:
    check = judge_retirement("model", "gpt-realtime", today)
    assert check is not None
    assert (check.status, check.value) == (status, "2027-03-02")
    assert word in check.finding
    assert ("azure.md" in check.remediation) == (status is CheckStatus.WARNING)


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("gpt-realtime-2", CheckStatus.WARNING),
        ("gpt-realtime-mini", CheckStatus.WARNING),
        ("gpt-realtime-2.1", CheckStatus.OK),
    ],
)
def test_retired_model_is_a_warning(model: str, status: CheckStatus) -> None:
    check = judge_retirement("model", model, date(2026, 11, 28))
    assert check is not None
    assert check.status is status


@pytest.mark.parametrize("name", ["my-deployment", "gpt-realtime-whisper"])
def test_unknown_retirement_is_not_guessed(name: str) -> None:
    assert judge_retirement("model", name, date(2026, 11, 28)) is None


@pytest.mark.parametrize("name", ["whisper", "whisper-1", "Whisper-001"])
def test_classic_whisper_is_a_warning(name: str) -> None:
    check = judge_transcription_model(name, date(2026, 11, 28))
    assert check is not None
    assert check.status is CheckStatus.WARNING
    assert "gpt-4o-mini-transcribe" in check.remediation


@pytest.mark.parametrize("name", ["my-whisper", "gpt-realtime-whisper", "whisper-eu"])
def test_other_whisper_names_are_not_judged(name: str) -> None:
    assert judge_transcription_model(name, date(2026, 11, 28)) is None


def test_transcription_retirement_is_a_warning() -> None:
    check = judge_transcription_model("gpt-4o-mini-transcribe", date(2027, 6, 1))
    assert check is not None
    assert (check.status, check.value) == (CheckStatus.WARNING, "2027-06-15")


def test_key_without_an_answer_is_a_note() -> None:
    check = judge_key([Probe("ga", "5 ms", "the key", MintError("x"))])
    assert check is not None
    assert check.status is CheckStatus.NOTE


def test_mint_without_a_field_is_a_warning() -> None:
    soon = datetime.now(UTC)
    grant = EphemeralGrant("ga", SecretStr("ek"), soon, 60, 0, "https://x", "ga", "marin", left_out=("session.tools",))
    (check,) = judge_mints([Probe("ga", "5 ms", "the key", grant=grant)], AZURE)
    assert (check.status, "session.tools" in check.finding) == (CheckStatus.WARNING, True)


def test_resource_is_named_only_if_known() -> None:
    assert AzureNames.of("127.0.0.1", model="m", api_version="v").resource == "<resource>"
    assert AzureNames.of("gateway.contoso.com", model="m", api_version="v").resource == "<resource>"


@pytest.mark.parametrize(
    ("statuses", "healthy"),
    [
        ([], True),
        ([CheckStatus.OK, CheckStatus.NOTE, CheckStatus.WARNING], True),
        ([CheckStatus.OK, CheckStatus.FAILED], False),
    ],
)
def test_only_failures_make_a_report_unhealthy(statuses: list[CheckStatus], healthy: bool) -> None:
    assert Report([Check("x", status, "y") for status in statuses]).healthy is healthy
