"""What the settings alone show: what is configured, and what is allowed but unlikely to be meant."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from strategies.endpoint import cloud_of
from token_broker.azure import build_pool
from token_broker.doctor.checks import Check, CheckStatus, about_resource
from token_broker.doctor.verdicts import judge_retirement, judge_transcription_model
from token_broker.security.entra_jwt import audience_forms
from token_broker.sessions.agents import AgentsFileError, ensure_resources, load_agents
from token_broker.settings import (
    VOICE_LIVE_FIRST_VERSION,
    ResourceSettings,
    Settings,
    SettingsError,
    unknown_variables,
    unused_proxies,
)
from token_broker.tools.configured_hooks import hook_secrets

__all__ = [
    "VOICE_LIVE_API_VERSIONS",
    "examine_configuration",
    "judge_api_version",
    "judge_audiences",
    "judge_cloud",
    "judge_hook_secrets",
    "judge_proxy",
    "judge_residency",
]

_AUDIENCE = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[a-z][a-z0-9+.-]*://[^\s,]+")
# Microsoft Graph's tokens cannot be verified by anybody else; Azure's are for Azure.
_FOREIGN_AUDIENCES = frozenset({
    "00000003-0000-0000-c000-000000000000", "https://graph.microsoft.com", "https://management.azure.com",
    "https://ai.azure.com", "https://cognitiveservices.azure.com",
})  # fmt: skip
_SCOPE_ENDINGS = frozenset({".default", "access_as_user", "user_impersonation"})

# The state of each version with Voice Live, as docs/azure.md §6.1 has it (a test compares the two). The settings do not
# accept `v1`, so it is left out.
VOICE_LIVE_API_VERSIONS = {
    "2025-05-01-preview": "replaced",
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
    if not settings.resources and looks_outside:
        # With --url the doctor may run on any machine: that needs no Azure endpoint of its own.
        finding = "no Azure endpoint is configured here: only the URL is checked"
        checks = [Check("configuration", CheckStatus.NOTE, finding)]
    elif not settings.resources:
        remediation = "set AZURE_VOICELIVE_ENDPOINT and AZURE_VOICELIVE_KEY; `token-broker demo` needs neither"
        finding = "no Azure endpoint is configured"
        checks = [Check("configuration", CheckStatus.FAILED, finding, remediation=remediation)]
    else:
        is_only = len(settings.resources) == 1
        checks = [
            about_resource(check, resource, is_only=is_only)
            for resource in settings.resources
            for check in _examine_resource(resource)
        ]
        checks += judge_residency(settings)
    checks += judge_hook_secrets(settings)
    if settings.auth == "entra":
        checks.append(judge_audiences(settings.entra_audience))
    checks += judge_proxy(settings)
    for line in unknown_variables():
        finding = line.replace("no such variable", "is not a variable of the broker")
        checks.append(Check("configuration", CheckStatus.WARNING, finding, remediation="correct or remove it"))
    return checks


def _examine_resource(resource: ResourceSettings) -> list[Check]:
    """Checks what one resource is asked with."""
    settings, target = resource.settings, resource.target
    credential = "the key" if settings.uses_key else "Entra"
    finding = f"{target.kind} endpoint {target.base}, deployment {settings.model}, asked with {credential}"
    checks = [Check("configuration", CheckStatus.OK, finding), judge_api_version(settings)]
    today = datetime.now(UTC).date()
    retirements = (
        judge_retirement("model", settings.model, today),
        judge_transcription_model(settings.transcription_model, today),
    )
    return [*checks, *(check for check in retirements if check is not None), *judge_cloud(settings)]


def judge_residency(settings: Settings) -> list[Check]:
    """Agents that are kept to zones: whether any resource is left to them, and what a zone does not promise."""
    name = "residency"
    try:
        agents = load_agents(settings.agents_file)
        ensure_resources(agents, build_pool(settings).resources)
    except AgentsFileError as error:
        if str(error).startswith("agents."):  # the other faults of the file are told by the check that uses it
            return [
                Check(name, CheckStatus.FAILED, line, remediation="correct either") for line in str(error).splitlines()
            ]
        return []
    kept = [agent.id for agent in agents.values() if agent.zones]
    if not kept:
        return []
    finding = f"{', '.join(kept)}: kept to zones, yet a Global deployment may process outside its geography"
    remediation = "deploy Data Zone or Regional models where the law asks for it, if Azure offers them for the model"
    return [Check(name, CheckStatus.NOTE, finding, remediation=remediation)]


def judge_hook_secrets(settings: Settings) -> list[Check]:
    """Whether the agents' hooks can be signed: without that the broker does not start."""
    try:
        hook_secrets(settings, load_agents(settings.agents_file).values())
    except AgentsFileError:  # told by the check that uses the file
        return []
    except SettingsError as error:
        remediation = "set it, here and at the servers that are posted to (docs/tools.md)"
        return [Check("hooks", CheckStatus.FAILED, line, remediation=remediation) for line in error.lines]
    return []


def judge_cloud(settings: Settings) -> list[Check]:
    """Which cloud the endpoint is in, where it is not the public one; and Entra settings that do not fit it."""
    checks = []
    cloud, name = settings.cloud, "cloud"
    if cloud is not cloud_of():
        finding = f"{cloud.name}: tokens for {settings.azure_scope} from {settings.azure_authority}"
        remediation = f"az cloud set --name {cloud.name} before the az commands of this report"
        checks.append(Check(name, CheckStatus.NOTE, finding, remediation=remediation))
    if settings.uses_key:
        return checks
    if settings.azure_scope not in cloud.scopes:
        remediation = f"unset AZURE_VOICELIVE_ENTRA_SCOPE, or set one of {', '.join(sorted(cloud.scopes))}"
        finding = f"tokens for another audience are asked for than {cloud.name} takes: {settings.azure_scope}"
        checks.append(Check(name, CheckStatus.WARNING, finding, remediation=remediation))
    if not cloud.has_authority(settings.azure_authority):
        remediation = f"unset AZURE_AUTHORITY_HOST, or set {cloud.authority}"
        finding = f"tokens are asked of another Entra than {cloud.name}'s: {settings.azure_authority}"
        checks.append(Check(name, CheckStatus.WARNING, finding, remediation=remediation))
    return checks


def judge_audiences(audiences: Sequence[str]) -> Check:
    """Which audiences callers' access tokens may have, and whether any token can have them at all."""
    name = "audience"
    for audience in audiences:
        is_foreign = audience.rstrip("/") in _FOREIGN_AUDIENCES
        if is_foreign or audience.rpartition("/")[2] in _SCOPE_ENDINGS or not _AUDIENCE.fullmatch(audience):
            finding = f"{audience} is {'another service' if is_foreign else 'no audience of a token'}"
            remediation = (
                "set BROKER_ENTRA_AUDIENCE to the id of your own app registration, or to its URI api://<client id>; "
                "clients ask for api://<client id>/.default"
            )
            return Check(name, CheckStatus.WARNING, finding, remediation=remediation)
    forms = [audience_forms(audience) for audience in audiences]
    accepted = ", ".join(dict.fromkeys(form for each in forms for form in each))
    finding = f"callers' access tokens are taken for the audiences {accepted}"
    if any(len(each) > 1 for each in forms):
        return Check(name, CheckStatus.OK, finding)
    return Check(
        name,
        CheckStatus.WARNING,
        f"{finding}; v2 tokens name the application's id instead of its URI, and get 401",
        remediation="list the application's id in BROKER_ENTRA_AUDIENCE too, unless its tokens are v1; the broker logs "
        "the audience of a token that it refuses (token_for_another_audience)",
    )


def judge_proxy(settings: Settings) -> list[Check]:
    """What leads out of this network, and a proxy that is known and not used."""
    if settings.proxy is not None:
        bypassed = f", but for {', '.join(settings.no_proxy)} and loopback" if settings.no_proxy else ""
        return [Check("proxy", CheckStatus.OK, f"hosts are asked through {settings.proxy.url}{bypassed}")]
    return [
        Check("proxy", CheckStatus.NOTE, f"{proxy.url} is not used", remediation=f"if hosts need it, {what_to_do}")
        for proxy, what_to_do in unused_proxies(settings)
    ]


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
        case "replaced":
            finding = f"is older than the first stable one: Voice Live is asked with {VOICE_LIVE_FIRST_VERSION}"
            return Check(name, CheckStatus.NOTE, finding, version)
        case "SIP only":
            return Check(name, CheckStatus.WARNING, "is for Voice Live over SIP alone", version, remediation)
    return Check(name, CheckStatus.WARNING, "is not a version that this broker knows", version, remediation)
