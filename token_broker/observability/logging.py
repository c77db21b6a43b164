"""Logs: structured, to stderr, without secrets.

Two measures keep secrets out, since each one alone has gaps: no code logs a secret, and the last step before a line is
written replaces the known secrets and everything that looks like a token.

A line carries the ids of its request. The middleware binds `correlation_id` and, where the caller sent a trace,
`trace_id`; routes bind `session_id` once they know it. Bound ids cost nothing until a line is written.
"""

import hashlib
import logging
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

import structlog
from pydantic import SecretStr
from pydantic_core import to_json

from strategies.base import Attempt
from token_broker.observability.events import CredentialHolder, CredentialIssued, Event, Observer
from token_broker.settings import Settings

__all__ = [
    "LOGGED_IDS",
    "AuditEntry",
    "Redactor",
    "advice_on",
    "audit_blocks",
    "audit_changed_call",
    "bind_ids",
    "configure_logging",
    "fingerprint",
    "log_attempt",
    "own_secrets",
    "write_audit",
]

MASK = "[redacted]"
_TOKEN_LIKE = re.compile(
    r"ek_[A-Za-z0-9_.-]{4,}"  # ephemeral tokens
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"  # JWTs: Entra's, session tokens, tickets
    r"|(?i:bearer)\s+[A-Za-z0-9._~+/=-]{8,}"
)
_SCHEME = re.compile(r"(?:bearer|basic|token)\s+", re.IGNORECASE)  # a header's secret may be quoted without it
_MIN_SECRET_CHARS = 6
_NAMED_AT_ONCE = 20

_ADVICE = {
    "misconfigured": "run `token-broker doctor`; check the key, the role (Cognitive Services OpenAI User), the network",
    "no_credential": "check the managed identity and its role; or set AZURE_VOICELIVE_KEY",
    "permanent": "this resource lacks the route: take the strategy out of BROKER_TOKEN_STRATEGIES, or leave it resting",
}

# Of the request that is being answered; read only when a line is written, so that most requests pay for one `set`. The
# middleware sets it anew for each request, which drops the ids of a pipelined request before it.
LOGGED_IDS: ContextVar[Mapping[str, str]] = ContextVar("token_broker_ids", default=MappingProxyType({}))

log = structlog.get_logger("token_broker.chain")
# The audit is written whatever BROKER_LOG_LEVEL says.
audit = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET))


class Redactor:
    """Replaces the given secrets, and everything that looks like a token, in a rendered line."""

    def __init__(self, secrets: Iterable[SecretStr | None]) -> None:
        values = {secret.get_secret_value() for secret in secrets if secret is not None}
        values |= {value[scheme.end() :] for value in values if (scheme := _SCHEME.match(value))}
        self._values = sorted((v for v in values if len(v) >= _MIN_SECRET_CHARS), key=len, reverse=True)

    def __call__(self, line: str) -> str:
        for value in self._values:
            line = line.replace(value, MASK)
        return _TOKEN_LIKE.sub(MASK, line)


def own_secrets(settings: Settings) -> tuple[SecretStr | None, ...]:
    """The settings' secrets, as a `Redactor` wants them."""
    keys = [resource.settings.key for resource in settings.resources]
    hooks = [secret.get_secret_value() for secret in (settings.tools_secret, settings.memory_http_secret) if secret]
    hook_secrets = [SecretStr(each.removeprefix("whsec_")) for text in hooks for each in text.split()]
    return (settings.key, *keys, settings.zep_api_key, settings.metrics_token, *settings.signing_keys, *hook_secrets)


def configure_logging(settings: Settings, *, secrets: Iterable[SecretStr] = ()) -> None:
    """Sets up structlog and the standard library's logging alike, once a process.

    `secrets` are taken out of lines as the settings' own are: those of the agents' file.
    """
    console = settings.log_format == "console" or (settings.log_format is None and sys.stderr.isatty())
    level = getattr(logging, settings.log_level.upper())
    # The proxy's password is no secret of `own_secrets`: Azure never sees it, and it may be a word that a talk has.
    proxys = settings.proxy.secrets if settings.proxy is not None else ()
    redact = Redactor([*own_secrets(settings), *proxys, *secrets])
    shared: list[Any] = [
        _add_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(serializer=lambda event, **_: to_json(event, fallback=str).decode())
    )

    def rendered(logger: Any, name: str, event: Any) -> str:
        return redact(str(render(logger, name, event)))

    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                rendered,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # Libraries speak up only when something is wrong: at `info` some print headers, the key among them.
    root.setLevel(max(level, logging.WARNING))


def fingerprint(secret: str) -> str:
    """A short hash of a secret: a log may show it, to tell two secrets apart."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A credential about to be released: to whom, for what, until when.

    `holder` is who gets it into their hands: the browser, or this broker on its behalf. `secret` is the credential
    itself, of which the line shows the fingerprint: Azure's ephemeral token where one was `minted`, else our own.
    """

    correlation_id: str
    principal: str
    session_id: str
    agent_id: str
    strategy: str
    minted: bool
    secret: SecretStr
    expires_at: datetime
    holder: CredentialHolder = "browser"
    resource: str | None = None  # that minted it


def write_audit(entry: AuditEntry, observe: Observer) -> None:
    """Writes the audit's line, and counts it. Call it before the credential is released: what it raises keeps it."""
    audit.info(
        "credential_issued",
        correlation_id=entry.correlation_id,
        principal=entry.principal,
        session_id=entry.session_id,
        agent_id=entry.agent_id,
        strategy=entry.strategy,
        holder=entry.holder,
        resource=entry.resource,
        has_token=entry.minted,
        fingerprint=fingerprint(entry.secret.get_secret_value()),
        expires_at=entry.expires_at.isoformat(),
    )
    issued = CredentialIssued(entry.agent_id, entry.strategy, entry.holder, entry.resource or "")
    observe(issued)


def audit_blocks(blocked: Collection[tuple[str, str]], *, unblocked: Collection[tuple[str, str]]) -> None:
    """Writes to the audit who is blocked from now on, and who no longer is: the first 20 of each, and the counts."""
    audit.info(
        "blocklist_changed",
        blocked=[f"{kind} {name}" for kind, name in sorted(blocked)[:_NAMED_AT_ONCE]],
        unblocked=[f"{kind} {name}" for kind, name in sorted(unblocked)[:_NAMED_AT_ONCE]],
        counts=[len(blocked), len(unblocked)],
    )


def audit_changed_call(*, principal: str, session_id: str, agent_id: str, changes: int) -> None:
    """Writes to the audit that a call is hung up because its client changed the agent's session too often."""
    audit.warning(
        "call_ended_for_changes", principal=principal, session_id=session_id, agent_id=agent_id, changes=changes
    )


def bind_ids(**ids: str) -> None:
    """Binds further ids of the present request."""
    LOGGED_IDS.set({**LOGGED_IDS.get(), **ids})


def _add_ids(logger: Any, name: str, event: Any) -> Any:
    """A structlog processor. The line's own fields win over bound ids."""
    del logger, name
    return {**LOGGED_IDS.get(), **event}


def advice_on(outcome: str | None) -> str | None:
    """What an operator can do about attempts with this outcome; None where only waiting helps."""
    return _ADVICE.get(outcome or "")


def log_attempt(event: Event) -> None:
    """An observer that logs failed attempts: as an error, with advice, where only an operator can remove the cause."""
    if not isinstance(event, Attempt) or event.outcome == "minted":
        return
    if event.outcome == "undone":  # of a hedge: another resource was faster, and nothing is wrong
        log.info("mint_undone", resource=event.resource, strategy=event.strategy, after_ms=round(event.duration_ms, 1))
        return
    level = "error" if event.outcome == "misconfigured" else "warning"
    fields = {"status": event.status, "code": event.code, "azure_request_id": event.request_id}
    getattr(log, level)(
        "mint_failed",
        resource=event.resource,
        strategy=event.strategy,
        outcome=event.outcome,
        why=event.why,
        tries=event.tries,
        duration_ms=round(event.duration_ms, 1),
        **{name: value for name, value in fields.items() if value is not None},
        **({"do": advice} if (advice := advice_on(event.outcome)) else {}),
    )
