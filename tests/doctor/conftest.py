"""A simulated Azure that the doctor must leave as it found it."""

from collections.abc import AsyncIterator

import pytest

from token_broker.simulator import RunningSimulator


@pytest.fixture
async def azure(azure: RunningSimulator) -> AsyncIterator[RunningSimulator]:
    """The same, and no connection may be left open at the test's end."""
    yield azure
    await azure.until(running=0)
