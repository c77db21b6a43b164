"""A simulated Azure a test."""

from collections.abc import AsyncIterator

import pytest

from token_broker.simulator import RunningSimulator, serve


@pytest.fixture
async def azure() -> AsyncIterator[RunningSimulator]:
    """Every kind at once, healthy; at the test's end nothing may be left open."""
    async with serve() as running:
        yield running
        await running.until(running=0)
