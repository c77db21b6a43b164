"""What Azure's answers mean, and what to do about each: pure functions from a result to a check."""

from collections.abc import Sequence
from dataclasses import dataclass
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

__all__ = [
    "Azure",
    "Probe",
    "judge_chain",
    "judge_clock",
    "judge_error",
    "judge_key",
    "judge_mints",
    "judge_region",
    "judge_retirement",
    "judge_sockets",
    "judge_transcription_model",
    "milliseconds",
]

_RETIREMENT_NOTICE_DAYS = 60
_SKEW_FINE_S = 5
_SKEW_FATAL_S = 300  # Entra's tokens are no longer believed


@dataclass(frozen=True, slots=True)
class Azure:
    """What the remediations name: the resource, the deployment, the api-version. `resource` is a placeholder if unknown."""

    resource: str
    model: str
    api_version: str

    @classmethod
    def of(cls, host: str, *, model: str, api_version: str) -> "Azure":
        resource = host.partition(".")[0] if "azure." in host and not is_loopback(host) else "<resource>"
        return cls(resource, model, api_version)


@dataclass(frozen=True, slots=True)
class Probe:
    """One try of a mint route or a WebSocket. `error` None is success; `credential` is what it was asked with."""

    name: str
    duration_ms: float
    credential: str
    error: MintError | None = None
    grant: EphemeralGrant | None = None


def milliseconds(duration_ms: float) -> str:
    """A time as reports show it."""
    return f"{duration_ms:.0f} ms"


def judge_mints(probes: Sequence[Probe], azure: Azure) -> list[Check]:
    """A check a mint route, in the chain's order.

    A route that the resource lacks is no known_issue while another mints: resources differ. A refusal of the request
    counts as known_issue only before the route that wins, since the ones behind it are never asked. All else does always.
    """
    winner = next((place for place, probe in enumerate(probes) if probe.error is None), None)
    return [
        _judge_mint(probe, azure, minted_elsewhere=winner is not None, behind_the_winner=_is_behind(place, winner))
        for place, probe in enumerate(probes)
    ]


def _is_behind(place: int, winner: int | None) -> bool:
    return winner is not None and place > winner


def _judge_mint(probe: Probe, azure: Azure, *, minted_elsewhere: bool, behind_the_winner: bool) -> Check:
    name = f"mint {probe.name}"
    if probe.error is None:
        left = f", good for {probe.grant.expires_in_s:.0f} s" if probe.grant else ""
        return Check(name, CheckStatus.OK, f"mints with {probe.credential}{left}", milliseconds(probe.duration_ms))
    check = judge_error(name, probe.error, azure, probe.duration_ms)
    lacks_route = isinstance(probe.error, PermanentError) and probe.error.code != "DeploymentNotFound"
    if lacks_route and minted_elsewhere:
        return Check(name, CheckStatus.NOTE, f"{check.finding}; another one mints", check.value)
    if isinstance(probe.error, RejectedError) and behind_the_winner:
        return Check(name, CheckStatus.WARNING, check.finding, check.value, check.remediation, check.known_issue)
    return check


def judge_sockets(probes: Sequence[Probe], azure: Azure) -> list[Check]:
    """A check an upstream of the proxy; one that the resource lacks is no known_issue while the other takes the talk."""
    works = any(probe.error is None for probe in probes)
    checks = []
    for probe in probes:
        name = f"socket {probe.name}"
        if probe.error is None:
            finding = f"takes the agent's session with {probe.credential}"
            checks.append(Check(name, CheckStatus.OK, finding, milliseconds(probe.duration_ms)))
            continue
        check = judge_error(name, probe.error, azure, probe.duration_ms)
        if isinstance(probe.error, PermanentError) and probe.error.code != "DeploymentNotFound" and works:
            remediation = f"take it out of BROKER_PROXY_UPSTREAMS, or leave it: {probes[-1].name} carries the talk"
            check = Check(name, CheckStatus.NOTE, check.finding, check.value, remediation)
        checks.append(check)
    return checks


def judge_chain(mints: Sequence[Probe], sockets: Sequence[Probe], *, proxy_is_last: bool) -> Check:
    """Which strategy a token request will win with."""
    for place, probe in enumerate(mints):
        if probe.error is None:
            asked_before = f" after {place} that fail" if place else ""
            return Check("plan", CheckStatus.OK, f"{probe.name} wins{asked_before}", milliseconds(probe.duration_ms))
    carried = proxy_is_last and any(probe.error is None for probe in sockets)
    if carried and not mints:
        return Check("plan", CheckStatus.OK, "the proxy carries every talk: no other strategy is in the chain")
    if carried:
        return Check(
            "plan",
            CheckStatus.FAILED,
            "nothing mints, so every talk goes through the proxy, which works",
            remediation="remediation a mint above; or, if the proxy alone is meant, set BROKER_TOKEN_STRATEGIES=websocket_proxy",
        )
    return Check(
        "plan",
        CheckStatus.FAILED,
        "no plan works: nothing mints, and no upstream takes the proxy's talk",
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
        return Check("key", CheckStatus.OK, "is this resource's")
    if any(isinstance(probe.error, MisconfiguredError) and probe.error.status == 401 for probe in tried):  # noqa: PLR2004
        return Check(
            "key",
            CheckStatus.FAILED,
            "is refused: not this resource's, or regenerated",
            remediation=_KEY_REMEDIATION,
            known_issue=KnownIssue.UNAUTHORIZED,
        )
    return Check("key", CheckStatus.NOTE, "nothing that answered says whether it is this resource's")


def judge_clock(skew_s: float | None) -> Check | None:
    """Our clock less Azure's, in seconds; None where Azure named no time."""
    if skew_s is None:
        return None
    value = f"{skew_s:+.0f} s"
    if abs(skew_s) <= _SKEW_FINE_S:
        return Check("clock", CheckStatus.OK, "agrees with Azure's", value)
    remediation = "set this machine's clock (NTP)"
    if abs(skew_s) < _SKEW_FATAL_S:
        return Check("clock", CheckStatus.WARNING, "is off; minting allows for it", value, remediation)
    return Check("clock", CheckStatus.FAILED, "is so far off that Entra's tokens are not believed", value, remediation)


def judge_region(region: str | None, model: str) -> Check | None:
    """Whether the region has the model; None where Azure did not name one.

    `model` is the deployment's name. Where it names no model that is known, the one that is deployed by default counts.
    """
    if region is None:
        return None
    table = model_table()
    wanted = table.find(model) or table.default("realtime")
    regions = table.region_names(wanted.name)
    known = {"".join(name.split()).lower(): name for name in regions}
    plain = "".join(region.split()).lower()
    if plain in known:
        return Check("region", CheckStatus.OK, f"has {wanted.name}", known[plain])
    return Check(
        "region",
        CheckStatus.WARNING,
        f"is none of those known to have {wanted.name}, as of {table.read_on}",
        "".join(character for character in region if character.isalnum() or character == " ")[:32],
        f"if the deployment can't be made, make a resource in {', '.join(regions)}",
    )


def judge_retirement(name: str, model: str, today: date) -> Check | None:
    """Whether Azure keeps a model for two months more; None where the deployment's name names no model with a date."""
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
    """Whether GA takes the model that transcribes, and for how long; None where its name says neither."""
    name = "transcription model"
    if not is_classic_whisper(model):
        return judge_retirement(name, model, today)
    other = model_table().default("transcription").name
    remediation = f"deploy {other}, and name it in AZURE_VOICELIVE_TRANSCRIPTION_MODEL; Voice Live is not concerned"
    return Check(
        name,
        CheckStatus.WARNING,
        f"{model} is a classic whisper, which GA sessions do not take",
        remediation=remediation,
    )


_KEY_REMEDIATION = (
    "use a key of the Cognitive Services account itself, not API Management's: "
    "az cognitiveservices account keys list --name <resource> --resource-group <group>"
)


def judge_error(name: str, error: MintError, azure: Azure, duration_ms: float) -> Check:
    """A failed try as a failed check: named as the runbook names it, with its remediation."""
    value = f"HTTP {error.status}" if error.status is not None else milliseconds(duration_ms)
    known_issue, remediation = _explanation(error, azure)
    return Check(
        name, CheckStatus.FAILED, str(error), value, remediation.replace("<resource>", azure.resource), known_issue
    )


def _explanation(error: MintError, azure: Azure) -> tuple[KnownIssue | None, str]:
    match error:
        case TimedOutError():
            return KnownIssue.CONNECTION_HANG, (
                "check that the deployment exists and that no firewall drops the packets; with a managed identity, its "
                "role: a missing one can hang. A key (AZURE_VOICELIVE_KEY) tells the two apart"
            )
        case CredentialError():
            return KnownIssue.CONNECTION_HANG, (
                "assign a managed identity (AZURE_CLIENT_ID names a user-assigned one), or set AZURE_VOICELIVE_KEY"
            )
        case RateLimitedError():
            return None, f"raise the quota of the deployment {azure.model}, or lower BROKER_RATE_LIMIT_PER_MINUTE"
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
                f"set AZURE_VOICELIVE_API_VERSION to one that the resource takes (it is {azure.api_version}): "
                "2025-10-01, or 2024-10-01-preview for the flat mints"
            )
        case PermanentError():
            return KnownIssue.MODEL_NOT_FOUND, (
                f"check AZURE_VOICELIVE_ENDPOINT, and that {azure.model} is deployed: az cognitiveservices account "
                "deployment list --name <resource> --resource-group <group>; the model is in "
                f"{', '.join(model_table().region_names(azure.model))}"
            )
        case RejectedError():
            return KnownIssue.BAD_REQUEST, (
                "the endpoint is not what it is taken for (AZURE_VOICELIVE_ENDPOINT, AZURE_VOICELIVE_ENDPOINT_KIND), "
                "or the deployment is another model's: try without the agents' own voices and tools"
            )
        case MalformedError(status=status) if status is not None and 300 <= status < 400:  # noqa: PLR2004
            return None, "give the resource's own host as AZURE_VOICELIVE_ENDPOINT: what answers there sends us on"
        case MalformedError():
            return None, "something other than Azure answers at this address: check the endpoint, gateways and proxies"
        case _ if error.status is not None:
            return KnownIssue.SERVER_ERROR, (
                "Azure fails: look at its status page and try again; if it lasts, report apim-request-id "
                f"{error.request_id or '(none was sent)'}"
            )
        case _:
            return None, (
                "check the network and the lines above; an authority of your own has to be named in SSL_CERT_FILE"
            )


_ROLE_REMEDIATION = (
    "az role assignment create --role 'Cognitive Services OpenAI User' --assignee <the identity's principal id> "
    "--scope <the resource's id>; Voice Live wants 'Cognitive Services User' too; it takes minutes to work"
)
