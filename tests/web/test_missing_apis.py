"""A start where a browser's API is missing, throws, rejects, or never settles: another way, or a code in time."""

import json

import pytest

from tests.support.machine import retry_if_host_busy
from tests.web.support.fake_broker import DIRECT, PROXY, run_fake
from tests.web.support.page import ScriptPage

NEVER = "() => new Promise(() => {})"
THROWS = "() => { throw new DOMException('no', 'NotSupportedError'); }"
REJECTS = "() => Promise.reject(new DOMException('no', 'NotSupportedError'))"
# Of prototypes: WebKit may forget what a script adds to an object of the browser's that nobody else holds.
MEDIA, PEER, CONTEXT = "MediaDevices.prototype", "RTCPeerConnection.prototype", "AudioContext.prototype"


def without(name: str) -> str:
    return f"delete globalThis.{name};"


def lacking(owner: str, name: str) -> str:
    return f"Object.defineProperty({owner}, '{name}', {{ value: undefined, configurable: true }});"


def getter(owner: str, name: str, value: str) -> str:
    return f"Object.defineProperty({owner}, '{name}', {{ get: () => '{value}', configurable: true }});"


def replaced(owner: str, name: str, function: str) -> str:
    return f"Object.defineProperty({owner}, '{name}', {{ value: {function}, configurable: true, writable: true }});"


def gone(*names: str) -> str:
    """Takes away what a page finds at these dotted names."""
    return "".join(f"delete {name}; " for name in names)


NEWER = (
    *("AbortSignal.any", "Array.fromAsync", "Map.groupBy", "Object.groupBy", "Promise.try", "Promise.withResolvers"),
    *("RegExp.escape", "URL.parse", "Uint8Array.fromBase64", "Uint8Array.prototype.toBase64", "Set.prototype.union"),
    *("String.prototype.isWellFormed", "String.prototype.toWellFormed", "Intl.Segmenter", "globalThis.Iterator"),
    *("AudioContext.prototype.setSinkId", "HTMLMediaElement.prototype.setSinkId", "Element.prototype.moveBefore"),
    *("Navigator.prototype.userActivation", "ReadableStream.from", "ReadableStream.prototype[Symbol.asyncIterator]"),
    *("MediaDevices.prototype.selectAudioOutput", "globalThis.RTCRtpScriptTransform", "globalThis.scheduler"),
)
"""What one of Chrome 120, Firefox 115 and Safari 17.0 does not have yet: the oldest that docs/embed.md names."""
NO_SUCH_PERMISSION = "() => Promise.reject(new TypeError(\"'microphone' is not a permission\"))"

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
    "no permissions": (lacking("Navigator.prototype", "permissions"), DIRECT),
    "permissions hang": (replaced("Permissions.prototype", "query", NEVER), DIRECT),
    "no mediaDevices": (lacking("Navigator.prototype", "mediaDevices"), "microphone_insecure"),
    "getUserMedia hangs": (replaced(MEDIA, "getUserMedia", NEVER), "microphone_busy"),
    "getUserMedia rejects": (replaced(MEDIA, "getUserMedia", REJECTS), "microphone_failed"),
    "getUserMedia throws": (replaced(MEDIA, "getUserMedia", THROWS), "microphone_failed"),
    "no tracks": (replaced(MEDIA, "getUserMedia", "async () => new MediaStream()"), "microphone_missing"),
    "enumerateDevices hangs": (replaced(MEDIA, "enumerateDevices", NEVER), DIRECT),
    "no BroadcastChannel": (without("BroadcastChannel"), DIRECT),
    "BroadcastChannel throws": (f"globalThis.BroadcastChannel = function () {{ ({THROWS})(); }};", DIRECT),
    "no randomUUID": (lacking("Crypto.prototype", "randomUUID"), DIRECT),
    "no AbortSignal.any": (lacking("AbortSignal", "any") + lacking("AbortSignal", "timeout"), DIRECT),
    "oldest browsers": (gone(*NEWER) + replaced("Permissions.prototype", "query", NO_SUCH_PERMISSION), DIRECT),
    "older than those": (gone("URL.canParse"), "browser_too_old"),
    "iOS during a phone call": (
        replaced(CONTEXT, "resume", REJECTS) + getter(CONTEXT, "state", "interrupted") + lacking(CONTEXT, "setSinkId"),
        DIRECT,
    ),
    "no WebSocket and no WebRTC": (without("WebSocket") + without("RTCPeerConnection"), "browser_too_old"),
    "fetch throws": (f"globalThis.fetch = {THROWS};", "unreachable"),
}
PAGE = """<!doctype html><title>Page</title><script>
const stubs = STUBS;
(0, eval)(stubs[new URLSearchParams(location.search).get("stub")] ?? "");
</script><script type="module">
import { VoiceSession } from "/client/voice-session.js";
window.begin = async () => {
  const session = new VoiceSession({ brokerUrl: location.origin });
  const ending = await session.connect().then(() => session.transport, ({ code, message }) => message && code);
  await session.disconnect();
  return ending;
};
// A frame for each stub: a page of its own costs four times as much.
const endingOf = (name) => new Promise((resolve, reject) => {
  const frame = document.createElement("iframe");
  frame.src = `?stub=${encodeURIComponent(name)}`;
  frame.onload = () => {
    const late = new Promise((end) => setTimeout(end, LIMIT_MS, "late"));
    Promise.race([frame.contentWindow.begin(), late]).then(resolve, reject).finally(() => frame.remove());
  };
  document.body.append(frame);
});
window.endings = {};
window.beginAll = () => {
  const names = Object.keys(stubs);
  for (let at = 0; at < AT_ONCE; at += 1) {
    void (async () => {
      for (let name; (name = names.shift()); ) endings[name] = await endingOf(name).catch(String);
    })();
  }
};
</script><body>"""
LIMIT_MS = 25_000
AT_ONCE = {"chromium": 6, "firefox": 6, "webkit": 2}
"""WebKitGTK plays the sound of all of them in one process, which a slow machine then takes too long for."""
LEFT_OUT = {"firefox": {"getUserMedia hangs"}}
"""Its setting that answers prompts leaves the permission at `prompt`, and no limit counts while a prompt is open."""
WITHOUT_WEBRTC = "webkit"  # as Debian builds it


@pytest.mark.parametrize("engine", ["chromium", "firefox", "webkit"])
@retry_if_host_busy(tries=3)
async def test_missing_api_leads_elsewhere_or_is_told(engine: str, engine_page: ScriptPage) -> None:
    stubs = {name: stub for name, stub in STUBS.items() if name not in LEFT_OUT.get(engine, ())}
    page = PAGE.replace("STUBS", json.dumps({name: stub for name, (stub, _) in stubs.items()}))
    async with run_fake(transports=(DIRECT, PROXY)) as server:
        server.extra_page = page.replace("LIMIT_MS", str(LIMIT_MS)).replace("AT_ONCE", str(AT_ONCE[engine]))
        await engine_page.goto(f"{server.base_url}/extra")
        await engine_page.wait_for("window.beginAll")
        await engine_page.run("beginAll()", user_gesture=True)
        await engine_page.wait_for(f"Object.keys(endings).length === {len(stubs)}", 150)
        endings = await engine_page.run("endings")
        # A sign-in that is due, as the page that one is sent to, or as that page itself.
        for sign_in in ("redirect", "page"):
            server.token_answers = [sign_in]
            assert await engine_page.run("begin()", user_gesture=True) == "sign_in_required"
    assert endings == {
        name: PROXY if engine == WITHOUT_WEBRTC and ending == DIRECT else ending for name, (_, ending) in stubs.items()
    }
