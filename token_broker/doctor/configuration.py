"""What the settings alone tell: what is configured, and what looks odd although it is allowed."""

from datetime import UTC, datetime

from token_broker.doctor.checks import Check, CheckStatus
from token_broker.doctor.verdicts import judge_retirement, judge_transcription_model
from token_broker.settings import VOICE_LIVE_FIRST_VERSION, Settings, unknown_variables

__all__ = ["VOICE_LIVE_API_VERSIONS", "examine_configuration", "judge_api_version"]

# What a version is with Voice Live: docs/azure.md §6.1, which a test holds equal. `v1` is no version to the settings.
VOICE_LIVE_API_VERSIONS = {
    "2025-10-01": "stable",
    "2026-04-10": "stable",
    "2026-07-15": "stable",
    "2026-01-01-preview": "preview",
    "2026-06-01-preview": "preview",
    "2026-07-31-preview": "SIP only",
}
# Voice Live has none of these, so it is asked with its first stable one: docs/azure.md §2.2, §2.3.
_MINT_API_VERSIONS = frozenset({"2024-10-01-preview", "2025-04-01-preview", "2025-08-28"})


def examine_configuration(settings: Settings, *, looks_outside: bool) -> list[Check]:
    """Checks of the endpoint, the api-version, the models' retirement, and each variable that nobody reads."""
    target = settings.target
    if target is None:
        checks = [_no_endpoint(looks_outside=looks_outside)]
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
    odd = "is no variable of the broker's"
    checks += [
        Check(
            "configuration",
            CheckStatus.WARNING,
            line.replace("no such variable", odd),
            remediation="correct or remove it",
        )
        for line in unknown_variables()
    ]
    return checks


def _no_endpoint(*, looks_outside: bool) -> Check:
    if looks_outside:
        return Check(
            "configuration", CheckStatus.NOTE, "no Azure endpoint is configured here: only the URL is looked at"
        )
    remediation = "set AZURE_VOICELIVE_ENDPOINT and AZURE_VOICELIVE_KEY; `token-broker demo` needs neither"
    return Check("configuration", CheckStatus.FAILED, "no Azure endpoint is configured", remediation=remediation)


def judge_api_version(settings: Settings) -> Check:
    """What the api-version is with Voice Live, and whether it is one to rely on."""
    name, version = "api-version", settings.api_version
    if version in _MINT_API_VERSIONS:
        return Check(
            name, CheckStatus.OK, f"is the flat mints'; Voice Live is asked with {VOICE_LIVE_FIRST_VERSION}", version
        )
    remediation = (
        f"{VOICE_LIVE_FIRST_VERSION} is the safe choice; the mints below tell whether the resource takes this one"
    )
    match VOICE_LIVE_API_VERSIONS.get(version):
        case "stable":
            return Check(name, CheckStatus.OK, "is stable with Voice Live", version)
        case "preview":
            return Check(name, CheckStatus.NOTE, "is a preview of Voice Live's, which may change or end", version)
        case "SIP only":
            return Check(name, CheckStatus.WARNING, "is for Voice Live over SIP alone", version, remediation)
    return Check(name, CheckStatus.WARNING, "is none that this broker knows", version, remediation)
