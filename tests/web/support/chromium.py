"""A real, headless Chromium, driven over its DevTools protocol.

It is found by `CHROMIUM`, on the path, or where Playwright keeps its own; else Playwright's is installed.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

__all__ = ["Browser", "Page", "ScriptError", "find_chromium", "open_browser", "run_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLAYWRIGHT = "playwright-core@1.65.1"
START_TIMEOUT_S = 30
CALL_TIMEOUT_S = 30
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
    "--autoplay-policy=document-user-activation-required",
)

Event = dict[str, Any]


class ScriptError(AssertionError):
    """The page's own JavaScript threw."""


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


class Connection:
    """The DevTools protocol: numbered calls and their answers, and events by session."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Event]] = {}
        self._listeners: dict[str, list[Callable[[Event], None]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, session: str | None = None, **params: Any) -> Event:
        """Raises ScriptError where the browser refuses, TimeoutError where it is silent."""
        number = next(self._numbers)
        answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        await self._socket.send(json.dumps(message))
        return await asyncio.wait_for(answer, CALL_TIMEOUT_S)

    def listen(self, session: str, listener: Callable[[Event], None]) -> None:
        self._listeners.setdefault(session, []).append(listener)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if call := self._calls.pop(message.get("id"), None):
                if call.done():
                    continue
                if "error" in message:
                    call.set_exception(ScriptError(message["error"]["message"]))
                else:
                    call.set_result(message["result"])
            for listener in self._listeners.get(message.get("sessionId", ""), ()):
                listener(message)


class Page:
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

    async def run(self, expression: str, *, user_gesture: bool = False) -> Any:
        """The JSON value of an expression; a promise is awaited. Raises ScriptError."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=user_gesture
        )
        if failure := answer.get("exceptionDetails"):
            raise ScriptError(failure.get("exception", {}).get("description", failure["text"]))
        return answer["result"].get("value")

    async def wait_for(self, condition: str, timeout_s: float = 10) -> Any:
        """The first truthy value of an expression. Raises TimeoutError with the page's complaints."""
        script = f"""new Promise((resolve, reject) => {{
            const end = performance.now() + {timeout_s * 1000};
            const look = () => {{
                let value;
                try {{ value = {condition}; }} catch (error) {{ return reject(error); }}
                if (value) return resolve(value);
                if (performance.now() > end) return resolve("\\u0000late");
                setTimeout(look, 10);
            }};
            look();
        }})"""
        try:
            value = await asyncio.wait_for(self.run(script), timeout_s + 5)
        except ScriptError as error:
            if "context was destroyed" not in str(error) and "navigated" not in str(error):
                raise
            return await self.wait_for(condition, timeout_s)  # the page was loading
        if value == "\0late":
            raise TimeoutError(f"not within {timeout_s} s: {condition}; the page says {self.complaints}")
        return value

    async def text(self, test_id: str) -> str:
        return str(await self.run(f"{_find(test_id)}.textContent.trim()"))

    async def wait_for_text(self, test_id: str, expected: str, timeout_s: float = 10) -> None:
        """Waits until the element's whole text is `expected`."""
        await self.wait_for(f"{_find(test_id)}.textContent.trim() === {json.dumps(expected)}", timeout_s)

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
        await self.run(f"{_find(test_id)}.focus()")
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
                yield cls(connection)
            finally:
                await connection.close()

    @contextlib.asynccontextmanager
    async def page(self, *, scheme: str = "light", width: int = 1100, height: int = 820) -> AsyncIterator[Page]:
        """A tab, closed at the end.

        All tabs share one profile: a profile of its own costs a page as much CPU as some seconds of talk. What
        would tell pages apart is empty (the client keeps nothing in storage), or differs with the server's port.
        """
        page = await self.tab(scheme=scheme, width=width, height=height)
        try:
            yield page
        finally:
            await page.close()

    async def tab(self, *, scheme: str = "light", width: int = 1100, height: int = 820) -> Page:
        """A tab that stays open as long as the browser, or until it is closed."""
        target = (await self._connection.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self._connection.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self._connection, attached["sessionId"], target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
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
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
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
    for stop in (process.terminate, process.kill):
        stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


@contextlib.contextmanager
def _profile() -> Iterator[Path]:
    # Not pytest's tmp_path: Chromium's child processes may still write while it is removed.
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _find(test_id: str) -> str:
    return f"document.querySelector({json.dumps(f'[data-testid={test_id}]')})"
