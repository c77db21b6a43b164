# ruff: noqa: INP001  # a script, no package
"""Which modules a request passes: those with a frame of theirs that runs while it is answered, in this process."""

import asyncio
import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import SecretStr

from tests.memory.support.zep import KEY, running_zep
from tests.support.broker import make_settings, run_broker
from token_broker.simulator import serve

__all__ = ["measure"]

_WARM_UP = 2  # what is imported or opened once is no part of a request
_RUNS = 5  # what only some of them pass is the work of something that ran beside them
_SETTLE_S = 0.3  # the answer is there; what it left to do beside it, in the store above all, is not yet done
_PERIODIC = {
    "call-events",
    "call-leases",
    "memory-blocklist",
    "memory-erased sessions",
    "memory-resources",
    "memory-sweeping",
    "usage-ledger",
}
"""Tasks of the broker that run again and again. On a busy machine they would run beside each request."""
_SLOW_MACHINE = {"token_budget_s": 60, "attempt_timeout_s": 30}


class _Recorder:
    """Notes the modules whose functions are called while it is on."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages
        self._on = False
        self.seen: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if self._on and event == "call":
            name = frame.f_globals.get("__name__", "")
            if name.partition(".")[0] in self._packages and not name.startswith("token_broker.simulator"):
                self.seen.add(name)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        self.seen, self._on = set(), True
        try:
            yield
        finally:
            self._on = False


def measure(packages: tuple[str, ...]) -> dict[str, set[str]]:
    """The modules that `POST /realtime/token` passes, and a turn on its way into the store and to Zep."""
    recorder = _Recorder(packages)
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the broker's log
            return asyncio.run(_measure(recorder))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def _measure(recorder: _Recorder) -> dict[str, set[str]]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "token": await _token(recorder, Path(folder)),
            "turn": await _turn(recorder, Path(folder)),
        }


async def _token(recorder: _Recorder, folder: Path) -> set[str]:
    async with serve() as azure, run_broker(make_settings(folder, azure.base_url, **_SLOW_MACHINE)) as broker:

        async def ask() -> None:
            plan = await broker.plan({"agent_id": "elena"})
            assert plan["strategy"] == "ga"  # noqa: S101  # else another path was measured

        return await _passed(recorder, ask)


async def _turn(recorder: _Recorder, folder: Path) -> set[str]:
    async with serve() as azure, running_zep() as zep:
        to_zep: dict[str, Any] = {"zep_api_key": SecretStr(KEY), "zep_api_url": zep.base_url}
        settings = make_settings(folder, azure.base_url, **to_zep, **_SLOW_MACHINE)
        async with run_broker(settings) as broker:
            plan = await broker.plan()
            headers = {"Authorization": f"Bearer {plan['session_token']}"}
            sent = 0

            async def say() -> None:
                nonlocal sent
                sent += 1
                body = {"session_id": plan["session_id"], "agent_id": plan["agent_id"], "turn_id": f"turn-{sent}"}
                body |= {"role": "user", "content": "hello"}
                answer = await broker.client.post("/conversation/turn", json=body, headers=headers)
                answer.raise_for_status()
                await zep.has(sent)

            return await _passed(recorder, say)


async def _passed(recorder: _Recorder, request: Callable[[], Awaitable[None]]) -> set[str]:
    for _ in range(_WARM_UP):
        await request()
        await asyncio.sleep(_SETTLE_S)
    await _stop_periodic()
    runs = []
    for _ in range(_RUNS):
        with recorder.recording():
            await request()
            await asyncio.sleep(_SETTLE_S)
        runs.append(recorder.seen)
    return set.intersection(*runs)


async def _stop_periodic() -> None:
    tasks = {task.get_name(): task for task in asyncio.all_tasks() if task.get_name() in _PERIODIC}
    assert tasks.keys() == _PERIODIC, f"other names by now: {_PERIODIC - tasks.keys()}"  # noqa: S101
    for task in tasks.values():
        task.cancel()
    await asyncio.wait(tasks.values())
