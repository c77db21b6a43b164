"""A simulator a test, in the test's own event loop, and a client that talks to it."""

from collections.abc import AsyncIterator

import httpx
import pytest

from token_broker.simulator import RunningSimulator, serve


@pytest.fixture
async def azure() -> AsyncIterator[RunningSimulator]:
    """Every kind at once, healthy; at the test's end nothing may be left over in it."""
    async with serve() as running:
        yield running
    assert running.running == 0


@pytest.fixture
async def keyed(azure: RunningSimulator) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that simulator with the right key."""
    async with httpx.AsyncClient(base_url=azure.base_url, headers={"api-key": "simulated-key"}, timeout=5) as client:
        yield client
