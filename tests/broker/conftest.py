"""What the broker's tests share."""

import itertools
from typing import Any

import pytest

ANSWER = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"


@pytest.fixture
def calls_without_media(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated calls are answered without a WebRTC peer: no media is needed to see who takes an offer."""
    numbers = itertools.count(1)

    async def answer(*_: Any) -> tuple[str, str]:
        return f"rtc_without_media_{next(numbers)}", ANSWER

    monkeypatch.setattr("token_broker.simulator.realtime.call_routes.CallRoutes._answer", answer)
