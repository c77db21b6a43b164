"""The ephemeral secrets that this simulator minted: each opens sessions until it expires."""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import SecretStr

Dialect = Literal["ga", "preview"]

PREFIX = "ek_simulated_"


def new_id(prefix: str) -> str:
    """An id as Azure makes them: a prefix for the kind, and random digits."""
    return f"{prefix}_{secrets.token_hex(11)}"


@dataclass(frozen=True, slots=True)
class EphemeralSecret:
    """A minted secret, and the configuration in its dialect's shape that a talk opened with it starts from."""

    value: SecretStr
    expires_at: float
    """Unix seconds, by the simulator's clock."""
    dialect: Dialect
    session: dict[str, Any]
    session_id: str
    """Of the first session that it opens: the mint's answer states it already."""


class EphemeralSecrets:
    """Mints and looks up. It forgets the oldest beyond `limit`, expired or not."""

    def __init__(self, now: Callable[[], float], *, limit: int = 10_000) -> None:
        self._now = now
        self._limit = limit
        self._minted: OrderedDict[str, EphemeralSecret] = OrderedDict()
        self._unopened: set[str] = set()

    def mint(self, dialect: Dialect, session: dict[str, Any], ttl_s: float) -> EphemeralSecret:
        """A secret that opens such a session for so long."""
        value = PREFIX + secrets.token_hex(24)
        # Whole seconds, as Azure states them: the stated and the real expiry are one.
        minted = EphemeralSecret(SecretStr(value), float(int(self._now() + ttl_s)), dialect, session, new_id("sess"))
        # In the order of minting, so that the first is the oldest.
        self._minted[value] = minted
        self._unopened.add(minted.session_id)
        while len(self._minted) > self._limit:
            _, forgotten = self._minted.popitem(last=False)
            self._unopened.discard(forgotten.session_id)
        return minted

    def find(self, value: str) -> EphemeralSecret | None:
        """The secret, if it was minted here and is still valid."""
        minted = self._minted.get(value)
        return minted if minted is not None and self._now() < minted.expires_at else None

    def session_id_for(self, secret: EphemeralSecret) -> str | None:
        """The id that the mint stated, for the first session; later ones get ids of their own."""
        if secret.session_id not in self._unopened:
            return None
        self._unopened.discard(secret.session_id)
        return secret.session_id

    def expire(self, value: str) -> None:
        """Makes a secret worthless at once."""
        if value in self._minted:
            self._minted[value] = replace(self._minted[value], expires_at=0.0)
