"""What a deployed broker's answers mean: pure functions from answers to checks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from token_broker.doctor.checks import Check, CheckStatus, KnownIssue

__all__ = [
    "BrokerAnswer",
    "judge_forged_header",
    "judge_health",
    "judge_host",
    "judge_metrics",
    "judge_own_origin",
    "judge_plain_get",
    "judge_status",
    "judge_strange_origin",
    "judge_token",
    "judge_upgrade",
]

_OK = 200
_MAX_DETAIL_CHARS = 300  # the only text of a peer's in a report: a broker's own detail, printable and short
_TICKET_REFUSED = 4401
_SIGN_IN = ("/.auth/", "login.microsoftonline.", "login.partner.microsoftonline.cn", "login.chinacloudapi.cn")
# Only known names are reported: the answer may be anybody's, and a report may hold no text of a peer's.
_STRATEGIES = ("ga", "direct_deployment", "project", "unified")
_PLATFORM_REMEDIATION = (
    "platform authentication (EasyAuth) stands before the broker: az containerapp auth update -n <app> -g <group> "
    "--action AllowAnonymous --enabled false; or keep it, set BROKER_AUTH=easyauth, and sign in"
)
_ADDRESS_REMEDIATION = (
    "set BROKER_PUBLIC_URL to this address, or BROKER_TRUSTED_PROXIES to the proxies before the broker"
)
_HOST_NOT_SERVED = 421


@dataclass(frozen=True, slots=True)
class BrokerAnswer:
    """One HTTP answer. Its header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object in it, or an empty one."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):  # the second for JSON that is nested too deeply
            return {}
        return document if isinstance(document, dict) else {}

    @property
    def is_ours(self) -> bool:
        """Whether a broker answered, and not a proxy: a broker sends a request id, and puts it into its problems."""
        if "x-request-id" not in self.headers:
            return False
        return self.status < 400 or "correlation_id" in self.document  # noqa: PLR2004

    @property
    def value(self) -> str:
        return f"HTTP {self.status}"


def judge_health(answer: BrokerAnswer) -> Check:
    """`/healthz`: a broker never refuses it, so a refusal comes from a proxy before the broker."""
    name = "url healthz"
    if answer.status == _OK and answer.is_ours:
        return Check(name, CheckStatus.OK, "a broker answers", answer.value)
    return _answered_by_another(name, answer)


def _answered_by_another(name: str, answer: BrokerAnswer) -> Check:
    location = answer.headers.get("location", "")
    signs_in = 300 <= answer.status < 400 and any(sign in location for sign in _SIGN_IN)  # noqa: PLR2004
    if answer.status in {401, 403} or signs_in:
        return Check(
            name,
            CheckStatus.FAILED,
            "refused before it reached the broker",
            answer.value,
            _PLATFORM_REMEDIATION,
            KnownIssue.PLATFORM_UNAUTHORIZED,
        )
    if 300 <= answer.status < 400:  # noqa: PLR2004
        return Check(
            name, CheckStatus.FAILED, "redirected elsewhere", answer.value, "give the address it is redirected to"
        )
    if answer.status >= 500:  # noqa: PLR2004
        remediation = (
            "no replica is ready behind the ingress: az containerapp logs show -n <app> -g <group> --type system"
        )
        return Check(name, CheckStatus.FAILED, "the ingress has no replica to ask", answer.value, remediation)
    return Check(
        name,
        CheckStatus.FAILED,
        "something other than a broker answers",
        answer.value,
        "check the address, and the path",
    )


def judge_host(answer: BrokerAnswer) -> Check | None:
    """Whether the broker serves this host name: one with a public URL serves no other, probes aside."""
    if answer.status != _HOST_NOT_SERVED or not answer.is_ours:
        return None
    detail = "".join(filter(str.isprintable, str(answer.document.get("detail", ""))))[:_MAX_DETAIL_CHARS]
    finding = f"a broker is there, but does not serve this host name. It says: {detail}"
    return Check("url host", CheckStatus.FAILED, finding, answer.value, _ADDRESS_REMEDIATION)


def judge_status(answer: BrokerAnswer) -> Check:
    """`/status`: whether Azure is configured, and what the broker itself reports."""
    name = "url status"
    if not answer.is_ours:
        return _answered_by_another(name, answer)
    status = answer.document
    if status.get("voicelive_configured") is not True:
        return Check(
            name,
            CheckStatus.FAILED,
            "no Azure endpoint is configured there",
            remediation="set AZURE_VOICELIVE_ENDPOINT",
        )
    strategies = status.get("strategies")
    entries = [entry for entry in strategies if isinstance(entry, dict)] if isinstance(strategies, list) else []
    failing = [
        known
        for known in _STRATEGIES
        for entry in entries
        if entry.get("name") == known and (entry.get("capability") == "misconfigured" or entry.get("breaker") == "open")
    ]
    if failing:
        return Check(
            name,
            CheckStatus.WARNING,
            f"not asked after failures: {', '.join(failing)}",
            remediation="run doctor beside the broker",
        )
    outbox = status.get("outbox")
    dead = outbox.get("dead") if isinstance(outbox, dict) else 0
    if isinstance(dead, int) and dead > 0:
        return Check(
            name,
            CheckStatus.WARNING,
            f"{dead} turns could not be delivered",
            remediation="token-broker outbox list, then retry",
        )
    return Check(name, CheckStatus.OK, "configured, and reports no fault")


def judge_token(answer: BrokerAnswer, base: str) -> Check:
    """A token request without a credential: a plan that a browser can use, or the broker's own refusal."""
    name = "url token"
    if answer.status == 401 and answer.is_ours:  # noqa: PLR2004
        return Check(name, CheckStatus.OK, "the broker demands authentication (BROKER_AUTH)", answer.value)
    if not answer.is_ours:
        return _answered_by_another(name, answer)
    if answer.status == 429:  # noqa: PLR2004
        return Check(name, CheckStatus.NOTE, "the rate limit is reached, so no plan was seen", answer.value)
    if answer.status != _OK:
        remediation = "run doctor beside the broker: it says why nothing mints"
        return Check(name, CheckStatus.FAILED, "no plan is given", answer.value, remediation)
    plan = answer.document
    connections = plan.get("connections")
    last = connections[-1] if isinstance(connections, list) and connections else {}
    url = urlsplit(str(last.get("url", ""))) if isinstance(last, dict) else urlsplit("")
    wanted = urlsplit(base)
    scheme = "wss" if wanted.scheme == "https" else "ws"
    if last.get("transport") == "websocket_proxy" and (url.scheme, url.netloc) != (scheme, wanted.netloc):
        finding = "the plan sends browsers to another address than this one"
        return Check(name, CheckStatus.FAILED, finding, answer.value, _ADDRESS_REMEDIATION)
    if plan.get("degraded") is True:
        remediation = "run doctor beside the broker: it says why nothing mints"
        return Check(
            name, CheckStatus.WARNING, "the plan has the proxy alone: nothing mints", answer.value, remediation
        )
    return Check(name, CheckStatus.OK, "a plan that browsers can use", answer.value)


def judge_forged_header(before: BrokerAnswer, forged: BrokerAnswer) -> Check:
    """Two token requests, the second with a forged `X-MS-CLIENT-PRINCIPAL`, which must change nothing."""
    name = "url forged header"
    if before.status in {401, 403} and forged.status == _OK:
        return Check(
            name,
            CheckStatus.FAILED,
            "a forged X-MS-CLIENT-PRINCIPAL is accepted: anybody can be anybody",
            remediation="switch on platform authentication, which removes the header; or set BROKER_AUTH=entra",
        )
    return Check(name, CheckStatus.OK, "a forged X-MS-CLIENT-PRINCIPAL opens nothing")


def judge_own_origin(answer: BrokerAnswer) -> Check:
    """A preflight from the broker's own origin."""
    name = "url own origin"
    if "access-control-allow-origin" in answer.headers:
        return Check(name, CheckStatus.OK, "its own pages may ask", answer.value)
    if not answer.is_ours:
        return _answered_by_another(name, answer)
    return Check(name, CheckStatus.FAILED, "its own pages are refused as foreign", answer.value, _ADDRESS_REMEDIATION)


def judge_strange_origin(answer: BrokerAnswer) -> Check:
    """A preflight from an origin that no operator can have listed."""
    name = "url strange origin"
    if "access-control-allow-origin" in answer.headers:
        remediation = "list the origins that you mean in BROKER_ALLOWED_ORIGINS, instead of *"
        return Check(name, CheckStatus.WARNING, "every page on the web may ask", answer.value, remediation)
    return Check(name, CheckStatus.OK, "strange pages may not ask", answer.value)


def judge_plain_get(answer: BrokerAnswer) -> Check:
    """A plain GET of the proxy's path: 426, or 400 from the product's first version."""
    name = "url proxy"
    if answer.status in {400, 426}:
        return Check(name, CheckStatus.OK, "the WebSocket route exists", answer.value)
    if not answer.is_ours:
        return _answered_by_another(name, answer)
    return Check(
        name, CheckStatus.FAILED, "the WebSocket route is missing", answer.value, "check the path of the address"
    )


def judge_upgrade(close_code: int | None, refused: BrokerAnswer | None) -> Check:
    """A WebSocket handshake without a ticket: it must be accepted, then closed with 4401."""
    name = "url websocket"
    if close_code == _TICKET_REFUSED:
        return Check(name, CheckStatus.OK, "upgrades pass; a socket without a ticket is closed", f"close {close_code}")
    if close_code is not None:
        finding, remediation = "opens, but is not closed for the missing ticket", "look at the broker's log"
        return Check(name, CheckStatus.WARNING, finding, f"close {close_code}", remediation)
    if refused is not None and refused.status in {401, 403} and not refused.is_ours:
        return _answered_by_another(name, refused)
    remediation = (
        "let the ingress pass WebSocket upgrades (Container Apps: transport auto or http; nginx: Upgrade, Connection)"
    )
    return Check(name, CheckStatus.FAILED, "upgrades do not pass", refused.value if refused else "", remediation)


def judge_metrics(answer: BrokerAnswer) -> Check | None:
    """`/metrics` without a token. None where there is no such route."""
    name = "url metrics"
    if answer.status == _OK and answer.is_ours:
        return Check(
            name, CheckStatus.WARNING, "anybody may read the metrics", answer.value, "set BROKER_METRICS_TOKEN"
        )
    if answer.status in {401, 403}:
        return Check(name, CheckStatus.OK, "the metrics need their token", answer.value)
    return None
