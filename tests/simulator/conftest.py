"""A client that talks to the test's simulator."""

from collections.abc import AsyncIterator

import httpx
import pytest

from token_broker.simulator import RunningSimulator


@pytest.fixture
async def keyed(azure: RunningSimulator) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that simulator with the right key."""
    async with httpx.AsyncClient(base_url=azure.base_url, headers={"api-key": "simulated-key"}, timeout=5) as client:
        yield client
