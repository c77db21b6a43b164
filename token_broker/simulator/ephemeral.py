"""The ephemeral secrets this simulator minted: each opens sessions until it expires, and then nothing."""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import SecretStr

Dialect = Literal["ga", "preview"]

PREFIX = "ek_simulated_"


@dataclass(frozen=True, slots=True)
class EphemeralSecret:
    """A minted secret, and the configuration in its dialect's shape that a talk opened with it starts from."""

    value: SecretStr
    expires_at: float
    """Unix seconds, by the simulator's clock."""
    dialect: Dialect
    session: dict[str, Any]


class EphemeralSecrets:
    """Mints and looks up; forgets the oldest beyond `limit`, expired or not."""

    def __init__(self, now: Callable[[], float], *, limit: int = 10_000) -> None:
        self._now = now
        self._limit = limit
        self._minted: OrderedDict[str, EphemeralSecret] = OrderedDict()

    def mint(self, dialect: Dialect, session: dict[str, Any], ttl_s: float) -> EphemeralSecret:
        value = PREFIX + secrets.token_hex(24)
        # Whole seconds, as Azure states them: the stated and the real expiry are one.
        minted = EphemeralSecret(SecretStr(value), float(int(self._now() + ttl_s)), dialect, session)
        self._minted[value] = minted
        while len(self._minted) > self._limit:
            self._minted.popitem(last=False)
        return minted

    def find(self, value: str) -> EphemeralSecret | None:
        """The secret, if it was minted here and is still valid."""
        minted = self._minted.get(value)
        return minted if minted is not None and self._now() < minted.expires_at else None

    def expire(self, value: str) -> None:
        """Makes a secret worthless at once."""
        if value in self._minted:
            self._minted[value] = replace(self._minted[value], expires_at=0.0)
