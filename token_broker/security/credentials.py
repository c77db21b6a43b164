"""The credential that a client presents, wherever it can put one (docs/api.md §6.4).

Each official client has its own place for a key, and the browser ones have no headers: so it may come as a header, in
the query, or as a subprotocol. Several places may name the same one; two different ones are refused, since nobody
could say which was meant.
"""

from collections.abc import Iterator
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Scope

from token_broker.security.tokens import CLIENT_SECRET_PREFIX

__all__ = ["SUBPROTOCOL_PREFIXES", "SeveralCredentialsError", "extract_credential"]

SUBPROTOCOL_PREFIXES = ("openai-insecure-api-key.", "ticket.")
_QUERY_NAMES = frozenset({"api-key", "authorization"})
_MAX_QUERY_FIELDS = 64


class SeveralCredentialsError(Exception):
    """More than one credential was presented, and they differ."""


def extract_credential(scope: Scope) -> str | None:
    """The one credential of an HTTP or WebSocket scope, without `Bearer`; None where there is none.

    Raises SeveralCredentialsError. With `ek_` and without it is the same credential.
    """
    found = [credential for text in _places(scope) if (credential := _bare(text))]
    if len({credential.removeprefix(CLIENT_SECRET_PREFIX) for credential in found}) > 1:
        raise SeveralCredentialsError
    return found[0] if found else None


def _places(scope: Scope) -> Iterator[str]:
    headers = Headers(scope=scope)
    for value in headers.getlist("authorization"):
        scheme, _, credential = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            yield credential
    yield from headers.getlist("api-key")
    query = scope.get("query_string", b"").decode("latin-1")
    try:
        fields = parse_qsl(query, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        fields = []
    for name, value in fields:
        if name.lower() in _QUERY_NAMES:
            yield value
    for offered in scope.get("subprotocols", ()):
        for prefix in SUBPROTOCOL_PREFIXES:
            if offered.startswith(prefix):
                yield offered.removeprefix(prefix)


def _bare(text: str) -> str:
    text = text.strip()
    scheme, _, credential = text.partition(" ")
    if scheme.lower() == "bearer":
        return credential.strip()
    return text
