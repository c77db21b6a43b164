"""A broker in a separate process."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from tests.relay.support.azure import ScriptedAzure
from tests.relay.support.broker import PATH, make_settings
from token_broker.security.tokens import Owner, TokenSigner
from token_broker.web.requests import uuid7

LOOP = os.environ.get("TEST_LOOP") or "uvloop"
"""The event loop of a broker's process, for tests that need it on one only."""
PYTHON = os.environ.get("DRAIN_TEST_PYTHON", sys.executable)  # another interpreter with the same packages


class Process:
    """The broker's process and its output."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def resident_kb(self) -> int:
        (line,) = [
            line
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        ]
        return int(line.split()[1])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while True:
                text = await self.process.stdout.readline()
                assert text, "the process ended without a word"
                with contextlib.suppress(ValueError):
                    facts: dict[str, Any] = json.loads(text)
                    return facts

    def ticket(self, session_id: str) -> str:
        return TokenSigner(make_settings("http://127.0.0.1:1").signing_keys).ticket(
            Owner(session_id, "anonymous", 1), agent_id="elena", ttl_s=60
        )

    def connect(self) -> Any:
        session = uuid7()
        url = f"ws://127.0.0.1:{self.port}{PATH}/{session}"
        return connect(url, subprotocols=["realtime", f"ticket.{self.ticket(session)}"], compression=None, proxy=None)  # type: ignore[list-item]


@contextlib.asynccontextmanager
async def broker_process(azure: ScriptedAzure, loop: str, *, grace_s: float) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        PYTHON, "-m", "tests.relay.support.drain_server", azure.url, loop, str(grace_s),
        stdout=asyncio.subprocess.PIPE, stderr=None,
    )  # fmt: skip
    try:
        running = Process(process, 0)
        running.port = (await running.line())["port"]
        yield running
        async with asyncio.timeout(60):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
