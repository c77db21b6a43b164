"""What posts the hooks of these tests, and stores for their claims."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.hooks.support import secrets
from tests.memory.conftest import database, database_url
from token_broker.hooks.sender import HookSender, hook_client

__all__ = ["database", "database_url", "sender"]


@pytest_asyncio.fixture
async def sender() -> AsyncIterator[HookSender]:
    async with hook_client() as client:
        yield HookSender(client, secrets())
