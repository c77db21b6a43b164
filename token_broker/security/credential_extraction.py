"""Credential extraction: finds the key or token of a request, wherever its client puts it (docs/api.md §6.4).

Each official client sends its key in a place of its own, and a browser can't set headers on a WebSocket. So the
credential may be a header, a query parameter or a subprotocol. Several places may hold the same one; two different ones
are refused, because nothing says which was meant.
"""

import contextlib
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Scope

from token_broker.security.tokens import CLIENT_SECRET_PREFIX, is_ours
from token_broker.web.requests import SESSION_TOKEN_HEADER, bearer_of, without_scheme

__all__ = [
    "SUBPROTOCOL_PREFIXES",
    "SeveralCredentialsError",
    "extract_credential",
]

SUBPROTOCOL_PREFIXES = ("openai-insecure-api-key.", "ticket.")
_QUERY_NAMES = frozenset({"api-key", "authorization"})
_MAX_QUERY_FIELDS = 64  # official clients send two or three


class SeveralCredentialsError(Exception):
    """A request has two credentials that differ."""


def extract_credential(scope: Scope, *, header: bool = True) -> str | None:
    """The credential of an HTTP or WebSocket scope, without `Bearer`; None where there is none.

    A client secret with and without its prefix `ek_` counts as the same credential. X-Session-Token counts where
    `header` says so and no other place has a credential of the broker's. Raises SeveralCredentialsError.
    """
    headers = Headers(scope=scope)
    found = [*map(bearer_of, headers.getlist("authorization")), *headers.getlist("api-key")]
    query = scope.get("query_string", b"").decode("latin-1")
    with contextlib.suppress(ValueError):  # more fields than any client sends
        fields = parse_qsl(query, max_num_fields=_MAX_QUERY_FIELDS)
        found += [value for name, value in fields if name.lower() in _QUERY_NAMES]
    found += [
        offered.removeprefix(prefix)
        for offered in scope.get("subprotocols", ())
        for prefix in SUBPROTOCOL_PREFIXES
        if offered.startswith(prefix)
    ]
    credentials = [credential for text in found if (credential := without_scheme(text))]
    session_token = without_scheme(headers.get(SESSION_TOKEN_HEADER, "")) if header else ""
    if session_token and not any(map(is_ours, credentials)):
        return session_token
    if len({credential.removeprefix(CLIENT_SECRET_PREFIX) for credential in credentials}) > 1:
        raise SeveralCredentialsError
    return credentials[0] if credentials else None
