"""Parses an Azure endpoint into its kind and the base URLs of its routes.

One AI Services resource answers on several hosts that share its name (docs/azure.md §1.1). The host that was configured
decides which routes there are, and GA's mint is derived from its name.
"""

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

__all__ = ["EndpointError", "EndpointKind", "Target", "is_loopback", "parse_endpoint", "parse_target"]

_DIRECT_SUFFIXES = (".openai.azure.com", ".openai.azure.us")
_UNIFIED_SUFFIXES = (".services.ai.azure.com", ".services.ai.azure.us")
_API_PATHS = ("/openai", "/api/projects", "/voice-live")


class EndpointError(ValueError):
    """The endpoint is invalid. The message says what would be right and never repeats credentials."""


class EndpointKind(StrEnum):
    """What answers behind the configured host."""

    DIRECT = "direct"  # Azure OpenAI: mints, SDP, the GA socket
    UNIFIED = "unified"  # AI Services: Voice Live, and the first version's mint routes


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


def parse_endpoint(url: str) -> str:
    """The endpoint as a base URL to append routes to: no trailing slash, host in lower case.

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
        raise EndpointError("must not carry a user or a password; the key belongs into AZURE_VOICELIVE_KEY")
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
        kind = EndpointKind.DIRECT if host.endswith(_DIRECT_SUFFIXES) else EndpointKind.UNIFIED
    if openai_endpoint:
        return Target(base, kind, parse_endpoint(openai_endpoint), project)
    for unified, direct in zip(_UNIFIED_SUFFIXES, _DIRECT_SUFFIXES, strict=True):
        if host.endswith(unified):
            return Target(base, kind, f"https://{host.removesuffix(unified)}{direct}", project)
    return Target(base, kind, base, project)
