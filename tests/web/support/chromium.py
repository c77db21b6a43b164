"""A real, headless Chromium, driven over its DevTools protocol.

It is found by `CHROMIUM`, on the path, or where Playwright keeps its own; else Playwright's is installed. First comes
the headless shell: the engine without the windows around it, whose processes cost twice the CPU of the pages.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import connect

from tests.web.support.connection import CALL_TIMEOUT_S, Connection, Event, ScriptError
from tests.web.support.page import ScriptPage, find, waiting

__all__ = ["Browser", "Page", "ScriptError", "find_chromium", "open_browser", "run_chromium"]

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLAYWRIGHT = "playwright-core@1.65.1"
START_TIMEOUT_S = 30
HOW_TO = (
    "The browser tests need a Chromium, and none was found. Install one (Debian, Ubuntu: apt install chromium), "
    f"or name its executable in CHROMIUM, or run: npx {PLAYWRIGHT} install --with-deps chromium"
)

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--use-fake-ui-for-media-stream",
    "--allow-loopback-in-peer-connection",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    # One process for all pages: starting one costs as much as loading a page. The first tab, which stays, keeps it.
    "--renderer-process-limit=1",
    "--autoplay-policy=document-user-activation-required",
)

# Nobody looks at the meters, whose frames cost as much as the talk.
_FEW_FRAMES = """
(() => {
  const [frame, later] = [window.requestAnimationFrame, window.setTimeout].map((real) => real.bind(window));
  window.requestAnimationFrame = (draw) => later(frame, 250, draw);
})();
"""


def find_chromium() -> str:
    """The path of a Chromium. Raises FileNotFoundError that says what to do."""
    if named := os.environ.get("CHROMIUM"):
        if found := shutil.which(named):
            return found
        raise FileNotFoundError(f"CHROMIUM names {named}, which can't be run. {HOW_TO}")
    if found := next(filter(None, map(shutil.which, NAMES)), None) or _playwrights():
        return found
    if shutil.which("npx"):
        command = ["npx", "--yes", PLAYWRIGHT, "install", "chromium"]
        subprocess.run(command, check=False, timeout=300, stdin=subprocess.DEVNULL)
        if found := _playwrights():
            return found
    raise FileNotFoundError(HOW_TO)


def _playwrights() -> str | None:
    roots = [os.environ.get("PLAYWRIGHT_BROWSERS_PATH"), "~/.cache/ms-playwright", "~/Library/Caches/ms-playwright"]
    for root in filter(None, roots):
        patterns = ("chromium-*/chrome-linux*/chrome", "chromium-*/chrome-mac*/*.app/Contents/MacOS/Chromium")
        for found in itertools.chain.from_iterable(Path(root).expanduser().glob(pattern) for pattern in patterns):
            return str(found)
    return None


class Page(ScriptPage):
    """One tab. `complaints` collects its console's errors and warnings, and its uncaught exceptions."""

    def __init__(self, connection: Connection, session: str, target: str) -> None:
        self._connection = connection
        self._session = session
        self._target = target
        self.complaints: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.received_bytes = 0
        connection.listen(session, self._hear)

    async def call(self, method: str, **params: Any) -> Event:
        return await self._connection.call(method, self._session, **params)

    async def close(self) -> None:
        """As a user closes a tab; one that is closed already stays so."""
        with contextlib.suppress(ScriptError):
            await self._connection.call("Target.closeTarget", targetId=self._target)

    async def on_every_page(self, script: str) -> None:
        """Runs `script` before the page's own, from the next `goto` on."""
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def goto(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def run(self, expression: str, *, user_gesture: bool = False, within_s: float = CALL_TIMEOUT_S) -> Any:
        answer = await self.call(
            "Runtime.evaluate",
            expression=expression, awaitPromise=True, returnByValue=True, userGesture=user_gesture, within_s=within_s,
        )  # fmt: skip
        if failure := answer.get("exceptionDetails"):
            raise ScriptError(failure.get("exception", {}).get("description", failure["text"]))
        return answer["result"].get("value")

    async def wait_for(self, condition: str, timeout_s: float = 10) -> Any:
        try:
            value = await self.run(waiting(condition, timeout_s), within_s=timeout_s + 5)
        except ScriptError as error:
            if "context was destroyed" not in str(error) and "navigated" not in str(error):
                raise
            return await self.wait_for(condition, timeout_s)  # the page was loading
        return self.unless_late(value, condition, timeout_s)

    async def click(self, test_id: str) -> None:
        await self.click_on(f"[data-testid={test_id}]")

    async def click_on(self, selector: str) -> None:
        """A real click, with the mouse, where the element is."""
        box = await self.wait_for(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e || e.disabled) return null;"
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            "return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1, buttons=1
            )

    async def type(self, test_id: str, text: str) -> None:
        await self.run(f"{find(test_id)}.focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, " ": 32}
        typed = {"Enter": "\r", " ": " "}.get(key)
        params = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": codes[key]}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **params, **({"text": typed} if typed else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    async def offline(self, *, gone: bool) -> None:
        """Takes the network away, or gives it back. Chromium leaves open WebSockets open meanwhile."""
        nothing = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await self.call("Network.emulateNetworkConditions", offline=gone, **nothing)

    async def screenshot(self) -> bytes:
        """A PNG of the visible page."""
        shot = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    def _hear(self, message: Event) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" if params["type"] in {"error", "warning", "assert"}:
                self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if params["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
            case "Network.requestWillBeSent":
                self.requests.append(params["request"])
            case "Network.loadingFinished":
                self.received_bytes += int(params["encodedDataLength"])


class Browser:
    """A running Chromium."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Self]:
        """Connects to the browser at the DevTools address `url`, until the end of the block."""
        async with connect(url, max_size=2**28, compression=None) as socket:
            connection = Connection(socket)
            try:
                # The headless shell answers prompts as the other does, but says of the permission that it is not given.
                await connection.call("Browser.grantPermissions", permissions=["audioCapture"])
                yield cls(connection)
            finally:
                await connection.close()

    @contextlib.asynccontextmanager
    async def page(
        self, *, scheme: str = "light", width: int = 1100, height: int = 820, still: bool = True
    ) -> AsyncIterator[Page]:
        """A tab, closed at the end. Where it is `still`, it has few frames and no animations.

        All tabs share one profile: a profile of its own costs a page as much CPU as some seconds of talk. What
        would tell pages apart is empty (the client keeps nothing in storage), or differs with the server's port.
        """
        page = await self.tab(scheme=scheme, width=width, height=height, still=still)
        try:
            yield page
        finally:
            await page.close()

    async def tab(self, *, scheme: str = "light", width: int = 1100, height: int = 820, still: bool = True) -> Page:
        """A tab that stays open as long as the browser, or until it is closed."""
        target = (await self._connection.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self._connection.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self._connection, attached["sessionId"], target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        if still:
            features.append({"name": "prefers-reduced-motion", "value": "reduce"})
            await page.on_every_page(_FEW_FRAMES)
        await page.call("Emulation.setEmulatedMedia", features=features)
        return page

    async def call(self, method: str, **params: Any) -> Event:
        return await self._connection.call(method, **params)


@contextlib.contextmanager
def run_chromium(
    microphone: Path | None = None, *, devices: bool = True, trusting: bool = False, hosts: str = ""
) -> Iterator[str]:
    """A Chromium whose microphone plays a WAV file over and over (without one, it beeps), or that has no devices.

    `trusting` makes it accept any certificate, for TLS on loopback. `hosts` leads names elsewhere, such as
    `MAP login.microsoftonline.com 127.0.0.1:8443`. Yields the address of its DevTools, for
    `Browser.connect`: many tests use one browser, each in a tab of its own.
    """
    with _profile() as profile:
        sound = ["--use-fake-device-for-media-stream"] if devices else []
        sound += [f"--use-file-for-fake-audio-capture={microphone}"] if microphone else []
        trust = ["--ignore-certificate-errors"] if trusting else []
        trust += [f"--host-resolver-rules={hosts}"] if hosts else []
        process = subprocess.Popen(
            [find_chromium(), *_FLAGS, *sound, *trust, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            yield _devtools_url(profile, process)
        finally:
            _end(process)


@contextlib.asynccontextmanager
async def open_browser(microphone: Path | None = None, *, devices: bool = True) -> AsyncIterator[Browser]:
    """A Chromium for one test alone."""
    with run_chromium(microphone, devices=devices) as url:
        async with Browser.connect(url) as browser:
            yield browser


def _devtools_url(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """The browser writes its port into its profile once it listens."""
    port_file = profile / "DevToolsActivePort"
    end_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < end_s:
        lines = port_file.read_text().splitlines() if port_file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.02)
    raise RuntimeError(f"Chromium can't be used (exit code {process.returncode})")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the browser with its group: Debian's command is a shell that waits for it."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


@contextlib.contextmanager
def _profile() -> Iterator[Path]:
    # Not pytest's tmp_path: Chromium's child processes may still write while it is removed.
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
