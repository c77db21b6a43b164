"""What Azure's answers mean and what to do about each: pure functions from a result to a check."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from strategies.base import EphemeralGrant
from strategies.endpoint import is_loopback
from strategies.errors import (
    ApiVersionError,
    CredentialError,
    KeysDisabledError,
    MalformedError,
    MintError,
    MisconfiguredError,
    PermanentError,
    RateLimitedError,
    RejectedError,
    TimedOutError,
)
from strategies.models import is_classic_whisper, model_table
from token_broker.doctor.checks import Check, CheckStatus, KnownIssue
from token_broker.hooks.sender import HookAnswer, HookFailure

__all__ = [
    "AzureNames",
    "Probe",
    "judge_chain",
    "judge_clock",
    "judge_error",
    "judge_hook",
    "judge_key",
    "judge_mints",
    "judge_region",
    "judge_retirement",
    "judge_sockets",
    "judge_transcription_model",
]

_RETIREMENT_NOTICE_DAYS = 60  # time to get quota for another model, and to roll it out
_REFUSED_WHERE_DEPLOYED = frozenset({("gpt-realtime-2.1-mini", "swedencentral")})
_SKEW_FINE_S = 5  # the Date header has whole seconds, and the answer took time to arrive
_SKEW_FATAL_S = 300  # beyond five minutes Entra's tokens are rejected as not yet valid, or as expired
_KEY_REMEDIATION = (
    "use a key of the Cognitive Services account itself, not API Management's: "
    "az cognitiveservices account keys list --name <resource> --resource-group <group>"
)
_ROLE_REMEDIATION = (
    "az role assignment create --role 'Cognitive Services OpenAI User' --assignee <the identity's principal id> "
    "--scope <the resource's id>; Voice Live wants 'Cognitive Services User' too; it takes minutes to take effect"
)


@dataclass(frozen=True, slots=True)
class AzureNames:
    """The names that remediations fill in. `resource` is a placeholder where the host does not say it."""

    resource: str
    model: str
    api_version: str

    @classmethod
    def of(cls, host: str, *, model: str, api_version: str) -> "AzureNames":
        resource = host.partition(".")[0] if "azure." in host and not is_loopback(host) else "<resource>"
        return cls(resource, model, api_version)


@dataclass(frozen=True, slots=True)
class Probe:
    """One try of a mint route or a WebSocket. It succeeded where `error` is None.

    `took` is its time with the unit; `credential` is what it was asked with.
    """

    name: str
    took: str
    credential: str
    error: MintError | None = None
    grant: EphemeralGrant | None = None

    @property
    def lacks_route(self) -> bool:
        """Whether the resource does not have this route. A missing deployment is a 404 too, and is a fault."""
        return isinstance(self.error, PermanentError) and self.error.code != "DeploymentNotFound"


def judge_mints(probes: Sequence[Probe], names: AzureNames) -> list[Check]:
    """One check a mint route, in the chain's order."""
    winner = next((place for place, probe in enumerate(probes) if probe.error is None), None)
    checks = []
    for place, probe in enumerate(probes):
        name = f"mint {probe.name}"
        if probe.grant is not None and probe.grant.left_out:
            finding = f"Azure refuses {', '.join(probe.grant.left_out)}, and mints without"
            remediation = "take it out of the agent, or ask a resource or api-version that has it (docs/agents.md)"
            checks.append(Check(name, CheckStatus.WARNING, finding, probe.took, remediation=remediation))
            continue
        if probe.error is None:
            life = f", valid for {probe.grant.expires_in_s:.0f} s" if probe.grant else ""
            checks.append(Check(name, CheckStatus.OK, f"mints with {probe.credential}{life}", probe.took))
            continue
        check = judge_error(name, probe.error, names, probe.took)
        if probe.lacks_route and winner is not None:
            # Which routes a resource has depends on its kind, so a missing one is no fault while another mints.
            check = Check(name, CheckStatus.NOTE, f"{check.finding}; another one mints", check.value)
        elif isinstance(probe.error, RejectedError) and winner is not None and place > winner:
            check = replace(check, status=CheckStatus.WARNING)  # the chain never gets as far as this route
        checks.append(check)
    return checks


def judge_sockets(probes: Sequence[Probe], names: AzureNames) -> list[Check]:
    """One check an upstream of the proxy."""
    works = next((probe.name for probe in probes if probe.error is None), None)
    checks = []
    for probe in probes:
        name = f"socket {probe.name}"
        if probe.error is None:
            checks.append(
                Check(name, CheckStatus.OK, f"accepts the agent's session with {probe.credential}", probe.took)
            )
            continue
        check = judge_error(name, probe.error, names, probe.took)
        if probe.lacks_route and works is not None:
            remediation = f"take it out of BROKER_PROXY_UPSTREAMS, or leave it: {works} carries the talk"
            check = Check(name, CheckStatus.NOTE, check.finding, check.value, remediation)
        checks.append(check)
    return checks


def judge_chain(
    mints: Sequence[Probe], sockets: Sequence[Probe], *, proxy_is_last: bool, signals: bool = False
) -> Check:
    """Which strategy a token request is answered by. `signals`: the broker can signal Voice Live's WebRTC here."""
    for place, probe in enumerate(mints):
        if probe.error is None:
            asked_before = f" after {place} that fail" if place else ""
            return Check("plan", CheckStatus.OK, f"{probe.name} wins{asked_before}", probe.took)
    if signals:
        return Check("plan", CheckStatus.OK, "voice_live_webrtc: nothing mints, and media goes straight to Azure")
    carried = proxy_is_last and any(probe.error is None for probe in sockets)
    if carried and not mints:
        return Check("plan", CheckStatus.OK, "the proxy carries every talk: no other strategy is in the chain")
    if carried:
        # A failure although talks work: each of them is relayed here, which is costly unless it is meant.
        return Check(
            "plan",
            CheckStatus.FAILED,
            "nothing mints, so every talk goes through the proxy, which works",
            remediation="repair a mint above; if the proxy alone is meant, set BROKER_TOKEN_STRATEGIES=websocket_proxy",
        )
    return Check(
        "plan",
        CheckStatus.FAILED,
        "no plan works: nothing mints, and no upstream accepts the proxy's talk",
        remediation="see above",
    )


def judge_key(probes: Sequence[Probe]) -> Check | None:
    """Whether the key is this resource's; None where no key was tried."""
    tried = [probe for probe in probes if probe.credential == "the key"]
    if not tried:
        return None
    if any(isinstance(probe.error, KeysDisabledError) for probe in tried):
        entra_works = any(probe.credential == "Entra" and probe.error is None for probe in probes)
        return Check(
            "key",
            CheckStatus.WARNING if entra_works else CheckStatus.FAILED,
            "keys are switched off on this resource" + ("; Entra is used instead" if entra_works else ""),
            remediation="unset AZURE_VOICELIVE_KEY and set AZURE_VOICELIVE_AUTH=entra; give the identity its role",
            known_issue=None if entra_works else KnownIssue.UNAUTHORIZED,
        )
    if any(probe.error is None for probe in tried):
        return Check("key", CheckStatus.OK, "belongs to this resource")
    if any(isinstance(probe.error, MisconfiguredError) and probe.error.status == 401 for probe in tried):  # noqa: PLR2004
        return Check(
            "key",
            CheckStatus.FAILED,
            "is refused: it belongs to another resource, or was regenerated",
            remediation=_KEY_REMEDIATION,
            known_issue=KnownIssue.UNAUTHORIZED,
        )
    return Check("key", CheckStatus.NOTE, "no answer shows whether it belongs to this resource")


def judge_clock(skew_s: float | None) -> Check | None:
    """Judges our clock minus Azure's, in seconds. None where Azure named no time."""
    if skew_s is None:
        return None
    value = f"{skew_s:+.0f} s"
    if abs(skew_s) <= _SKEW_FINE_S:
        return Check("clock", CheckStatus.OK, "agrees with Azure's", value)
    remediation = "set this machine's clock (NTP)"
    if abs(skew_s) < _SKEW_FATAL_S:
        return Check("clock", CheckStatus.WARNING, "is off; minting allows for it", value, remediation)
    return Check("clock", CheckStatus.FAILED, "is so far off that Entra's tokens are rejected", value, remediation)


def judge_region(region: str | None, model: str) -> Check | None:
    """Whether the region has the model. None where Azure named no region.

    `model` is the deployment's name. If no known model has that name, the default model is looked up.
    """
    if region is None:
        return None
    table = model_table()
    wanted = table.find(model) or table.default("realtime")
    regions = table.region_names(wanted.name)
    known = {"".join(name.split()).lower(): name for name in regions}
    plain = "".join(region.split()).lower()
    if (wanted.name, plain) in _REFUSED_WHERE_DEPLOYED:
        finding = f"lets {wanted.name} be deployed, and refuses its sessions (docs/azure.md §7.2)"
        others = ", ".join(name for key, name in known.items() if (wanted.name, key) not in _REFUSED_WHERE_DEPLOYED)
        return Check("region", CheckStatus.WARNING, finding, known[plain], f"create a resource in {others}")
    if plain in known:
        return Check("region", CheckStatus.OK, f"has {wanted.name}", known[plain])
    return Check(
        "region",
        CheckStatus.WARNING,
        f"is not known to have {wanted.name}, as of {table.read_on}",
        # The region is a peer's text, of which a report shows letters, digits and blanks alone.
        "".join(character for character in region if character.isalnum() or character == " ")[:32],
        f"if the deployment can't be created, create a resource in {', '.join(regions)}",
    )


def judge_retirement(name: str, model: str, today: date) -> Check | None:
    """Whether the model retires soon. None where the deployment's name is not that of a model with a known date."""
    known = model_table().find(model)
    if known is None or not known.retires:
        return None
    day = known.retires[0]
    left_days = (day - today).days
    what = f"{known.name} {known.version}"
    if left_days > _RETIREMENT_NOTICE_DAYS:
        return Check(name, CheckStatus.OK, f"{what} is not near its retirement", day.isoformat())
    remediation = (
        "deploy another version or model (docs/azure.md §7.1), unless the deployment is of a newer one already"
    )
    finding = (
        "is retired, by Microsoft's schedule" if left_days < 0 else f"retires within {_RETIREMENT_NOTICE_DAYS} days"
    )
    return Check(name, CheckStatus.WARNING, f"{what} {finding}", day.isoformat(), remediation)


def judge_transcription_model(model: str, today: date) -> Check | None:
    """Whether GA accepts the transcription model, and for how long. None where its name says neither."""
    name = "transcription model"
    if not is_classic_whisper(model):
        return judge_retirement(name, model, today)
    other = model_table().default("transcription").name
    remediation = f"deploy {other}, and name it in AZURE_VOICELIVE_TRANSCRIPTION_MODEL; Voice Live is not affected"
    return Check(
        name,
        CheckStatus.WARNING,
        f"{model} is a classic whisper, which GA sessions do not accept",
        remediation=remediation,
    )


def judge_error(name: str, error: MintError, names: AzureNames, took: str) -> Check:
    """A failed check, with the known issue and the remediation."""
    value = f"HTTP {error.status}" if error.status is not None else took
    known_issue, remediation = _explain(error, names)
    return Check(
        name, CheckStatus.FAILED, str(error), value, remediation.replace("<resource>", names.resource), known_issue
    )


def _explain(error: MintError, names: AzureNames) -> tuple[KnownIssue | None, str]:
    match error:
        case TimedOutError():
            return KnownIssue.CONNECTION_HANG, (
                "check that the deployment exists and that no firewall drops the packets. A managed identity without "
                "its role can hang too; a key (AZURE_VOICELIVE_KEY) tells the two apart"
            )
        case CredentialError():
            return KnownIssue.CONNECTION_HANG, (
                "assign a managed identity (AZURE_CLIENT_ID names a user-assigned one), or set AZURE_VOICELIVE_KEY"
            )
        case RateLimitedError():
            return None, f"raise the quota of the deployment {names.model}, or lower BROKER_RATE_LIMIT_PER_MINUTE"
        case KeysDisabledError():
            return KnownIssue.UNAUTHORIZED, "set AZURE_VOICELIVE_AUTH=entra, and give the identity its role"
        case MisconfiguredError(status=401, code="PermissionDenied"):
            return KnownIssue.UNAUTHORIZED, _ROLE_REMEDIATION
        case MisconfiguredError(status=401):
            return KnownIssue.UNAUTHORIZED, _KEY_REMEDIATION
        case MisconfiguredError():
            return (
                KnownIssue.UNAUTHORIZED,
                f"check the resource's network rules; or the role is missing: {_ROLE_REMEDIATION}",
            )
        case ApiVersionError():
            return KnownIssue.BAD_REQUEST, (
                f"set AZURE_VOICELIVE_API_VERSION to one that the resource accepts (it is {names.api_version}): "
                "2025-10-01, or 2024-10-01-preview for the flat mints"
            )
        case PermanentError():
            return KnownIssue.MODEL_NOT_FOUND, (
                f"check AZURE_VOICELIVE_ENDPOINT, and that {names.model} is deployed: az cognitiveservices account "
                "deployment list --name <resource> --resource-group <group>; the model is in "
                f"{', '.join(model_table().region_names(names.model))}"
            )
        case RejectedError():
            return KnownIssue.BAD_REQUEST, (
                "check the endpoint and its kind (AZURE_VOICELIVE_ENDPOINT, AZURE_VOICELIVE_ENDPOINT_KIND), and the "
                "deployment's model; then try without the agents' own voices and tools"
            )
        case MalformedError(status=status) if status is not None and 300 <= status < 400:  # noqa: PLR2004
            return None, "give the resource's own host as AZURE_VOICELIVE_ENDPOINT: this address redirects"
        case MalformedError():
            return None, "something other than Azure answers at this address: check the endpoint, gateways and proxies"
        case _ if error.status is not None:
            return KnownIssue.SERVER_ERROR, (
                "Azure fails: look at its status page and try again; if it lasts, report apim-request-id "
                f"{error.request_id or '(none was sent)'}"
            )
        case _:
            return None, (
                "check the network and the lines above; name a private certificate authority in SSL_CERT_FILE"
            )


_HOOK_FAILURES: dict[HookFailure, tuple[str, str]] = {
    "refused": ("its address is link-local, or a metadata service's", "name the server by another address"),
    "unreachable": ("can't be reached", "check its name, its port, its certificate and the proxy"),
    "timeout": ("does not answer in time", "answer a ping at once, before anything else"),
    "redirect": ("answers with a redirect, which is never followed", "name the URL that it points to"),
    "too_large": ("answers a ping with more than 64 KiB", "answer it with an empty body"),
    "broken": ("breaks the connection off, or answers as no HTTP server does", "look at its log"),
}


def judge_hook(name: str, answer: HookAnswer, value: str) -> Check:
    """What a hook's answer to a signed ping means; `name` says which hook, such as `elena: tool order_status`."""
    name = f"hook {name}"
    if answer.ok:
        return Check(name, CheckStatus.OK, "takes the signature", value)
    if answer.failure is not None:
        finding, remediation = _HOOK_FAILURES[answer.failure]
        return Check(name, CheckStatus.FAILED, finding, value, remediation)
    if answer.status in {401, 403}:
        remediation = "give it the same BROKER_TOOLS_SECRET; check its clock, and the headers of its `run`"
        return Check(name, CheckStatus.FAILED, f"refuses the ping (HTTP {answer.status})", value, remediation)
    remediation = 'check its URL; it should answer {"type": "ping"} with 200'
    return Check(name, CheckStatus.FAILED, f"answers the ping with HTTP {answer.status}", value, remediation)
