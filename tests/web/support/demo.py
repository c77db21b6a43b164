"""The broker as a user starts it: `token-broker demo`, a process of its own with its simulated Azure."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Demo", "run_demo"]

COMMAND = Path(sys.executable).parent / "token-broker"
START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 10


@dataclass
class Demo:
    """A running demo. `restart` ends the process as an operator's `kill` does, and starts it anew on the same port."""

    folder: Path
    port: int
    simulator_port: int
    settings: Mapping[str, str]
    process: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "BROKER_"))}
        environment |= {"PORT": str(self.port), "SIMULATOR_PORT": str(self.simulator_port), **self.settings}
        with (self.folder / "demo.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                COMMAND, "demo", cwd=self.folder, env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient(base_url=self.base_url) as client:
            while self.process.returncode is None:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise RuntimeError(f"the demo ended with {self.process.returncode}: {self.log()}")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(number)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def log(self) -> str:
        return (self.folder / "demo.log").read_text()

    async def set_faults(self, *faults: Mapping[str, Any]) -> None:
        """What the simulated Azure does wrong from now on; nothing, without any."""
        async with httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{self.simulator_port}/_simulator/faults"
            (await client.put(url, json=list(faults))).raise_for_status()

    async def turns(self, session_id: str, session_token: str) -> list[dict[str, Any]]:
        """The session's turns as the memory has them."""
        async with httpx.AsyncClient(base_url=self.base_url) as client:
            url = f"/api/v1/memory/sessions/{session_id}/turns"
            answer = await client.get(url, headers={"Authorization": f"Bearer {session_token}"})
            return list(answer.raise_for_status().json()["turns"])


@contextlib.asynccontextmanager
async def run_demo(folder: Path, **settings: str) -> AsyncIterator[Demo]:
    """A demo whose database and log lie in `folder`, until the end of the block."""
    demo = Demo(folder, _free_port(), _free_port(), {"BROKER_DRAIN_S": "1", **settings})
    await demo.start()
    try:
        yield demo
    finally:
        await demo.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
