"""Who is asking: the principal that sessions, tickets, limits and the memory are bound to."""

from dataclasses import dataclass
from typing import Protocol

import httpx
from starlette.types import Scope

from token_broker.settings import Settings

__all__ = ["ANONYMOUS", "Authenticator", "Principal", "make_authenticator"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who may ask.

    `id` is stable (`anonymous`, or the identity provider's own id for the user behind a prefix); `limit_key` is what
    rates are counted by: the id, or the address of somebody anonymous.
    """

    id: str
    limit_key: str

    @property
    def subject(self) -> str:
        """The user's own id, without what stands before it."""
        return self.id.rpartition(":")[2]

    @property
    def authenticated(self) -> bool:
        return self.id != ANONYMOUS


ANONYMOUS = "anonymous"


class Authenticator(Protocol):
    """Tells who a request is from."""

    async def authenticate(self, scope: Scope) -> Principal:
        """The principal. Raises Problem 401."""
        ...


class _Anybody:
    async def authenticate(self, scope: Scope) -> Principal:
        return Principal(ANONYMOUS, (scope.get("client") or ("",))[0])


def make_authenticator(settings: Settings, client: httpx.AsyncClient) -> Authenticator:
    """The authenticator that BROKER_AUTH names."""
    del settings, client
    return _Anybody()
