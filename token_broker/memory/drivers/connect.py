"""Chooses the driver for BROKER_DATABASE_URL."""

import contextlib
from typing import TYPE_CHECKING

from token_broker.memory.drivers.database import Database

if TYPE_CHECKING:
    from pydantic import SecretStr

    from strategies.outbound_proxy import OutboundProxy

__all__ = ["connect"]


def connect(
    url: "SecretStr",
    *,
    timeout_s: float,
    patience_s: float,
    exclusive: bool = True,
    client_id: str | None = None,
    proxy: "OutboundProxy | None" = None,
) -> Database:
    """The database behind BROKER_DATABASE_URL; nothing is opened yet.

    Work ends within `timeout_s`. SQLite waits `patience_s` at most for another process's lock. An `exclusive` SQLite
    file is locked for this process at once. `client_id` names the managed identity whose token is the password where an
    Azure URL has none; Entra is asked for it through `proxy`. Raises StoreInUseError.
    """
    text = url.get_secret_value()
    if text.startswith("sqlite"):
        from token_broker.memory.drivers.sqlite import SqliteDatabase

        sqlite = SqliteDatabase(text, busy_s=patience_s, timeout_s=timeout_s, exclusive=exclusive)
        with contextlib.suppress(OSError):  # no folder, no permission: the store is away, and is tried again
            sqlite.lock()
        return sqlite
    from token_broker.memory.drivers.entra_password import EntraPassword, wants_entra_password
    from token_broker.memory.drivers.postgres import PostgresDatabase

    password = None
    if wants_entra_password(url):
        password = EntraPassword(url, client_id=client_id, timeout_s=timeout_s, proxy=proxy)
    return PostgresDatabase(text, timeout_s=timeout_s, password=password)
