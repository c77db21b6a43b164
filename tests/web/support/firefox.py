"""A real, headless Firefox, driven over WebDriver BiDi. It is found by `FIREFOX`, or on the path."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from tests.web.support.connection import CALL_TIMEOUT_S, Connection, Event, ScriptError
from tests.web.support.page import ScriptPage, waiting
from tests.web.support.sound_card import SoundCard

__all__ = ["FirefoxPage", "firefox_page", "run_firefox"]

NAMES = ("firefox-esr", "firefox")
HOW_TO = (
    "These tests need a Firefox, and none was found. Install one (Debian: apt install firefox-esr), or name its "
    "executable in FIREFOX."
)
_START_S = 120
_PREFERENCES: dict[str, Any] = {
    "media.navigator.permission.disabled": True,  # the prompt is answered
    "media.peerconnection.ice.loopback": True,
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    # It asks nobody for news, and does nothing of its own.
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.downloads.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "browser.topsites.contile.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.ipc.processPrelaunch.enabled": False,
    "dom.ipc.processCount": 1,
    "dom.push.connection.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


def find_firefox() -> str:
    """The path of a Firefox. Raises FileNotFoundError that says what to do."""
    names = (os.environ["FIREFOX"],) if os.environ.get("FIREFOX") else NAMES
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    raise FileNotFoundError(HOW_TO)


class FirefoxPage(ScriptPage):
    """One tab."""

    def __init__(self, connection: Connection, context: str) -> None:
        self._connection = connection
        self._context = context
        self.complaints: list[str] = []
        connection.listen(context, self._hear)

    async def goto(self, url: str) -> None:
        await self._connection.call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def run(self, expression: str, *, user_gesture: bool = False, within_s: float = CALL_TIMEOUT_S) -> Any:
        answer = await self._connection.call(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._context}, awaitPromise=True, userActivation=user_gesture, within_s=within_s,
        )  # fmt: skip
        if answer["type"] == "exception":
            raise ScriptError(answer["exceptionDetails"]["text"])
        text = answer["result"].get("value")
        return None if text is None else json.loads(text)

    async def wait_for(self, condition: str, timeout_s: float = 10) -> Any:
        value = await self.run(waiting(condition, timeout_s), within_s=timeout_s + 5)
        return self.unless_late(value, condition, timeout_s)

    def _hear(self, message: Event) -> None:
        entry = message["params"]
        if message["method"] == "log.entryAdded" and entry["level"] in {"error", "warn"}:
            self.complaints.append(str(entry["text"]))


@contextlib.asynccontextmanager
async def firefox_page(url: str) -> AsyncIterator[FirefoxPage]:
    """A tab of the browser at the address `url`, closed at the end."""
    async with connect(url, max_size=2**28, compression=None) as socket:
        connection = Connection(socket)
        try:
            await connection.call("session.new", within_s=_START_S, capabilities={})
            await connection.call("session.subscribe", events=["log.entryAdded"])
            context = (await connection.call("browsingContext.create", within_s=_START_S, type="tab"))["context"]
            yield FirefoxPage(connection, context)
            await connection.call("browsingContext.close", context=context)
            await connection.call("session.end")
        finally:
            await connection.close()


@contextlib.contextmanager
def run_firefox(card: SoundCard | None) -> Iterator[str]:
    """A Firefox that uses `card`; without one, its microphone beeps. Yields its address for `firefox_page`."""
    program = find_firefox()
    with tempfile.TemporaryDirectory(prefix="firefox-", ignore_cleanup_errors=True) as folder:
        profile = Path(folder)
        preferences = _PREFERENCES | {"media.navigator.streams.fake": card is None}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items()]
        (profile / "user.js").write_text("".join(lines))
        process = subprocess.Popen(
            [program, "--headless", "--no-remote", "--profile", folder, "--remote-debugging-port=0", "about:blank"],
            env=(card.environment if card else os.environ) | {"HOME": folder},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield _address(profile, process)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """The browser writes it into its profile once it listens."""
    note = profile / "WebDriverBiDiServer.json"
    end_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(note.read_text())
            return f"ws://{told['ws_host']}:{told['ws_port']}/session"
        time.sleep(0.05)
    raise RuntimeError(f"Firefox can't be used (exit code {process.returncode})")
