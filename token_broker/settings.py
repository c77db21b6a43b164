"""The broker's settings: the environment, read once into a frozen object. No other module reads it.

`load_settings()` reads the variables and a `.env` file. It raises `SettingsError` with one line for each fault. Every
variable is a field here: its alias is the variable's name, its description the line in `.env.example`.
"""

import base64
import contextlib
import difflib
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from strategies.endpoint import (
    Cloud,
    EndpointError,
    EndpointKind,
    Target,
    cloud_of,
    is_loopback,
    parse_endpoint,
    parse_target,
)
from strategies.outbound_proxy import InvalidProxyError, OutboundProxy, parse_proxy
from strategies.session_model.agent_settings import Dialect
from token_broker.resources import (
    DEFAULT_RESOURCE,
    SETTINGS_OF_KEYS,
    ResourceEntry,
    ResourcesFileError,
    read_resources,
)

__all__ = [
    "APP_ORIGIN",
    "ResourceSettings",
    "Settings",
    "SettingsError",
    "SinkName",
    "StrategyName",
    "UpstreamName",
    "doubts",
    "load_settings",
    "unknown_variables",
    "unused_proxies",
]

StrategyName = Literal["ga", "direct_deployment", "project", "unified", "voice_live_webrtc", "websocket_proxy"]
UpstreamName = Literal["voice_live", "openai_realtime"]
SinkName = Literal["zep", "zep_cloud", "http"]

VOICE_LIVE_FIRST_VERSION = "2025-10-01"
# What a browser sends in `Host`: it writes names with other letters as xn--…
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_WEB_ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
# Any local file has the origin `file://`; the other schemes excluded here are of no page.
APP_ORIGIN = re.compile(
    r"(?!(?:https?|wss?|file|javascript|data|blob|about)://)[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~-]+(?::\d{1,5})?",
    re.IGNORECASE,
)
"""Origins of hybrid apps and extensions, such as `capacitor://localhost`. Their hosts follow no rule of DNS."""

_KEY_LIKE = re.compile(r"[A-Za-z0-9]{32,}")  # Azure's keys; variables have an underscore, or are shorter
_HEADER_VALUE = re.compile(r"[!-~]+")
# `int()` of thousands of digits takes long, and raises beyond 4,300.
_MAX_HOPS_DIGITS = 2
# Of azure-identity and OpenSSL: no fields, since the broker reads none of them itself.
_READ_BY_LIBRARIES = (
    "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_TOKEN_CREDENTIALS", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
_WEBHOOK_SECRET_BYTES = 24  # of the specification
_MAX_HEDGE_DELAY_MS = 60_000
_UNUSABLE_KEY = "has blanks or characters that no header can carry; copy it once more"
_IN_QUOTES = "is in quotes, which `docker --env-file` passes on; write the value without them"
# These stand for any tenant, so that tokens of strangers would be accepted.
_MANY_TENANTS = frozenset({"common", "organizations", "consumers"})


def _split(value: object) -> object:
    """`a, b` as a tuple. Anything but a string is returned as it is, for pydantic to check."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _split_secrets(value: object) -> object:
    """The same with secrets, which pydantic would show in its errors otherwise."""
    return tuple(SecretStr(part) for part in parts) if isinstance(parts := _split(value), tuple) else value


def _is_quoted(value: str) -> bool:
    bare = value.strip()
    return len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'"


def _hedge_delay(value: object) -> object:
    """`auto`, or milliseconds."""
    with contextlib.suppress(ValueError):
        if value == "auto" or (isinstance(value, str | int | float) and 0 <= float(value) <= _MAX_HEDGE_DELAY_MS):
            return value
    raise PydanticCustomError("hedge_delay", "should be auto, or milliseconds from 0 to 60000")


_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
_Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class SettingsError(ValueError):
    """The settings are invalid. `lines` has one line for each fault, the variable first. No line contains a secret."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class _EmptySinks(PydanticBaseSettingsSource):
    """`BROKER_MEMORY_SINKS=` means none, and an unset one does not; every other variable may be empty for unset."""

    def __init__(self, settings_cls: type[BaseSettings], source: type[EnvSettingsSource]) -> None:
        super().__init__(settings_cls)
        self._source = source(settings_cls, env_ignore_empty=False)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        written = self._source.env_vars.get("BROKER_MEMORY_SINKS")
        return {"BROKER_MEMORY_SINKS": ()} if written is not None and not written.strip() else {}


class Settings(BaseSettings):
    """The broker's configuration. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        case_sensitive=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    # --- the server
    host: str = Field("127.0.0.1", alias="HOST", description="address to listen on; 0.0.0.0 in the container")
    port: int = Field(8080, ge=0, le=65_535, alias="PORT", description="port to listen on")

    # --- Azure
    resources_file: Path | None = Field(
        None,
        alias="BROKER_RESOURCES_FILE",
        description="TOML file of several Azure resources (docs/api.md §1.3); unset: the AZURE_… variables make one",
    )
    endpoint: str | None = Field(
        None,
        alias="AZURE_VOICELIVE_ENDPOINT",
        description="the resource's endpoint, such as https://<resource>.services.ai.azure.com",
    )
    key: SecretStr | None = Field(None, alias="AZURE_VOICELIVE_KEY", description="the resource's key")
    model: str = Field("gpt-realtime", min_length=1, alias="AZURE_VOICELIVE_MODEL", description="deployment name")
    project_name: str | None = Field(
        None,
        alias="AZURE_VOICELIVE_PROJECT_NAME",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        description="AI Foundry project; turns the project strategy on",
    )
    api_version: str = Field(
        "2025-10-01",
        pattern=r"^\d{4}-\d{2}-\d{2}(-preview)?$",
        alias="AZURE_VOICELIVE_API_VERSION",
        description="api-version of the flat mints and of Voice Live, such as 2025-10-01",
    )
    endpoint_kind: Literal["auto", "direct", "unified"] = Field(
        "auto",
        alias="AZURE_VOICELIVE_ENDPOINT_KIND",
        description="auto, direct or unified; for custom domains, gateways and loopback",
    )
    openai_endpoint: str | None = Field(
        None,
        alias="AZURE_OPENAI_ENDPOINT",
        description="base of ga and direct_deployment; derived from the resource's name where that is possible",
    )
    azure_auth: Literal["auto", "key", "entra"] = Field(
        "auto", alias="AZURE_VOICELIVE_AUTH", description="auto (the key if set, else Entra), key or entra"
    )
    entra_scope: str | None = Field(
        None,
        alias="AZURE_VOICELIVE_ENTRA_SCOPE",
        description="scope asked of Entra; unset, that of the endpoint's cloud, such as https://ai.azure.com/.default",
    )
    authority_host: str | None = Field(
        None,
        alias="AZURE_AUTHORITY_HOST",
        description="Entra's host that gives tokens for Azure; unset, that of the endpoint's cloud",
    )
    outbound_proxy: SecretStr | None = Field(
        None,
        alias="BROKER_OUTBOUND_PROXY",
        description="HTTP proxy for all that leaves: http://[user:password@]host:port, or off; unset: HTTPS_PROXY",
    )
    https_proxy: SecretStr | None = Field(
        None,
        alias="HTTPS_PROXY",
        validation_alias=AliasChoices("https_proxy", "HTTPS_PROXY"),
        description="the same where BROKER_OUTBOUND_PROXY is unset; in small letters, too",
    )
    no_proxy: _Names = Field(
        (),
        alias="NO_PROXY",
        validation_alias=AliasChoices("no_proxy", "NO_PROXY"),
        description="hosts, domains, addresses and CIDRs that are asked without the proxy; loopback always is",
    )
    gpt_live_ends: Literal["on", "off"] = Field(
        "off",
        alias="AZURE_GPT_LIVE_ENDS",
        description="on: somebody has seen that a GPT-Live session over WebRTC ends when the broker closes it",
    )
    gpt_live_data_channel: Literal["restricted", "open"] = Field(
        "restricted",
        alias="AZURE_GPT_LIVE_DATA_CHANNEL",
        description="what Azure is asked to let pages send and see over GPT-Live's WebRTC; open: everything",
    )
    client_id: str | None = Field(
        None, alias="AZURE_CLIENT_ID", description="client id of a user-assigned managed identity"
    )
    transcription_model: str = Field(
        "gpt-4o-mini-transcribe",
        min_length=1,
        alias="AZURE_VOICELIVE_TRANSCRIPTION_MODEL",
        description="transcription deployment of the GA routes; Voice Live has models of its own",
    )
    voice_live_webrtc: Literal["auto", "on", "off"] = Field(
        "auto",
        alias="AZURE_VOICELIVE_WEBRTC",
        description="Voice Live by WebRTC: auto looks which resources have it, at the start and hourly; on, or off",
    )
    voice_live_webrtc_api_version: str = Field(
        "2026-01-01-preview",
        pattern=r"^\d{4}-\d{2}-\d{2}(-preview)?$",
        alias="AZURE_VOICELIVE_WEBRTC_API_VERSION",
        description="its own api-version: the others answer 404 or 401",
    )
    voice_live_webrtc_ends: Literal["on", "off"] = Field(
        "off",
        alias="AZURE_VOICELIVE_WEBRTC_ENDS",
        description="on: its calls are known to die with their control socket, so that limits hold for them, too",
    )

    # --- the chain
    token_strategies: Annotated[tuple[StrategyName, ...], NoDecode, BeforeValidator(_split)] = Field(
        ("ga", "direct_deployment", "project", "unified", "voice_live_webrtc", "websocket_proxy"),
        min_length=1,
        alias="BROKER_TOKEN_STRATEGIES",
        description="the strategies to use, in order, separated by commas",
    )
    token_budget_s: float = Field(
        6,
        ge=0.1,
        le=60,
        allow_inf_nan=False,
        alias="BROKER_TOKEN_BUDGET_S",
        description="longest token request, everything included",
    )
    attempt_timeout_s: float = Field(
        2.5,
        ge=0.05,
        le=60,
        allow_inf_nan=False,
        alias="BROKER_ATTEMPT_TIMEOUT_S",
        description="longest HTTP attempt",
    )
    retry_attempts: int = Field(
        2,
        ge=1,
        le=10,
        alias="BROKER_RETRY_ATTEMPTS",
        description="attempts for each strategy; only transient failures are repeated",
    )
    token_ttl_s: int = Field(
        60, ge=10, le=7200, alias="BROKER_TOKEN_TTL_S", description="lifetime asked of Azure, 10 to 7200"
    )
    breaker_failures: int = Field(
        5, ge=1, le=1000, alias="BROKER_BREAKER_FAILURES", description="transient failures in a row that open a breaker"
    )
    breaker_open_s: _Seconds = Field(
        15, alias="BROKER_BREAKER_OPEN_S", description="how long an open breaker waits before its one probe"
    )
    misconfigured_retry_s: _Seconds = Field(
        60, alias="BROKER_MISCONFIGURED_RETRY_S", description="how long a breaker stays open after a 401 or 403"
    )
    missing_retry_s: _Seconds = Field(
        600,
        alias="BROKER_MISSING_RETRY_S",
        description="longest time for which a route that answers 404 is not asked; the first is 15 s",
    )
    credential_timeout_s: _Seconds = Field(
        10, alias="BROKER_CREDENTIAL_TIMEOUT_S", description="longest fetch of an Entra token"
    )
    hedge_after_ms: Annotated[Literal["auto"] | float, BeforeValidator(_hedge_delay)] = Field(
        "auto",
        alias="BROKER_HEDGE_AFTER_MS",
        description="a mint or handshake silent for so long is asked of the next resource, too; auto, or 0 for never",
    )

    client_secret_uses: int = Field(
        20,
        ge=0,
        le=100,
        alias="BROKER_CLIENT_SECRET_USES",
        description="talks that one client secret of the compatible endpoints may open; 0 is off",
    )

    # --- the proxy
    proxy_upstreams: Annotated[tuple[UpstreamName, ...], NoDecode, BeforeValidator(_split)] = Field(
        ("voice_live", "openai_realtime"),
        min_length=1,
        alias="BROKER_PROXY_UPSTREAMS",
        description="what the proxy connects to, in order; openai_realtime alone for a direct endpoint",
    )
    proxy_connect_timeout_s: float = Field(
        5,
        ge=0.1,
        le=120,
        allow_inf_nan=False,
        alias="BROKER_PROXY_CONNECT_TIMEOUT_S",
        description="time for all upstreams together, until the talk is ready, or goes on after Azure broke off",
    )
    resume_audio_s: _Seconds = Field(
        15,
        alias="BROKER_RESUME_AUDIO_S",
        description="longest unanswered speech that is held, to be heard again where Azure breaks off in a talk",
    )
    resume_hold_s: float = Field(
        60,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        alias="BROKER_RESUME_HOLD_S",
        description="longest wait of such a talk for a quota of Azure's to be refilled",
    )
    retry_failed_answer: Literal["on", "off"] = Field(
        "on",
        alias="BROKER_RETRY_FAILED_ANSWER",
        description="on: the proxy asks Azure once more for an answer that failed before anything of it was said",
    )
    max_talk_s: int = Field(
        7200,
        ge=1,
        le=86_400,
        alias="BROKER_MAX_TALK_S",
        description="longest talk or call; before Azure's own limit of 60 min a proxied talk moves to another session",
    )
    budget_minutes_per_day: int = Field(
        0,
        ge=0,
        le=100_000,
        alias="BROKER_BUDGET_MINUTES_PER_DAY",
        description="a principal's talks together, a UTC day; 0 is no limit. Without authentication: an address's",
    )
    budget_tokens_per_day: int = Field(
        0,
        ge=0,
        le=10**12,
        alias="BROKER_BUDGET_TOKENS_PER_DAY",
        description="tokens of a principal's answers, in and out, a UTC day; 0 is no limit",
    )
    unseen_talks: Literal["auto", "allow"] = Field(
        "auto",
        alias="BROKER_UNSEEN_TALKS",
        description="auto: plans have no unseen transport where a budget or max_session_s holds; allow keeps them",
    )
    idle_timeout_s: _Seconds = Field(
        300,
        alias="BROKER_IDLE_TIMEOUT_S",
        description="a proxied talk without a message or a ping from the client, or an answer to it, ends after this",
    )
    call_idle_s: _Seconds = Field(
        300,
        alias="BROKER_CALL_IDLE_S",
        description="a WebRTC call in which nobody says anything of use is hung up after this",
    )
    ping_interval_s: _Seconds = Field(
        20,
        alias="BROKER_PING_INTERVAL_S",
        description="interval of WebSocket pings to both sides; two without an answer end the talk",
    )
    client_write_timeout_s: _Seconds = Field(
        10,
        alias="BROKER_CLIENT_WRITE_TIMEOUT_S",
        description="a client that reads nothing for this long is closed (a talk with 4410)",
    )
    client_message_bytes: int = Field(
        262_144,
        ge=1024,
        le=16_777_216,
        alias="BROKER_CLIENT_MESSAGE_BYTES",
        description="largest WebSocket message from the client, all fragments together",
    )
    image_bytes: int = Field(
        4_194_304,
        ge=1024,
        le=33_554_432,
        alias="BROKER_IMAGE_BYTES",
        description="the same for a message with an image, from either side; above it the client gets an error event",
    )
    frames_per_second: int = Field(
        500,
        ge=0,
        le=1_000_000,
        alias="BROKER_FRAMES_PER_SECOND",
        description="WebSocket frames per second from one client, in bursts ten times that; more is 1008, 0 is off",
    )
    control_frames_per_second: int = Field(
        20,
        ge=0,
        le=1_000_000,
        alias="BROKER_CONTROL_FRAMES_PER_SECOND",
        description="the same for pings and pongs alone",
    )
    azure_message_bytes: int = Field(
        1_048_576,
        ge=65_536,
        le=33_554_432,
        alias="BROKER_AZURE_MESSAGE_BYTES",
        description="largest WebSocket message from Azure, all fragments together",
    )
    drain_s: float = Field(
        25,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        alias="BROKER_DRAIN_S",
        description="time that running talks get on SIGTERM",
    )
    direct_websocket: Literal["on", "off"] = Field(
        "off",
        alias="BROKER_DIRECT_WEBSOCKET",
        description="on adds the browser's own WebSocket to Azure to the plan, before the proxy",
    )
    webrtc_filter: Literal["on", "off"] = Field(
        "on", alias="BROKER_WEBRTC_FILTER", description="on asks Azure to send fewer events to the browser"
    )

    attach_check: Literal["on", "off"] = Field(
        "on",
        alias="BROKER_ATTACH_CHECK",
        description="off lets a page attach a call whose session is not known as the minted one",
    )
    compat_webrtc_filter: Literal["on", "off"] = Field(
        "off",
        alias="BROKER_COMPAT_WEBRTC_FILTER",
        description="the same for official clients, which wait for events that the filter leaves out",
    )

    # --- the memory
    database_url: SecretStr = Field(
        SecretStr("sqlite+aiosqlite:///var/token-broker.db"),
        alias="BROKER_DATABASE_URL",
        description="sqlite+aiosqlite:///… (one process) or postgresql+asyncpg://… (several)",
    )
    memory_sinks: Annotated[tuple[SinkName, ...] | None, NoDecode, BeforeValidator(_split)] = Field(
        None,
        alias="BROKER_MEMORY_SINKS",
        description="where turns go, too: zep, zep_cloud, http, or several; unset: zep if ZEP_API_KEY is set; empty: "
        "nowhere (docs/memory.md)",
    )
    zep_api_key: SecretStr | None = Field(None, alias="ZEP_API_KEY", description="the key of zep and zep_cloud")
    zep_api_url: str | None = Field(None, alias="ZEP_API_URL", description="Zep's base URL where it is not the cloud")
    memory_http_url: str | None = Field(
        None, alias="BROKER_MEMORY_HTTP_URL", description="where the sink http posts signed events (docs/memory.md)"
    )
    memory_http_secret: SecretStr | None = Field(
        None,
        alias="BROKER_MEMORY_HTTP_SECRET",
        description="what it signs with: whsec_ and base64 of at least 24 bytes; several, separated by blanks",
    )
    retention_days: int = Field(
        0, ge=0, le=36_500, alias="BROKER_RETENTION_DAYS", description="turns older than this are deleted; 0 keeps them"
    )
    recall_budget_s: float = Field(
        0.3, ge=0, le=5, allow_inf_nan=False, alias="BROKER_RECALL_BUDGET_S", description="longest recall"
    )
    store_timeout_s: _Seconds = Field(
        5, alias="BROKER_STORE_TIMEOUT_S", description="longest transaction; a turn that waits longer gets 503"
    )
    store_patience_s: _Seconds = Field(
        0.25,
        alias="BROKER_STORE_PATIENCE_S",
        description="how long a ticket or a named session waits for a store that does not answer",
    )
    store_start_wait_s: float = Field(
        5,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        alias="BROKER_STORE_START_WAIT_S",
        description="how long a start waits for the store and its blocklist; then only new sessions are served",
    )
    require_blocklist: Literal["on", "off"] = Field(
        "off", alias="BROKER_REQUIRE_BLOCKLIST", description="on serves nobody until the blocklist has been read"
    )
    group_commit_ms: float = Field(
        2,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        alias="BROKER_GROUP_COMMIT_MS",
        description="turns that arrive within this are committed together",
    )
    max_turn_bytes: int = Field(
        32_768, ge=256, le=1_048_576, alias="BROKER_MAX_TURN_BYTES", description="largest content of a turn, in UTF-8"
    )
    turns_per_minute: int = Field(
        600,
        ge=0,
        alias="BROKER_TURNS_PER_MINUTE",
        description="turns that a principal may send per minute, or at once; 0 is off",
    )
    turn_bytes_per_minute: int = Field(
        4_194_304,
        ge=0,
        alias="BROKER_TURN_BYTES_PER_MINUTE",
        description="the same in bytes of content, ids and channel, in UTF-8; 0 is off",
    )
    session_bytes: int = Field(
        67_108_864,
        ge=0,
        alias="BROKER_SESSION_BYTES",
        description="bytes of turns stored for one session; 0 is off",
    )
    min_free_disk_bytes: int = Field(
        268_435_456,
        ge=0,
        alias="BROKER_MIN_FREE_DISK_BYTES",
        description="SQLite: with less free disk space than this, new turns get 507; 0 is off",
    )
    intake_turns: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        alias="BROKER_INTAKE_TURNS",
        description="proxied turns kept in memory while the store is unavailable",
    )
    intake_bytes: int = Field(
        16_777_216,
        ge=65_536,
        le=1_073_741_824,
        alias="BROKER_INTAKE_BYTES",
        description="the same, in bytes; whichever is reached first",
    )
    delivery_timeout_s: _Seconds = Field(
        10,
        alias="BROKER_DELIVERY_TIMEOUT_S",
        description="longest delivery to a sink; a lease lasts three times as long",
    )
    delivery_concurrency: int = Field(
        8,
        ge=1,
        le=256,
        alias="BROKER_DELIVERY_CONCURRENCY",
        description="sessions delivered at once by one process to one sink",
    )
    delivery_attempts: int = Field(
        20,
        ge=1,
        le=1000,
        alias="BROKER_DELIVERY_ATTEMPTS",
        description="refusals after which a turn becomes a dead letter",
    )
    delivery_max_age_s: float = Field(
        604_800,
        gt=0,
        allow_inf_nan=False,
        alias="BROKER_DELIVERY_MAX_AGE_S",
        description="the oldest turns of a session that fails for longer become dead letters",
    )
    delivery_gap_s: float = Field(
        10,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        alias="BROKER_DELIVERY_GAP_S",
        description="how long delivery waits for a turn that is missing from a sequence",
    )
    delivery_poll_s: _Seconds = Field(
        1, alias="BROKER_DELIVERY_POLL_S", description="interval at which the outbox is checked"
    )

    # --- authentication and limits
    auth: Literal["none", "easyauth", "entra"] | None = Field(
        None, alias="BROKER_AUTH", description="how callers are authenticated: none (the default), easyauth or entra"
    )
    entra_tenant_id: str | None = Field(
        None,
        alias="BROKER_ENTRA_TENANT_ID",
        pattern=r"^[A-Za-z0-9.-]{1,128}$",
        description="tenant whose JWTs BROKER_AUTH=entra accepts",
    )
    entra_audience: _Names = Field(
        (),
        alias="BROKER_ENTRA_AUDIENCE",
        description="audiences of those JWTs, separated by commas: the application's id (api:// or not), or its URI",
    )
    entra_required_scope: str | None = Field(
        None,
        alias="BROKER_ENTRA_REQUIRED_SCOPE",
        pattern=r"^[!#-\[\]-~]{1,256}$",
        description="scope or app role that those JWTs must have; unset: any",
    )
    entra_authority: str | None = Field(
        None,
        alias="BROKER_ENTRA_AUTHORITY",
        description="Entra's base URL for callers' JWTs; unset, that of the endpoint's cloud, such as "
        "https://login.microsoftonline.com",
    )
    signing_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_secrets)] = Field(
        (),
        alias="BROKER_SIGNING_KEY",
        description="at least 32 bytes; several, separated by commas: the first signs, all verify",
    )
    public_url: str | None = Field(
        None,
        alias="BROKER_PUBLIC_URL",
        description="the broker's URL in plans; if set, requests for any other host but loopback get 421",
    )
    trusted_proxies: _Names = Field(
        (),
        alias="BROKER_TRUSTED_PROXIES",
        description="proxies whose X-Forwarded-* is trusted: a number of hops, or CIDRs",
    )
    allowed_origins: _Names = Field(
        (),
        alias="BROKER_ALLOWED_ORIGINS",
        description="other origins that may ask, such as https://app.example.com,capacitor://localhost, or *",
    )
    agents_file: Path | None = Field(
        None, alias="BROKER_AGENTS_FILE", description="TOML file of agents; unset: the built-in ones"
    )
    tools_secret: SecretStr | None = Field(
        None,
        alias="BROKER_TOOLS_SECRET",
        description="signs what agents' tools, guardrails and summaries get: whsec_…; several, separated by blanks",
    )
    rate_limit_per_minute: int = Field(
        60,
        ge=0,
        alias="BROKER_RATE_LIMIT_PER_MINUTE",
        description="token requests and SDP offers per principal; as many hang-ups, reads and erasures; 0 is off",
    )
    max_sessions_per_principal: int = Field(
        10, ge=0, alias="BROKER_MAX_SESSIONS_PER_PRINCIPAL", description="open talks per principal; 0 is off"
    )
    max_sessions: int = Field(1000, ge=0, alias="BROKER_MAX_SESSIONS", description="open talks per process; 0 is off")
    max_body_bytes: int = Field(
        65_536, ge=1024, le=16_777_216, alias="BROKER_MAX_BODY_BYTES", description="largest body of a token request"
    )
    max_memory_body_bytes: int = Field(
        1_048_576, ge=1024, le=67_108_864, alias="BROKER_MAX_MEMORY_BODY_BYTES", description="largest body of turns"
    )
    body_timeout_s: _Seconds = Field(
        10, alias="BROKER_BODY_TIMEOUT_S", description="a request's whole body must arrive within this"
    )

    head_timeout_s: _Seconds = Field(
        10, alias="BROKER_HEAD_TIMEOUT_S", description="a request's whole head must arrive within this"
    )
    keep_alive_s: _Seconds = Field(
        300,
        alias="BROKER_KEEP_ALIVE_S",
        description="an idle HTTP connection is closed after this; a proxy that keeps it longer may answer 502",
    )

    # --- observability
    metrics_token: SecretStr | None = Field(
        None,
        alias="BROKER_METRICS_TOKEN",
        description="Bearer token for /metrics and the full /status; both need it where BROKER_AUTH authenticates",
    )
    otel: Literal["auto", "on", "off"] = Field(
        "auto",
        alias="BROKER_OTEL",
        description="traces: auto (if OTEL_EXPORTER_OTLP_ENDPOINT is set), on or off; needs the extra otel",
    )
    otlp_endpoint: str | None = Field(
        None,
        alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="collector of traces, OTLP over HTTP, such as http://localhost:4318",
    )
    log_format: Literal["console", "json"] | None = Field(
        None, alias="BROKER_LOG_FORMAT", description="console or json; unset: console on a terminal, else json"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="BROKER_LOG_LEVEL", description="debug, info, warning or error"
    )

    # --- the simulator
    simulator_port: int = Field(
        9100, ge=0, le=65_535, alias="SIMULATOR_PORT", description="port of the Azure that demo simulates"
    )
    simulator_key: SecretStr = Field(
        SecretStr("simulated-key"), alias="SIMULATOR_KEY", description="the key that the simulator accepts"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _not_in_quotes(cls, value: object) -> object:
        """Refuses a value in quotes. `.env` files lose theirs when they are read; `docker --env-file` keeps them."""
        if isinstance(value, str) and _is_quoted(value):
            raise PydanticCustomError("quoted", _IN_QUOTES)
        return value

    @cached_property
    def target(self) -> Target | None:
        """Where the resource answers, or the first of several; None if no endpoint is set."""
        if self.resources_file is not None:
            return self.resources[0].target
        if self.endpoint is None:
            return None
        return parse_target(
            self.endpoint,
            kind=None if self.endpoint_kind == "auto" else EndpointKind(self.endpoint_kind),
            openai_endpoint=self.openai_endpoint,
            project=self.project_name,
        )

    @cached_property
    def proxy(self) -> OutboundProxy | None:
        """The proxy that leads out of this network; None where hosts are asked directly."""
        given = self.outbound_proxy or self.https_proxy
        if given is None or given.get_secret_value().strip().lower() == "off":
            return None
        return parse_proxy(given.get_secret_value(), bypassed=self.no_proxy)

    @cached_property
    def resources(self) -> tuple["ResourceSettings", ...]:
        """The Azure resources, in the file's order; none if neither a file nor an endpoint is set.

        Raises ResourcesFileError; `load` has checked it.
        """
        if self.resources_file is None:
            if self.endpoint is None:
                return ()
            # Not validated: `load` tells a faulty endpoint by the name of its variable.
            entry = ResourceEntry.model_construct(name=DEFAULT_RESOURCE, endpoint=self.endpoint)
            return (ResourceSettings(entry, self),)
        entries = read_resources(self.resources_file)
        keys, faults = _keys_of(entries, self.resources_file, DotEnvSettingsSource(type(self)).env_vars)
        if faults:
            raise ResourcesFileError(faults)
        return tuple(self._with_variables_of(entry, keys.get(entry.name)).resources[0] for entry in entries)

    def _with_variables_of(self, entry: ResourceEntry, key: SecretStr | None) -> "Settings":
        """These settings with the AZURE_… variables of one resource: what serves one serves each of several."""
        own = {setting: getattr(entry, name) for name, setting in SETTINGS_OF_KEYS.items()}
        for shared in ("api_version", "model", "transcription_model"):
            own[shared] = own[shared] or getattr(self, shared)
        if key is None and entry.auth == "auto":
            own["azure_auth"] = "entra"
        copied = self.model_copy(update={**own, "key": key, "resources_file": None})
        copied.__dict__.pop("target", None)  # a copy has what was derived from the former values
        copied.__dict__["resources"] = (ResourceSettings(entry, copied, is_of_file=True),)
        return copied

    @property
    def cloud(self) -> Cloud:
        """The cloud that the first resource is in."""
        if self.resources_file is not None:
            return self.resources[0].settings.cloud
        return cloud_of(self.endpoint, self.openai_endpoint)

    @property
    def azure_scope(self) -> str:
        """The scope of the Entra tokens that Azure is asked with."""
        host = (urlsplit(self.target.base).hostname or "") if self.target else ""
        return self.entra_scope or self.cloud.scope(host)

    @property
    def azure_authority(self) -> str:
        """The base URL of the Entra that gives tokens for Azure."""
        given = self.authority_host or self.cloud.authority
        return given if "://" in given else f"https://{given}"

    @property
    def callers_authority(self) -> str:
        """The base URL of the Entra that signs callers' tokens, without a trailing slash."""
        return (self.entra_authority or self.cloud.authority).rstrip("/")

    @property
    def uses_key(self) -> bool:
        """Whether the key is tried first."""
        return self.key is not None and self.azure_auth != "entra"

    @property
    def uses_entra(self) -> bool:
        """Whether an Entra token may be used at all."""
        return self.azure_auth != "key"

    @property
    def sinks(self) -> tuple[SinkName, ...]:
        """Where turns go beside the store, in the order of their names' bits in the store."""
        if self.memory_sinks is not None:
            return self.memory_sinks
        return ("zep",) if self.zep_api_key is not None else ()

    @property
    def wants_traces(self) -> bool:
        """Whether traces are on."""
        return self.otel == "on" or (self.otel == "auto" and self.otlp_endpoint is not None)

    @property
    def voice_live_api_version(self) -> str:
        """The configured api-version if Voice Live has it, else its first stable one."""
        plain = self.api_version.removesuffix("-preview")
        return self.api_version if plain >= VOICE_LIVE_FIRST_VERSION else VOICE_LIVE_FIRST_VERSION

    @property
    def upstreams(self) -> tuple[UpstreamName, ...]:
        """The proxy's upstreams in order; a direct endpoint has no Voice Live."""
        if self.target is not None and self.target.unified_base is None:
            return ("openai_realtime",)
        return self.proxy_upstreams

    @property
    def proxy_dialect(self) -> Dialect:
        """The dialect of the proxy's first upstream."""
        return "preview" if self.upstreams[0] == "voice_live" else "ga"

    @property
    def session_token_ttl_s(self) -> int:
        """A session token outlives the longest talk by an hour."""
        return self.max_talk_s + 3600

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments override the environment, which overrides `.env`. There is no other source."""
        del file_secret_settings
        empty = (_EmptySinks(settings_cls, source) for source in (EnvSettingsSource, DotEnvSettingsSource))
        return init_settings, env_settings, next(empty), dotenv_settings, next(empty)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Reads the environment; `overrides`, by field name, take precedence. Raises `SettingsError`."""
        quoted = [f"{name}: {_IN_QUOTES}" for name in _READ_BY_LIBRARIES if _is_quoted(os.environ.get(name, ""))]
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            wrong = {_field_name(item["loc"]) for item in error.errors()}
            lines = {_line(item["loc"], item["msg"]) for item in error.errors()}
            raise SettingsError(sorted({*lines, *quoted} | cls._faults_beside(wrong, overrides))) from None
        if faults := [*quoted, *_faults(settings)]:
            raise SettingsError(faults)
        return settings

    @classmethod
    def _faults_beside(cls, wrong: set[str], overrides: Mapping[str, Any]) -> set[str]:
        """Faults of the other variables, with the wrong ones unset: one start shows all that has to be corrected."""
        unset = {name: field.get_default() for name, field in cls.model_fields.items() if name in wrong}
        try:
            settings = cls(**{**overrides, **unset})
        except ValidationError:  # an override by its alias, which wins over the field name here
            return set()
        named = {cls.model_fields[name].alias for name in unset}
        return {line for line in _faults(settings) if line.partition(":")[0] not in named}


@dataclass(frozen=True, slots=True)
class ResourceSettings:
    """One Azure resource: its entry, and the settings that it is asked with.

    `settings` are the broker's, whose AZURE_… variables are this resource's own.
    """

    entry: ResourceEntry
    settings: Settings
    is_of_file: bool = False  # else of the AZURE_… variables

    def as_configured(self, text: str) -> str:
        """A text about variables, with the file's keys in their place where the file has this resource."""
        if not self.is_of_file:
            return text
        keys = {Settings.model_fields[setting].alias or "": key for key, setting in SETTINGS_OF_KEYS.items()}

        def key_of(found: re.Match[str]) -> str:
            value = f' = "{found["value"]}"' if found["value"] else ""
            return f"resources.{self.name}.{keys[found['variable']]}{value}"

        longest_first = "|".join(sorted(keys, key=len, reverse=True))
        return re.sub(rf"(?P<variable>{longest_first})(?:=(?P<value>\w+))?", key_of, text)

    @property
    def name(self) -> str:
        """The resource's name."""
        return self.entry.name

    @property
    def target(self) -> Target:
        """Where it answers."""
        target = self.settings.target
        assert target is not None  # noqa: S101  # a resource has an endpoint
        return target


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process. Raises `SettingsError`."""
    return Settings.load(**overrides)


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """A line for each unknown `BROKER_*` or `AZURE_VOICELIVE_*` variable: most are misspelt."""
    known = [field.alias for field in Settings.model_fields.values() if field.alias]
    lines = []
    for name in sorted(os.environ if environ is None else environ):
        if name.startswith(("BROKER_", "AZURE_VOICELIVE_")) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name}: no such variable{f'; {close[0]} is meant, perhaps' if close else ''}")
    return lines


def unused_proxies(settings: Settings, environ: Mapping[str, str] | None = None) -> list[tuple[OutboundProxy, str]]:
    """Proxies that are known and pass some host by, each with what to do where such a host needs it."""
    found: list[tuple[OutboundProxy, str]] = []
    if settings.proxy is not None:
        found.append((replace(settings.proxy, bypassed=()), "take the host out of NO_PROXY"))
    elif settings.https_proxy is not None:
        with contextlib.suppress(InvalidProxyError):
            proxy = parse_proxy(settings.https_proxy.get_secret_value())
            found.append((proxy, "unset BROKER_OUTBOUND_PROXY, which switches HTTPS_PROXY off"))
    values = os.environ if environ is None else environ
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        with contextlib.suppress(InvalidProxyError):
            if settings.proxy is None and values.get(name):
                proxy = parse_proxy(values[name])
                found.append((proxy, f"set BROKER_OUTBOUND_PROXY to it: the broker does not read {name}"))
    return found


def doubts(settings: Settings) -> list[str]:
    """A line for each setting that cannot be used as it is, or that another one needs."""
    lines = []
    if settings.voice_live_api_version != settings.api_version:
        used, said = settings.voice_live_api_version, settings.api_version
        lines.append(f"AZURE_VOICELIVE_API_VERSION: Voice Live has no {said}; {used} is used for it")
    if settings.resources_file is not None:
        lines += [
            f"{name}: not used, since BROKER_RESOURCES_FILE names the resources"
            for name, value in (
                ("AZURE_VOICELIVE_ENDPOINT", settings.endpoint),
                ("AZURE_OPENAI_ENDPOINT", settings.openai_endpoint),
                ("AZURE_VOICELIVE_KEY", settings.key),
                ("AZURE_VOICELIVE_PROJECT_NAME", settings.project_name),
            )
            if value is not None
        ]
        names_at: dict[str, list[str]] = {}
        for each in settings.resources:
            names_at.setdefault(each.target.base, []).append(each.name)
        lines += [
            f"BROKER_RESOURCES_FILE: {', '.join(names)} have one endpoint: they fail together, and share their quotas"
            for names in names_at.values()
            if len(names) > 1
        ]
    if settings.auth in {"easyauth", "entra"} and settings.metrics_token is None:
        lines.append(
            f"BROKER_METRICS_TOKEN: unset while BROKER_AUTH={settings.auth}; /metrics refuses everybody until it is set"
        )
    return lines


def _field_name(loc: tuple[int | str, ...]) -> str:
    """The field of a fault, which names it by its name or its alias."""
    said = str(loc[0]) if loc else "settings"
    return next((name for name, field in Settings.model_fields.items() if said in {name, field.alias}), said)


def _line(loc: tuple[int | str, ...], message: str) -> str:
    """The line of a fault: the variable, what is wrong, what would be right."""
    name = _field_name(loc)
    field = Settings.model_fields.get(name)
    right = f" ({field.description})" if field and field.description else ""
    return f"{field.alias if field else name}: {message[:1].lower()}{message[1:]}{right}"


def _faults(settings: Settings) -> list[str]:
    """Faults that pydantic's check of single fields does not find."""
    parts = (_endpoint_faults, _auth_faults, _store_faults, _sink_faults, _list_faults)
    return [fault for part in parts for fault in part(settings)]


def _endpoint_faults(settings: Settings) -> list[str]:
    faults = []
    for name, value in (
        ("AZURE_VOICELIVE_ENDPOINT", settings.endpoint),
        ("AZURE_OPENAI_ENDPOINT", settings.openai_endpoint),
        ("BROKER_PUBLIC_URL", settings.public_url),
        ("BROKER_ENTRA_AUTHORITY", settings.entra_authority),
        ("AZURE_AUTHORITY_HOST", settings.authority_host and settings.azure_authority),
        ("ZEP_API_URL", settings.zep_api_url),
    ):
        if value is None:
            continue
        try:
            parse_endpoint(value, key_in="AZURE_VOICELIVE_KEY" if name.startswith("AZURE_") else "a setting of its own")
        except EndpointError as error:
            faults.append(f"{name}: {error}")
    if settings.public_url is not None and not _HOST_NAME.fullmatch(_host(settings.public_url) or "x"):
        faults.append("BROKER_PUBLIC_URL: has a host name that no browser sends; write international names as xn--…")
    try:
        _ = settings.proxy
    except InvalidProxyError as error:
        faults.append(f"{'BROKER_OUTBOUND_PROXY' if settings.outbound_proxy else 'HTTPS_PROXY'}: {error}")
    if settings.azure_auth == "key" and settings.key is None:
        faults.append("AZURE_VOICELIVE_KEY: missing; AZURE_VOICELIVE_AUTH=key needs it")
    if settings.key is not None and not _HEADER_VALUE.fullmatch(settings.key.get_secret_value()):
        faults.append(f"AZURE_VOICELIVE_KEY: {_UNUSABLE_KEY}")
    try:
        _ = settings.resources if settings.resources_file is not None else ()
    except ResourcesFileError as error:
        faults += [f"BROKER_RESOURCES_FILE: {line}" for line in error.lines]
    return faults


def _keys_of(
    entries: Sequence[ResourceEntry], path: Path, dotenv: Mapping[str, str | None]
) -> tuple[dict[str, SecretStr], list[str]]:
    """The key of each entry that names a variable, by the resource's name, and a line for each that is unusable."""
    keys, faults = {}, []
    for entry in entries:
        if entry.key_env is None:
            continue
        # As for every variable: the environment wins over `.env`, and an empty value is none.
        value = os.environ.get(entry.key_env) or dotenv.get(entry.key_env)
        field = f"{path}: resources.{entry.name}.key_env:"
        where = f"{field} {entry.key_env}"
        if not value and _KEY_LIKE.fullmatch(entry.key_env):  # a mistake that must not reach a log
            faults.append(f"{field} looks like a key itself; it has to name the variable that holds the key")
        elif not value:
            faults.append(f"{where} is unset; it has to hold the resource's key, or leave key_env out for Entra")
        elif _is_quoted(value):
            faults.append(f"{where} {_IN_QUOTES}")
        elif not _HEADER_VALUE.fullmatch(value):
            faults.append(f"{where} {_UNUSABLE_KEY}")
        else:
            keys[entry.name] = SecretStr(value)
    return keys, faults


def _auth_faults(settings: Settings) -> list[str]:
    faults = []
    if settings.auth == "entra":
        faults += [
            f"{name}: missing; BROKER_AUTH=entra needs it"
            for name, value in (
                ("BROKER_ENTRA_TENANT_ID", settings.entra_tenant_id),
                ("BROKER_ENTRA_AUDIENCE", settings.entra_audience),
            )
            if not value
        ]
        if settings.entra_tenant_id and (
            "." in settings.entra_tenant_id or settings.entra_tenant_id.lower() in _MANY_TENANTS
        ):
            faults.append(
                "BROKER_ENTRA_TENANT_ID: not the id of one tenant; tokens contain a GUID (az account show prints it)"
            )
    real = any(not is_loopback(_host(endpoint)) for endpoint in _endpoints(settings))
    if settings.auth is None and real and not is_loopback(settings.host):
        faults.append(
            f"BROKER_AUTH: unset while HOST={settings.host} is open to others and the endpoint is real; "
            "set easyauth or entra, or set none if something in front of the broker authenticates callers"
        )
    return faults


def _store_faults(settings: Settings) -> list[str]:
    faults = []
    url = settings.database_url.get_secret_value()
    if not url.startswith(("sqlite+aiosqlite:///", "postgresql+asyncpg://")):
        faults.append(
            "BROKER_DATABASE_URL: not supported; give sqlite+aiosqlite:///<path> or postgresql+asyncpg://<host>/<db>"
        )
    elif url.startswith("sqlite") and ":memory:" in url:
        faults.append("BROKER_DATABASE_URL: a database in memory is lost at the end; name a file")
    elif url.startswith("postgresql") and not settings.signing_keys:
        faults.append(
            "BROKER_SIGNING_KEY: missing; replicas on PostgreSQL must share one (openssl rand -base64 48 makes it)"
        )
    if any(len(key.get_secret_value().encode()) < 32 for key in settings.signing_keys):  # noqa: PLR2004
        faults.append("BROKER_SIGNING_KEY: shorter than 32 bytes; openssl rand -base64 48 makes one")
    return faults


def _sink_faults(settings: Settings) -> list[str]:
    sinks, faults = set(settings.sinks), []
    if {"zep", "zep_cloud"} <= sinks:
        faults.append("BROKER_MEMORY_SINKS: has zep and zep_cloud; one key is of one of them, so name that one")
    if sinks & {"zep", "zep_cloud"} and settings.zep_api_key is None:
        faults.append("ZEP_API_KEY: missing; BROKER_MEMORY_SINKS names a sink that needs it")
    if "zep_cloud" in sinks and find_spec("zep_cloud") is None:
        faults.append("BROKER_MEMORY_SINKS: zep_cloud needs its package: pip install 'voice-token-broker[zep-cloud]'")
    if "http" in sinks:
        faults += [
            f"{name}: missing; the sink http of BROKER_MEMORY_SINKS needs it"
            for name, value in (
                ("BROKER_MEMORY_HTTP_URL", settings.memory_http_url),
                ("BROKER_MEMORY_HTTP_SECRET", settings.memory_http_secret),
            )
            if value is None
        ]
    if settings.memory_http_url is not None and (why := _hook_url_fault(settings.memory_http_url)):
        faults.append(f"BROKER_MEMORY_HTTP_URL: {why}")
    if settings.memory_http_secret is not None and not _is_webhook_secret(settings.memory_http_secret):
        faults.append(
            "BROKER_MEMORY_HTTP_SECRET: should be whsec_ and the base64 of 24 random bytes or more; "
            'echo "whsec_$(openssl rand -base64 32)" makes one'
        )
    return faults


def _hook_url_fault(url: str) -> str | None:
    """What is wrong with the URL of a hook; never repeats it, since its query may be a secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in {"http", "https"} or not host or any(char.isspace() for char in url):
        return "should be a URL such as https://memory.example.com/events"
    if parts.username is not None or parts.password is not None or parts.fragment:
        return "must carry no user, password or fragment"
    try:
        is_closed = ipaddress.ip_address(host).is_private
    except ValueError:
        is_closed = is_loopback(host) or "." not in host or host.endswith((".internal", ".local", ".svc"))
    if parts.scheme == "http" and not is_closed:
        return "is plain http to the internet: what was said would be readable on the way; use https"
    return None


def _is_webhook_secret(secret: SecretStr) -> bool:
    """Whether all of it is secrets as Standard Webhooks has them, separated by blanks."""
    parts = secret.get_secret_value().split()
    for part in parts:
        encoded = part.removeprefix("whsec_")
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            return False
        if encoded == part or len(key) < _WEBHOOK_SECRET_BYTES:
            return False
    return bool(parts)


def _list_faults(settings: Settings) -> list[str]:
    faults = []
    for name, values in (
        ("BROKER_TOKEN_STRATEGIES", settings.token_strategies),
        ("BROKER_PROXY_UPSTREAMS", settings.proxy_upstreams),
        ("BROKER_MEMORY_SINKS", settings.sinks),
    ):
        if len(set(values)) != len(values):
            faults.append(f"{name}: has a name twice; each may be there once")
    faults += [
        f"BROKER_ALLOWED_ORIGINS: {origin!r} is not an origin: write scheme, host and port alone, such as "
        "https://app.example.com or capacitor://localhost, or * for all"
        for origin in settings.allowed_origins
        if origin != "*" and not _is_origin(origin)
    ]
    proxies = settings.trusted_proxies
    if not (len(proxies) == 1 and proxies[0].isdecimal() and len(proxies[0]) <= _MAX_HOPS_DIGITS):
        for proxy in proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                faults.append(
                    f"BROKER_TRUSTED_PROXIES: {proxy!r} is neither a number of hops nor a CIDR such as 10.0.0.0/8"
                )
    return faults


def _is_origin(text: str) -> bool:
    if not (_WEB_ORIGIN.fullmatch(text) or APP_ORIGIN.fullmatch(text)):
        return False
    try:
        return urlsplit(text).port != 0  # raises for a port above 65,535, and for brackets without an IPv6 address
    except ValueError:
        return False


def _endpoints(settings: Settings) -> list[str]:
    """The endpoints of all resources; of a file that is unusable none: its own fault is told."""
    try:
        return [each.entry.endpoint for each in settings.resources]
    except ResourcesFileError:
        return []


def _host(url: str) -> str:
    try:
        return urlsplit(parse_endpoint(url)).hostname or ""
    except EndpointError:
        return ""
