"""Talks that end while they begin: whatever step is slow, and however they end, nothing of them is left."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser, Page
from tests.web.support.fake_broker import DIRECT, PROXY, VOICE_LIVE, FakeBroker, run_fake

# Each slow step waits for `slow.release()`; what a talk makes is kept, to see whether it is given back.
PAGE = """<!doctype html><title>Page</title><body><script>
  const made = { tracks: [], contexts: [], peers: [], sockets: [] };
  const slow = { step: "", reached: false, release() {} };
  const gate = (step) => {
    if (slow.step !== step) return undefined;
    slow.reached = true;
    return new Promise((resolve) => (slow.release = resolve));
  };
  const late = (owner, name, step = name) => {
    const real = owner[name];
    owner[name] = async function (...given) {
      const value = await real.apply(this, given);
      await gate(step);
      return value;
    };
  };
  const keep = (name, list) => {
    const Real = window[name];
    window[name] = class extends Real {
      constructor(...given) {
        super(...given);
        list.push(this);
      }
    };
  };
  keep("AudioContext", made.contexts);
  keep("RTCPeerConnection", made.peers);
  keep("WebSocket", made.sockets);
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    set onmessage(take) {
      super.onmessage = take && (async (event) => {
        await gate("ready");
        take(event);
      });
    }
  };
  const { mediaDevices } = navigator;
  const get = mediaDevices.getUserMedia.bind(mediaDevices);
  mediaDevices.getUserMedia = async (wish) => {
    const stream = await get(wish);
    made.tracks.push(...stream.getTracks());
    await gate("getUserMedia");
    return stream;
  };
  navigator.permissions.query = async () => ({ state: slow.step === "getUserMedia" ? "prompt" : "granted" });
  late(AudioWorklet.prototype, "addModule");
  late(RTCPeerConnection.prototype, "setLocalDescription");
  late(RTCPeerConnection.prototype, "setRemoteDescription");
  const real = window.fetch;
  window.fetch = async (url, init) => {
    const answer = await real(url, init);
    await gate(String(url).endsWith("/token") ? "token" : "sdp");
    return answer;
  };
  window.left = () => [
    made.tracks.filter(({ readyState }) => readyState !== "ended").length && "a microphone",
    made.contexts.filter(({ state }) => state !== "closed").length && "a context",
    made.peers.filter(({ connectionState }) => connectionState !== "closed").length && "a call",
    made.sockets.filter(({ readyState }) => readyState < 2).length && "a socket",
  ].filter(Boolean).join();
</script><script type="module">
  import "/client/voice-talk.js";
  window.begin = () => {
    const element = document.createElement("voice-talk");
    document.body.append(element);
    element.options = { transports: slow.transports, getToken: async () => (await gate("getToken"), "token") };
    window.element = element;
    element.talk().catch(() => undefined);
  };
  window.ends = {
    disconnect: () => void element.session.disconnect(),
    removal: () => element.remove(),
    pagehide: () => window.dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true })),
  };
</script>"""
STEPS = {
    "getToken": [DIRECT],
    "token": [DIRECT],
    "getUserMedia": [DIRECT],
    "addModule": [PROXY],
    "ready": [PROXY],
    "setLocalDescription": [VOICE_LIVE],
    "sdp": [DIRECT],
    "setRemoteDescription": [DIRECT],
}


@asynccontextmanager
async def _page(browser: Browser, server: FakeBroker) -> AsyncIterator[Page]:
    server.extra_page = PAGE
    async with browser.page() as page:
        await page.goto(f"{server.base_url}/extra")
        await page.wait_for("window.ends")
        yield page


@retry_if_host_busy(tries=3)
async def test_nothing_is_left_of_a_talk_that_ends_early(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT, VOICE_LIVE, PROXY)) as server, _page(quiet_browser, server) as page:
        left = {}

        async def leaves(kept: str, step: str, end: str) -> None:
            try:
                await page.wait_for(f"left() === '{kept}'", 3)  # the page waits longer for slow steps
            except TimeoutError:
                left[step, end, kept] = await page.run("left()")

        for step, transports in STEPS.items():
            for end in ("disconnect", "removal", "pagehide"):
                slowly = json.dumps({"step": step, "reached": False, "transports": transports})
                await page.run(f"Object.assign(slow, {slowly}); begin()", user_gesture=True)
                await page.wait_for("slow.reached")
                await page.run(f"ends.{end}()")
                await page.wait_for("element.session.state === 'ended'")
                # All is given back while the step is slow still, but for a microphone that the talk has not got yet.
                await leaves("a microphone" if step == "getUserMedia" else "", step, end)
                await page.run("slow.step = ''; slow.release()")  # what was slow comes after the end
                await leaves("", step, end)
                assert await page.run("element.session.state") == "ended"
        assert left == {}


@retry_if_host_busy(tries=3)
async def test_presses_in_a_row_make_one_talk(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, _page(quiet_browser, server) as page:
        await page.run("Date.now = () => 0")  # a device's clock may be wrong by years
        await page.run(
            "slow.transports = ['websocket_proxy']; begin(); element.talk(); element.talk()", user_gesture=True
        )
        await page.wait_for("element.session.state === 'live'")
        assert len(server.plan_requests) == len(server.sockets) == 1
        await page.run(
            "window.session = element.session; void session.disconnect(); session.connect()", user_gesture=True
        )
        await page.run("void session.disconnect(); session.connect()", user_gesture=True)
        await page.wait_for("session.state === 'live'")
        await page.wait_for("made.sockets.filter(({ readyState }) => readyState < 2).length === 1")
        await page.wait_for("made.tracks.filter(({ readyState }) => readyState === 'live').length === 1")
        # Moved by the newest way the talk goes on; back after a while it has ended.
        await page.run("document.body.appendChild(document.createElement('div')).moveBefore?.(element, null)")
        await page.run("new Promise((done) => setTimeout(done, 400))")
        assert await page.run("session.state") == "live"
        live_regions = "element.shadowRoot.querySelectorAll('[role=log], [part=transcript][aria-live]').length"
        assert await page.run(live_regions) == 0  # a screen reader would speak over the agent
        await page.run("element.remove()")
        await page.wait_for("session.state === 'ended'")
        await page.run("Object.assign(element.options, { microphone: false }); document.body.append(element)")
        await page.run("element.talk()", user_gesture=True)
        await page.wait_for("element.session.state === 'live'")
        # The user goes to another page and comes back: whether or not the browser kept this one, nothing is live.
        open_sockets = len(server.sockets)
        await page.goto(f"{server.base_url}/client/mark.svg")
        await page.run("history.back()")
        await page.wait_for("window.ends && location.pathname === '/extra'")
        assert await page.run("window.element?.session.state ?? 'ended'") == "ended"
        assert len(server.sockets) == open_sockets
