"""The relay's asynchronous tests run on uvloop, as the broker does. Those about the loop's own traps run on both."""

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop

_ON_BOTH_LOOPS = frozenset({"test_azure_frames.py", "test_fast_path.py", "test_library_contracts.py"})
"""Their subject is how transports pause, buffer and fail, which each loop does by itself. With TEST_LOOP all do."""


@pytest.hookimpl
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], Any]] = {"uvloop": uvloop.new_event_loop}
    if os.environ.get("TEST_LOOP") or item.path.name in _ON_BOTH_LOOPS:
        factories["asyncio"] = asyncio.new_event_loop
    return factories


@pytest.fixture(autouse=True)
def calls_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang-up is seen soon, and what follows it is heard briefly."""
    monkeypatch.setattr("token_broker.calls.listener._CHECK_S", 0.05)
    monkeypatch.setattr("token_broker.calls.listener._LAST_EVENTS_S", 0.05)


@pytest.fixture
def late_transcripts_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a talk does not wait for a transcript that never comes."""
    monkeypatch.setattr("token_broker.relay.event_handler._LAST_TRANSCRIPT_S", 0.02)
