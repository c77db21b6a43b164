"""An Entra token of the broker's own identity as the password of Azure Database for PostgreSQL.

A database URL without a password, on a host of that service, asks for this. Tokens last about an hour and are checked
only when a connection opens: so the driver gets a function that it calls for each connection.
"""

from urllib.parse import urlsplit

from pydantic import SecretStr

from strategies.credentials import EntraTokens, TokenSource, azure_identity_source
from strategies.errors import CredentialError
from strategies.outbound_proxy import OutboundProxy

__all__ = ["EntraPassword", "NoEntraPasswordError", "wants_entra_password"]

# https://learn.microsoft.com/azure/postgresql/flexible-server/security-entra-configure
SCOPE = "https://ossrdbms-aad.database.windows.net/.default"
_HOST_SUFFIX = ".postgres.database.azure.com"


def wants_entra_password(url: SecretStr) -> bool:
    """Whether this PostgreSQL URL has a user and no password, on a host of Azure's."""
    parts = urlsplit(url.get_secret_value())
    return parts.username is not None and parts.password is None and (parts.hostname or "").endswith(_HOST_SUFFIX)


class NoEntraPasswordError(ConnectionError):
    """There is no token. The store handles it like a server that is away."""


class EntraPassword:
    """The token, cached and renewed by one request at a time; asyncpg gets `get` as its `password`."""

    def __init__(
        self,
        *,
        client_id: str | None,
        timeout_s: float,
        proxy: OutboundProxy | None = None,
        source: TokenSource | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        source = source or azure_identity_source(SCOPE, client_id=client_id, proxy=proxy)
        self._tokens = EntraTokens(source, timeout_s=timeout_s)

    async def get(self) -> str:
        """A valid token. Raises NoEntraPasswordError where there is none in time."""
        try:
            return (await self._tokens.get(timeout_s=self._timeout_s)).get_secret_value()
        except CredentialError as error:
            raise NoEntraPasswordError(f"no Entra token for PostgreSQL: {error}") from None

    async def aclose(self) -> None:
        await self._tokens.aclose()
