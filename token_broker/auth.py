"""Who is asking: the principal that sessions, tickets, limits and the memory are bound to."""

from dataclasses import dataclass

__all__ = ["ANONYMOUS", "Principal"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who may ask.

    `id` is stable (`anonymous`, or the identity provider's own id for the user behind a prefix); `limit_key` is what
    rates are counted by: the id, or the address of somebody anonymous.
    """

    id: str
    limit_key: str

    @property
    def authenticated(self) -> bool:
        return self.id != ANONYMOUS


ANONYMOUS = "anonymous"
