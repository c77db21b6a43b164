"""The chain and hedging are tested in virtual time: what they wait for costs nothing, and no busy machine is late."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tests.strategies.virtual_time import VirtualTimeLoop

_IN_VIRTUAL_TIME = frozenset({"test_chain.py", "test_hedging.py"})


@pytest.hookimpl
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    is_virtual = item.path.name in _IN_VIRTUAL_TIME
    return {"virtual": VirtualTimeLoop} if is_virtual else {"asyncio": asyncio.new_event_loop}
