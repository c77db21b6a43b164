"""Whose session it is. Every credential of the broker names an owner, and every turn is stored under one."""

from dataclasses import dataclass

__all__ = ["ANONYMOUS", "Owner"]

ANONYMOUS = "anonymous"
"""The principal of every caller without authentication."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a session: all that a token's claims say, so that a turn can bring its session along.

    `principal` is `ANONYMOUS` without authentication; `user_id` is then only a label. `epoch` grows with every plan
    of the session (milliseconds since 1970 at least), so that turns of a later connection sort behind earlier ones.
    """

    session_id: str
    principal: str
    epoch: int
    user_id: str | None = None
