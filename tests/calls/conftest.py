"""Tests of calls run on uvloop, as those of the relay do; a hang-up is seen soon, and what follows it heard briefly."""

import pytest

from tests.relay.conftest import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]


@pytest.fixture(autouse=True)
def _short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._CHECK_S", 0.05)
    monkeypatch.setattr("token_broker.calls.listener._LAST_EVENTS_S", 0.05)
