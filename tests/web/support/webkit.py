"""A real WebKitGTK on a screen of its own, driven over WebDriver. It is what Debian has of Safari's engine.

Its driver does one thing at a time, so that waits are short questions, one after another.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.sockets import free_port
from tests.web.support.connection import ScriptError
from tests.web.support.page import ScriptPage
from tests.web.support.sound_card import SoundCard

__all__ = ["WebKitPage", "run_webkit", "webkit_page"]

HOW_TO = (
    "These tests need WebKitGTK with its driver and a screen of software, and {} was not found. Install it (Debian, "
    "Ubuntu: apt install webkit2gtk-driver xvfb)."
)
_START_S = 60
_CALL_S = 40
_POLL_S = 0.05


class WebKitPage(ScriptPage):
    """The one window of a session. Its driver tells nothing of the console; pages collect what they complain of."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._turn = asyncio.Lock()
        self.complaints: list[str] = []

    async def goto(self, url: str) -> None:
        await self._call("/url", url=url)

    async def run(self, expression: str, *, user_gesture: bool = False) -> Any:
        if not user_gesture:
            return await self._settled(f"({expression})")
        await self._settled(
            "void (window.__clicked = new Promise((resolve, reject) => addEventListener('click', () => {"
            f"try {{ resolve({expression}); }} catch (error) {{ reject(error); }}"
            "}, { once: true, capture: true })))"
        )
        await self._click()
        return await self._settled("__clicked")

    async def wait_for(self, condition: str, timeout_s: float = 10) -> Any:
        end_s = time.monotonic() + timeout_s
        while True:
            holds, value = await self.run(f"((value) => [Boolean(value), value])({condition})")
            if holds:
                return value
            if time.monotonic() > end_s:
                raise TimeoutError(f"not within {timeout_s} s: {condition}; the page says {self.complaints}")
            await asyncio.sleep(_POLL_S)

    async def _settled(self, expression: str) -> Any:
        script = (
            "const done = arguments[arguments.length - 1];"
            f"(async () => {expression})().then((value) => done({{ value: JSON.stringify(value) ?? 'null' }}),"
            "(error) => done({ error: String(error) }));"
        )
        outcome = await self._call("/execute/async", script=script, args=[])
        if "error" in outcome:
            raise ScriptError(outcome["error"])
        return httpx.Response(200, text=outcome["value"]).json()

    async def _click(self) -> None:
        """A real click, with the mouse."""
        steps = [
            {"type": "pointerMove", "x": 2, "y": 2, "duration": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        await self._call("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": steps}])

    async def _call(self, path: str, **body: Any) -> Any:
        async with self._turn:
            answer = await self._client.post(path, json=body)
        value = answer.json()["value"]
        if answer.is_error:
            raise ScriptError(f"{value['error']}: {value['message']}")
        return value


@contextlib.asynccontextmanager
async def webkit_page(session_url: str) -> AsyncIterator[WebKitPage]:
    """The window of a session that runs at `session_url`; it shows nothing at the end."""
    async with httpx.AsyncClient(base_url=session_url, timeout=_CALL_S) as client:
        page = WebKitPage(client)
        yield page
        await page.goto("about:blank")


@contextlib.contextmanager
def run_webkit(card: SoundCard | None) -> Iterator[str]:
    """A WebKitGTK that uses `card`; without one, its microphone beeps. Yields its session's address."""
    screen_program, driver, browser = find_webkit()
    with _screen(screen_program) as display:
        port = free_port()
        process = subprocess.Popen(
            [driver, f"--port={port}"],
            env=(card.environment if card else os.environ) | {"DISPLAY": display},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_START_S) as client:
                session = _open_session(client, process, browser, ["--enable-mock-capture-devices=true"] * (not card))
                yield f"http://127.0.0.1:{port}/session/{session}"
                client.delete(f"/session/{session}")
        finally:
            process.terminate()
            process.wait()


def find_webkit() -> tuple[str, str, str]:
    """The paths of the screen's program, the driver and the browser. Raises FileNotFoundError that says what to do."""
    if sys.platform != "linux":
        pytest.skip("WebKitGTK runs on Linux alone")
    found = [shutil.which("Xvfb"), shutil.which("WebKitWebDriver")]
    browsers = sorted(Path("/usr").glob("lib*/**/webkit2gtk-4*/MiniBrowser")) if all(found) else []
    for name, path in zip(("Xvfb", "WebKitWebDriver", "MiniBrowser"), [*found, *browsers[-1:], None], strict=False):
        if path is None:
            raise FileNotFoundError(HOW_TO.format(name))
    return str(found[0]), str(found[1]), str(browsers[-1])


@contextlib.contextmanager
def _screen(program: str) -> Iterator[str]:
    """An X server; yields the name of its display, which it chooses."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [program, "-displayfd", str(writer), "-screen", "0", "1100x900x24", "-nolisten", "tcp"],
        pass_fds=[writer], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writer)
    try:
        with open(reader) as told:  # noqa: PTH123  # a pipe; it ends with the process
            yield f":{told.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def _open_session(client: httpx.Client, process: subprocess.Popen[bytes], browser: str, more: list[str]) -> str:
    options = {"binary": browser, "args": ["--automation", "--enable-media-stream=true", *more]}
    wish = {"browserName": "MiniBrowser", "webkitgtk:browserOptions": options}
    end_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(httpx.ConnectError):
            answer = client.post("/session", json={"capabilities": {"alwaysMatch": wish}})
            assert answer.is_success, answer.text
            return str(answer.json()["value"]["sessionId"])
        time.sleep(0.05)
    raise RuntimeError(f"WebKitGTK can't be used (exit code {process.returncode})")
