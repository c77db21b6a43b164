"""A start where a browser's API is missing, throws, rejects, or never settles: another way, or a code in time."""

import asyncio

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser
from tests.web.support.fake_broker import DIRECT, PROXY, FakeBroker, run_fake

NEVER = "() => new Promise(() => {})"
THROWS = "() => { throw new DOMException('no', 'NotSupportedError'); }"
REJECTS = "() => Promise.reject(new DOMException('no', 'NotSupportedError'))"
MEDIA, PEER, CONTEXT = "navigator.mediaDevices", "RTCPeerConnection.prototype", "AudioContext.prototype"


def without(name: str) -> str:
    return f"delete globalThis.{name};"


def lacking(owner: str, name: str) -> str:
    return f"Object.defineProperty({owner}, '{name}', {{ value: undefined, configurable: true }});"


def replaced(owner: str, name: str, function: str) -> str:
    return f"Object.defineProperty({owner}, '{name}', {{ value: {function}, configurable: true, writable: true }});"


STUBS = {
    # what is stubbed: (the stub, how it ends)
    "no WebRTC": (without("RTCPeerConnection"), PROXY),
    "WebRTC throws": (f"globalThis.RTCPeerConnection = function () {{ ({THROWS})(); }};", PROXY),
    "createDataChannel throws": (replaced(PEER, "createDataChannel", THROWS), PROXY),
    "addTrack throws": (replaced(PEER, "addTrack", THROWS), PROXY),
    "setLocalDescription hangs": (replaced(PEER, "setLocalDescription", NEVER), PROXY),
    "setLocalDescription rejects": (replaced(PEER, "setLocalDescription", REJECTS), PROXY),
    "setRemoteDescription hangs": (replaced(PEER, "setRemoteDescription", NEVER), PROXY),
    "setRemoteDescription rejects": (replaced(PEER, "setRemoteDescription", REJECTS), PROXY),
    "no AudioContext": (without("AudioContext"), DIRECT),
    "AudioContext throws": (f"globalThis.AudioContext = class {{ constructor() {{ ({THROWS})(); }} }};", DIRECT),
    "no AnalyserNode": (without("AnalyserNode"), DIRECT),
    "no GainNode": (without("GainNode"), DIRECT),
    "no worklets": (lacking(CONTEXT, "audioWorklet"), DIRECT),
    "addModule hangs": (replaced("AudioWorklet.prototype", "addModule", NEVER), DIRECT),
    "addModule rejects": (replaced("AudioWorklet.prototype", "addModule", REJECTS), DIRECT),
    "resume hangs": (replaced(CONTEXT, "resume", NEVER), DIRECT),
    "resume rejects": (replaced(CONTEXT, "resume", REJECTS), DIRECT),
    "createMediaStreamSource throws": (replaced(CONTEXT, "createMediaStreamSource", THROWS), DIRECT),
    "Audio never plays": (replaced("HTMLMediaElement.prototype", "play", NEVER), DIRECT),
    "Audio does not play": (replaced("HTMLMediaElement.prototype", "play", REJECTS), DIRECT),
    "no permissions": (lacking("navigator", "permissions"), DIRECT),
    "permissions hang": (replaced("navigator.permissions", "query", NEVER), DIRECT),
    "no mediaDevices": (lacking("navigator", "mediaDevices"), "microphone_insecure"),
    "getUserMedia hangs": (replaced(MEDIA, "getUserMedia", NEVER), "microphone_busy"),
    "getUserMedia rejects": (replaced(MEDIA, "getUserMedia", REJECTS), "microphone_failed"),
    "getUserMedia throws": (replaced(MEDIA, "getUserMedia", THROWS), "microphone_failed"),
    "no tracks": (replaced(MEDIA, "getUserMedia", "async () => new MediaStream()"), "microphone_missing"),
    "enumerateDevices hangs": (replaced(MEDIA, "enumerateDevices", NEVER), DIRECT),
    "no BroadcastChannel": (without("BroadcastChannel"), DIRECT),
    "BroadcastChannel throws": (f"globalThis.BroadcastChannel = function () {{ ({THROWS})(); }};", DIRECT),
    "no randomUUID": (lacking("Crypto.prototype", "randomUUID"), DIRECT),
    "no AbortSignal.any": (lacking("AbortSignal", "any") + lacking("AbortSignal", "timeout"), DIRECT),
    "no WebSocket and no WebRTC": (without("WebSocket") + without("RTCPeerConnection"), "browser_too_old"),
    "fetch throws": (f"globalThis.fetch = {THROWS};", "unreachable"),
}
PAGE = """<!doctype html><title>Page</title><script type="module">
import { VoiceSession } from "/client/voice-session.js";
window.begin = () => {
  const session = (window.session = new VoiceSession({ brokerUrl: location.origin }));
  const failed = ({ code, message }) => (window.ending = message && code);
  session.connect().then(() => (window.ending = session.transport), failed);
};
</script>"""


async def _ending(browser: Browser, server: FakeBroker, stub: str) -> str:
    async with browser.page() as page:
        await page.on_every_page(stub)
        await page.goto(f"{server.base_url}/extra")
        await page.wait_for("window.begin")
        await page.run("begin()", user_gesture=True)
        ending = str(await page.wait_for("window.ending", 20))
        await page.run("session.disconnect()")
        return ending


@retry_if_host_busy(tries=3)
async def test_missing_api_leads_elsewhere_or_is_told(quiet_browser: Browser) -> None:
    at_once = asyncio.Semaphore(4)

    async def one(name: str, stub: str) -> tuple[str, str]:
        async with at_once:
            try:
                return name, await _ending(quiet_browser, server, stub)
            except (AssertionError, TimeoutError) as error:
                return name, f"{type(error).__name__}: {error}"

    async with run_fake(transports=(DIRECT, PROXY)) as server:
        server.extra_page = PAGE
        endings = dict(await asyncio.gather(*(one(name, stub) for name, (stub, _) in STUBS.items())))
    assert endings == {name: ending for name, (_, ending) in STUBS.items()}
