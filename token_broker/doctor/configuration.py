"""What the settings alone tell: what is configured, and what looks odd although it is allowed."""

from datetime import UTC, datetime

from token_broker.doctor.checks import Check, Mark
from token_broker.doctor.verdicts import judge_retirement, judge_transcription_model
from token_broker.settings import Settings, unknown_variables

__all__ = ["examine_configuration"]

# docs/azure.md §2.2, §2.3, §6.1
KNOWN_API_VERSIONS = frozenset(
    {
        "2024-10-01-preview",
        "2025-04-01-preview",
        "2025-08-28",
        "2025-10-01",
        "2026-01-01-preview",
        "2026-04-10",
        "2026-07-15",
    }
)


def examine_configuration(settings: Settings, *, looks_outside: bool) -> list[Check]:
    """Checks of the endpoint, the api-version, the models' retirement, and each variable that nobody reads."""
    target = settings.target
    if target is None:
        checks = [_no_endpoint(looks_outside=looks_outside)]
    else:
        credential = "the key" if settings.uses_key else "Entra"
        finding = f"{target.kind} endpoint {target.base}, deployment {settings.model}, asked with {credential}"
        checks = [Check("configuration", Mark.OK, finding), _api_version(settings.api_version)]
        today = datetime.now(UTC).date()
        retirements = (
            judge_retirement("model", settings.model, today),
            judge_transcription_model(settings.transcription_model, today),
        )
        checks += [check for check in retirements if check is not None]
    odd = "is no variable of the broker's"
    checks += [
        Check("configuration", Mark.WARNING, line.replace("no such variable", odd), mend="correct or remove it")
        for line in unknown_variables()
    ]
    return checks


def _no_endpoint(*, looks_outside: bool) -> Check:
    if looks_outside:
        return Check("configuration", Mark.NOTE, "no Azure endpoint is configured here: only the URL is looked at")
    mend = "set AZURE_VOICELIVE_ENDPOINT and AZURE_VOICELIVE_KEY; `token-broker demo` needs neither"
    return Check("configuration", Mark.FAILED, "no Azure endpoint is configured", mend=mend)


def _api_version(version: str) -> Check:
    if version in KNOWN_API_VERSIONS:
        return Check("api-version", Mark.OK, "is known", version)
    mend = "2025-10-01 is the safe choice; the mints below tell whether the resource takes this one"
    return Check("api-version", Mark.WARNING, "is none that this broker knows", version, mend)
