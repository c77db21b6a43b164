"""Owners and turns for tests, with only what a test cares about said."""

from datetime import UTC, datetime
from typing import Any

from token_broker.memory.types import Turn
from token_broker.security.tokens import Owner
from token_broker.web.requests import uuid7

SESSION = "session-0123456789"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def owner(session_id: str = SESSION, *, principal: str = "anonymous", epoch: int = 1, **fields: Any) -> Owner:
    return Owner(session_id, principal, epoch, **fields)


def turn(turn_id: str | None = None, content: str = "hello", *, by: Owner | None = None, **fields: Any) -> Turn:
    said = {"agent_id": "elena", "role": "user", "created_at": NOW, "source": "browser", **fields}
    return Turn(owner=by or owner(), turn_id=turn_id or uuid7(), content=content, **said)
