"""Classifies a request's credential, and refuses those that a route does not take.

docs/azure.md §1.2: `api-key`, or a Bearer Entra token; only under `/openai/v1` may the key come as Bearer.
"""

import hmac
from collections.abc import Collection
from enum import StrEnum

from pydantic import SecretStr
from starlette.datastructures import Headers

from token_broker.simulator import azure_errors
from token_broker.simulator.config import SimulatorConfig
from token_broker.simulator.ephemeral import PREFIX, EphemeralSecrets

BEARER = "bearer "


class Credential(StrEnum):
    """What a request carries."""

    NONE = "none"
    KEY = "key"
    KEY_AS_BEARER = "key_as_bearer"
    ENTRA = "entra"
    ENTRA_WITHOUT_ROLE = "entra_without_role"
    EPHEMERAL = "ephemeral"
    EPHEMERAL_EXPIRED = "ephemeral_expired"
    UNKNOWN = "unknown"


def credential_of(headers: Headers, config: SimulatorConfig, secrets: EphemeralSecrets) -> Credential:
    """Classifies what the request carries. An `api-key` header wins over `Authorization`."""
    # Azure's gateway looks at the key first: a wrong one is refused, however good the bearer token is.
    key = headers.get("api-key")
    if key is not None:
        return Credential.KEY if _same(key, config.key) else Credential.UNKNOWN
    token = bearer_of(headers)
    if token is None:
        return Credential.NONE
    if token.startswith(PREFIX):
        return Credential.EPHEMERAL if secrets.find(token) else Credential.EPHEMERAL_EXPIRED
    if any(_same(token, entra) for entra in config.entra_tokens):
        return Credential.ENTRA
    if any(_same(token, entra) for entra in config.roleless_entra_tokens):
        return Credential.ENTRA_WITHOUT_ROLE
    return Credential.KEY_AS_BEARER if _same(token, config.key) else Credential.UNKNOWN


def bearer_of(headers: Headers) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    value = headers.get("authorization", "")
    return value[len(BEARER) :].strip() if value.lower().startswith(BEARER) else None


def admit(credential: Credential, config: SimulatorConfig, taken: Collection[Credential]) -> None:
    """Raises the refusal that Azure would send unless `credential` is among those the route takes."""
    if credential is Credential.NONE:
        raise azure_errors.key_missing()
    # A principal without the role is told so on every route, even one that takes no Entra token.
    if credential is Credential.ENTRA_WITHOUT_ROLE:
        raise azure_errors.permission_denied()
    if credential not in taken:
        raise azure_errors.key_wrong()
    # After the key was compared: only the holder of the right key learns that keys are switched off.
    if config.keys_disabled and credential in {Credential.KEY, Credential.KEY_AS_BEARER}:
        raise azure_errors.keys_disabled()


def _same(given: str, expected: SecretStr) -> bool:
    # As bytes: `compare_digest` takes no text beyond ASCII, and a request may hold any.
    return hmac.compare_digest(given.encode(), expected.get_secret_value().encode())
