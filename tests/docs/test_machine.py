"""A busy machine excuses no test that fails for a reason of its own."""

import asyncio
import time

import pytest

from tests.support import machine


@pytest.mark.parametrize(
    ("too_busy_s", "or_skipped", "outcome"),
    [(0.05, True, pytest.skip.Exception), (60.0, True, AssertionError), (0.05, False, AssertionError)],
)
async def test_long_stalls_alone_skip_a_test(
    too_busy_s: float, or_skipped: bool, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_TOO_BUSY_S", too_busy_s)
    tried = 0

    @machine.retry_if_host_busy(tries=2, or_skipped=or_skipped)
    async def disturbed() -> None:
        nonlocal tried
        tried += 1
        await asyncio.sleep(0.02)
        time.sleep(0.1)  # noqa: ASYNC251  # the loop stands still
        await asyncio.sleep(0.02)
        raise AssertionError

    with pytest.raises(outcome):
        await disturbed()
    assert tried == 2
