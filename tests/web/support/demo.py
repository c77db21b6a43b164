"""The broker as a user starts it: `token-broker demo`, a process of its own with its simulated Azure."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.broker import plain_client
from tests.support.sockets import free_port
from tests.web.support.chromium import Page

__all__ = ["Demo", "page_turns", "run_demo", "turns_of"]

COMMAND = Path(sys.executable).parent / "token-broker"
START_TIMEOUT_S = 60  # the machine may be busy with other tests
STOP_TIMEOUT_S = 10


class Demo:
    """A demo whose database and log lie in `folder`. `start` and `stop` block; the ports stay across restarts.

    The process belongs to no event loop, so that the tests of a module share it while each has a loop of its own.
    """

    def __init__(self, folder: Path, *, echo: bool = True) -> None:
        """With `echo` it says what it hears, which tests compare; else it speaks as for a visitor."""
        self._folder = folder
        self._command = [str(COMMAND), "demo", *(["--echo"] if echo else [])]
        self._port, self._simulator_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "BROKER_"))}
        environment |= {"PORT": str(self._port), "SIMULATOR_PORT": str(self._simulator_port), "BROKER_DRAIN_S": "1"}
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.base_url}/readyz", trust_env=False).status_code == httpx.codes.OK:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the demo did not start: {self._log_file.read_text()}")

    def stop(self) -> None:
        """Ends the process as an operator's `kill` does."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def set_faults(self, *faults: Mapping[str, Any]) -> None:
        """Replaces the faults of all simulated resources; without any, they are healthy."""
        async with plain_client(f"http://127.0.0.1:{self._simulator_port}") as client:
            for name in (await client.get("/_simulator/resources")).raise_for_status().json():
                path = f"/_simulator/resources/{name}/faults"
                (await client.put(path, json=list(faults))).raise_for_status()

    async def recover(self) -> None:
        """Clears the faults, and what the broker has learned from them: a restart closes its circuit breakers."""
        await self.set_faults()
        async with plain_client(self.base_url) as client:
            strategies = (await client.get("/status")).raise_for_status().json()["strategies"]
        if any(strategy.get("breaker", "closed") != "closed" for strategy in strategies):
            await asyncio.to_thread(self.stop)
            await asyncio.to_thread(self.start)

    async def turns(self, session_id: str, session_token: str) -> list[dict[str, Any]]:
        """The session's turns as the memory has them."""
        async with plain_client(self.base_url) as client:
            url = f"/api/v1/memory/sessions/{session_id}/turns"
            answer = await client.get(url, headers={"Authorization": f"Bearer {session_token}"})
            return list(answer.raise_for_status().json()["turns"])

    @property
    def _log_file(self) -> Path:
        return self._folder / "demo.log"


@contextlib.contextmanager
def run_demo(folder: Path, *, echo: bool = True) -> Iterator[Demo]:
    """A demo, from its readiness until the end of the block."""
    demo = Demo(folder, echo=echo)
    try:
        demo.start()
        yield demo
    finally:
        demo.stop()


async def page_turns(page: Page, demo: Demo, count: int) -> list[dict[str, Any]]:
    """The session's turns in the memory, once there are `count`."""
    return await turns_of(await page.run("__plans.at(-1)"), demo, count)


async def turns_of(plan: dict[str, Any], demo: Demo, count: int) -> list[dict[str, Any]]:
    """As `page_turns`, for a page that may be gone."""
    async with asyncio.timeout(15):
        while len(turns := await demo.turns(plan["session_id"], plan["session_token"])) < count:  # noqa: ASYNC110  # another process commits
            await asyncio.sleep(0.1)
    return turns
