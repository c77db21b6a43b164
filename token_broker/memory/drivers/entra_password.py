"""An Entra token of the broker's own identity as the password of Azure Database for PostgreSQL.

A database URL without a password, on a host of that service, asks for this. Tokens last about an hour and are checked
only when a connection opens: so the driver gets a function that it calls for each connection.
"""

from urllib.parse import urlsplit

from pydantic import SecretStr

from strategies.credentials import EntraTokens, TokenSource, azure_identity_source
from strategies.endpoint import cloud_of, cloud_of_postgres
from strategies.errors import CredentialError
from strategies.outbound_proxy import OutboundProxy

__all__ = ["EntraPassword", "NoEntraPasswordError", "wants_entra_password"]


def wants_entra_password(url: SecretStr) -> bool:
    """Whether this PostgreSQL URL has a user and no password, on a host of Azure's."""
    parts = urlsplit(url.get_secret_value())
    return parts.username is not None and parts.password is None and cloud_of_postgres(parts.hostname or "") is not None


class NoEntraPasswordError(ConnectionError):
    """There is no token. The store handles it like a server that is away."""


class EntraPassword:
    """The token, cached and renewed by one request at a time; asyncpg gets `get` as its `password`."""

    def __init__(
        self,
        url: SecretStr,
        *,
        client_id: str | None,
        timeout_s: float,
        proxy: OutboundProxy | None = None,
        source: TokenSource | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        # Each cloud has its own service, and an Entra of its own that gives tokens for it (docs/azure.md §1.2).
        cloud = cloud_of_postgres(urlsplit(url.get_secret_value()).hostname or "") or cloud_of()
        # None in the public cloud: azure-identity's own reading of AZURE_AUTHORITY_HOST counts there.
        authority = None if cloud == cloud_of() else cloud.authority
        source = source or azure_identity_source(
            cloud.postgres_scope, client_id=client_id, authority=authority, proxy=proxy
        )
        self._tokens = EntraTokens(source, timeout_s=timeout_s)

    async def get(self) -> str:
        """A valid token. Raises NoEntraPasswordError where there is none in time."""
        try:
            return (await self._tokens.get(timeout_s=self._timeout_s)).get_secret_value()
        except CredentialError as error:
            raise NoEntraPasswordError(f"no Entra token for PostgreSQL: {error}") from None

    async def aclose(self) -> None:
        await self._tokens.aclose()
