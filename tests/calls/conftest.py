"""Tests of calls run on uvloop, as those of the relay do; what follows a hang-up is awaited for a moment only."""

import pytest

from tests.relay.conftest import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]


@pytest.fixture(autouse=True)
def _short_last_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._LAST_EVENTS_S", 0.05)
