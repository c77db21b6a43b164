"""Every asynchronous test of the relay runs on both event loops: traps differ between them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop


@pytest.hookimpl
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return factories
