"""What the settings alone show: what is configured, and what is allowed but unlikely to be meant."""

from collections.abc import Sequence
from datetime import UTC, datetime

from token_broker.doctor.checks import Check, CheckStatus
from token_broker.doctor.verdicts import judge_retirement, judge_transcription_model
from token_broker.security.entra_jwt import audience_forms
from token_broker.settings import VOICE_LIVE_FIRST_VERSION, Settings, unknown_variables

__all__ = ["VOICE_LIVE_API_VERSIONS", "examine_configuration", "judge_api_version", "judge_audiences"]

# The state of each version with Voice Live, as docs/azure.md §6.1 has it (a test compares the two). The settings do not
# accept `v1`, so it is left out.
VOICE_LIVE_API_VERSIONS = {
    "2025-10-01": "stable",
    "2026-04-10": "stable",
    "2026-07-15": "stable",
    "2026-01-01-preview": "preview",
    "2026-06-01-preview": "preview",
    "2026-07-31-preview": "SIP only",
}
# Voice Live lacks these versions. The connector asks it with its first stable one then: docs/azure.md §2.2, §2.3.
_MINT_API_VERSIONS = frozenset({"2024-10-01-preview", "2025-04-01-preview", "2025-08-28"})


def examine_configuration(settings: Settings, *, looks_outside: bool) -> list[Check]:
    """Checks the endpoint, the api-version, the models' retirement, the audiences of callers, and unknown variables."""
    target = settings.target
    if target is None and looks_outside:
        # With --url the doctor may run on any machine: that needs no Azure endpoint of its own.
        finding = "no Azure endpoint is configured here: only the URL is checked"
        checks = [Check("configuration", CheckStatus.NOTE, finding)]
    elif target is None:
        remediation = "set AZURE_VOICELIVE_ENDPOINT and AZURE_VOICELIVE_KEY; `token-broker demo` needs neither"
        finding = "no Azure endpoint is configured"
        checks = [Check("configuration", CheckStatus.FAILED, finding, remediation=remediation)]
    else:
        credential = "the key" if settings.uses_key else "Entra"
        finding = f"{target.kind} endpoint {target.base}, deployment {settings.model}, asked with {credential}"
        checks = [Check("configuration", CheckStatus.OK, finding), judge_api_version(settings)]
        today = datetime.now(UTC).date()
        retirements = (
            judge_retirement("model", settings.model, today),
            judge_transcription_model(settings.transcription_model, today),
        )
        checks += [check for check in retirements if check is not None]
    if settings.auth == "entra":
        checks.append(judge_audiences(settings.entra_audience))
    for line in unknown_variables():
        finding = line.replace("no such variable", "is not a variable of the broker")
        checks.append(Check("configuration", CheckStatus.WARNING, finding, remediation="correct or remove it"))
    return checks


def judge_audiences(audiences: Sequence[str]) -> Check:
    """Which audiences callers' access tokens may have, and whether v2 tokens can be among them."""
    forms = [audience_forms(audience) for audience in audiences]
    accepted = ", ".join(dict.fromkeys(form for each in forms for form in each))
    finding = f"callers' access tokens are taken for the audiences {accepted}"
    if any(len(each) > 1 for each in forms):
        return Check("audience", CheckStatus.OK, finding)
    return Check(
        "audience",
        CheckStatus.WARNING,
        f"{finding}; v2 tokens name the application's id instead of its URI, and get 401",
        remediation="list the application's id in BROKER_ENTRA_AUDIENCE too, unless its tokens are v1; the broker logs "
        "the audience of a token that it refuses (token_for_another_audience)",
    )


def judge_api_version(settings: Settings) -> Check:
    """What the api-version is to Voice Live, and whether a deployment should rely on it."""
    name, version = "api-version", settings.api_version
    if version in _MINT_API_VERSIONS:
        return Check(
            name, CheckStatus.OK, f"serves the flat mints; Voice Live is asked with {VOICE_LIVE_FIRST_VERSION}", version
        )
    remediation = (
        f"{VOICE_LIVE_FIRST_VERSION} is the safe choice; the mints below tell whether the resource takes this one"
    )
    match VOICE_LIVE_API_VERSIONS.get(version):
        case "stable":
            return Check(name, CheckStatus.OK, "is stable with Voice Live", version)
        case "preview":
            return Check(name, CheckStatus.NOTE, "is a preview of Voice Live, which may change or end", version)
        case "SIP only":
            return Check(name, CheckStatus.WARNING, "is for Voice Live over SIP alone", version, remediation)
    return Check(name, CheckStatus.WARNING, "is not a version that this broker knows", version, remediation)
