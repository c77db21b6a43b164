"""Parses an Azure endpoint into its cloud, its kind and the base URLs of its routes.

One AI Services resource answers on several hosts that share its name (docs/azure.md §1.1). The host that was configured
decides which routes there are, and GA's mint is derived from its name. Its last labels say which cloud it is in (§1.2).
"""

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

__all__ = [
    "LIVE_PATH",
    "Cloud",
    "EndpointError",
    "EndpointKind",
    "Target",
    "cloud_of",
    "cloud_of_postgres",
    "is_live_endpoint",
    "is_loopback",
    "parse_endpoint",
    "parse_target",
]

LIVE_PATH = "/openai/v1/live/sessions"
"""Where GPT-Live's sessions are at a resource: a session's endpoint is the base URL with this."""
_API_PATHS = ("/openai", "/api/projects", "/voice-live")


def is_live_endpoint(endpoint: str) -> bool:
    """Whether a call at this endpoint is a session of GPT-Live's."""
    return endpoint.endswith(LIVE_PATH)


class EndpointError(ValueError):
    """The endpoint is invalid. The message says what would be right and never repeats credentials."""


class EndpointKind(StrEnum):
    """What answers behind the configured host."""

    DIRECT = "direct"  # Azure OpenAI: mints, SDP, the GA socket
    UNIFIED = "unified"  # AI Services: Voice Live, and the first version's mint routes


@dataclass(frozen=True, slots=True)
class Cloud:
    """One of Azure's clouds: how its hosts end, and where and for what its Entra gives tokens."""

    name: str  # as `az cloud set` takes it
    domain: str
    authority: str
    unified_scope: str
    direct_scope: str
    postgres_domain: str
    postgres_scope: str
    authority_aliases: tuple[str, ...] = ()  # hosts that the same Entra answers at

    def scope(self, host: str) -> str:
        """The scope of tokens for `host`."""
        return self.unified_scope if host.endswith(f".services.ai.{self.domain}") else self.direct_scope

    @property
    def scopes(self) -> frozenset[str]:
        """Every scope whose tokens Azure's voice services take."""
        return frozenset(f"https://{name}.{self.domain}/.default" for name in ("ai", "cognitiveservices"))

    def has_authority(self, url: str) -> bool:
        """Whether this cloud's Entra answers at `url`."""
        return urlsplit(url).hostname in {urlsplit(self.authority).hostname, *self.authority_aliases}


_PUBLIC = Cloud(
    "AzureCloud",
    "azure.com",
    "https://login.microsoftonline.com",
    unified_scope="https://ai.azure.com/.default",
    direct_scope="https://ai.azure.com/.default",
    postgres_domain="postgres.database.azure.com",
    postgres_scope="https://ossrdbms-aad.database.windows.net/.default",
    authority_aliases=("login.windows.net", "login.microsoft.com"),
)
_CLOUDS = (
    _PUBLIC,
    Cloud(
        "AzureUSGovernment",
        "azure.us",
        "https://login.microsoftonline.us",
        unified_scope="https://ai.azure.us/.default",
        direct_scope="https://cognitiveservices.azure.us/.default",
        postgres_domain="postgres.database.usgovcloudapi.net",
        postgres_scope="https://ossrdbms-aad.database.usgovcloudapi.net/.default",
    ),
    Cloud(
        "AzureChinaCloud",
        "azure.cn",
        "https://login.partner.microsoftonline.cn",
        unified_scope="https://cognitiveservices.azure.cn/.default",
        direct_scope="https://cognitiveservices.azure.cn/.default",
        postgres_domain="postgres.database.chinacloudapi.cn",
        postgres_scope="https://ossrdbms-aad.database.chinacloudapi.cn/.default",
        authority_aliases=("login.chinacloudapi.cn",),
    ),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Base URLs of one Azure resource: scheme, host, port and a gateway's path, without a trailing slash."""

    base: str
    kind: EndpointKind
    openai_base: str
    project: str | None = None

    @property
    def unified_base(self) -> str | None:
        """Base of the unified and project routes and of Voice Live; None on a direct endpoint."""
        return self.base if self.kind is EndpointKind.UNIFIED else None


def is_loopback(host: str) -> bool:
    """True for localhost, its subdomains, 127.0.0.0/8 and ::1."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def cloud_of(*urls: str | None) -> Cloud:
    """The cloud of the first URL whose host is Azure's; the public one where none is, as behind a gateway."""
    hosts = [(urlsplit(url).hostname or "") for url in urls if url]
    return next((cloud for host in hosts for cloud in _CLOUDS if host.endswith(f".{cloud.domain}")), _PUBLIC)


def cloud_of_postgres(host: str) -> Cloud | None:
    """The cloud whose Azure Database for PostgreSQL has that host; None where none of them has."""
    return next((cloud for cloud in _CLOUDS if host.endswith(f".{cloud.postgres_domain}")), None)


def parse_endpoint(url: str, *, key_in: str = "a setting of its own") -> str:
    """The endpoint as a base URL to append routes to: no trailing slash, host in lower case.

    `key_in` is where a key belongs instead, for the error's text.

    Raises EndpointError unless it is the https URL of a resource; http is allowed on loopback.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise EndpointError("is not a URL; it looks like https://<resource>.openai.azure.com") from None
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not host or any(c.isspace() for c in url.strip()):
        raise EndpointError("is not an http(s) URL; it looks like https://<resource>.openai.azure.com")
    if parts.username is not None or parts.password is not None:
        raise EndpointError(f"must not carry a user or a password; a key belongs into {key_in}")
    if parts.query or parts.fragment:
        raise EndpointError("must not carry a query or a fragment; give the resource's base alone")
    if parts.scheme == "http" and not is_loopback(host):
        raise EndpointError("is plain http, which is for loopback hosts alone; use https")
    path = parts.path.rstrip("/")
    if any(path == api or path.startswith(api + "/") for api in _API_PATHS):
        raise EndpointError("carries an API's path; give the resource's base alone (a project has its own variable)")
    shown_host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown_host}{f':{port}' if port is not None else ''}{path}"


def parse_target(
    endpoint: str, *, kind: EndpointKind | None = None, openai_endpoint: str | None = None, project: str | None = None
) -> Target:
    """The target at `endpoint`. Raises EndpointError as `parse_endpoint` does.

    Without `kind` the host decides; an unknown host is unified. Without `openai_endpoint` it is the sibling host of the
    same resource, where `endpoint` is a unified host of Azure's, and otherwise `endpoint` itself.
    """
    base = parse_endpoint(endpoint)
    host = (urlsplit(base).hostname or "").lower()
    if kind is None:
        # Unified, since a gateway or a custom domain in front of a direct endpoint merely answers 404 to the routes
        # that it lacks; the other way round, routes that are there would never be asked.
        direct = tuple(f".openai.{cloud.domain}" for cloud in _CLOUDS)
        kind = EndpointKind.DIRECT if host.endswith(direct) else EndpointKind.UNIFIED
    if openai_endpoint:
        return Target(base, kind, parse_endpoint(openai_endpoint), project)
    for cloud in _CLOUDS:
        if host.endswith(unified := f".services.ai.{cloud.domain}"):
            return Target(base, kind, f"https://{host.removesuffix(unified)}.openai.{cloud.domain}", project)
    return Target(base, kind, base, project)
