"""A talk goes on by itself: after a time offline, a frozen or killed other side, and a phone call; choices hold."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser, Page
from tests.web.support.fake_broker import DIRECT, PROXY, FakeBroker, run_fake

# `later(seconds)` makes the page believe that so much time has passed. With `hurries`, the page's look for silence
# (`SILENT_MS` of web_client/typed-texts.js) comes soon. With `speed`, longer waits end so much sooner, and `waitedMs`
# counts them as they were meant. `watch` is a call's look for silence (`WATCH_MS` of web_client/transports/peer.js).
PAGE = """<!doctype html><title>Page</title><script>
  let aheadMs = 0;
  const now = performance.now.bind(performance);
  performance.now = () => now() + aheadMs;
  window.later = (seconds) => (aheadMs += seconds * 1000);
  const set = window.setTimeout;
  window.waitedMs = 0;
  window.setTimeout = (run, ms, ...given) => {
    if (window.hurries && ms === 40_000) return set(run, 500, ...given);
    if (!window.speed || ms < 1_000) return set(run, ms, ...given);
    return set(() => {
      waitedMs += ms;
      run(...given);
    }, ms / window.speed);
  };
  const every = window.setInterval;
  window.setInterval = (run, ms, ...given) => {
    if (ms === 2_000) window.watch = run;
    return every(run, ms, ...given);
  };
  window.contexts = [];
  const Context = window.AudioContext;
  window.AudioContext = class extends Context {
    constructor(...given) {
      super(...given);
      contexts.push(this);
    }
    resume() {
      if (window.refusesSound) return Promise.reject(new DOMException("a phone call", "InvalidStateError"));
      return super.resume();
    }
  };
  window.streams = [];
  const { mediaDevices } = navigator;
  const get = mediaDevices.getUserMedia.bind(mediaDevices);
  window.asked = [];
  mediaDevices.getUserMedia = async (wish) => {
    asked.push("microphone");
    if (window.prompted) await window.prompted;
    const stream = await get(wish);
    streams.push(stream);
    return stream;
  };
  const query = navigator.permissions.query.bind(navigator.permissions);
  navigator.permissions.query = async (what) => (window.prompted ? { state: "prompt" } : query(what));
  window.sinks = [];
  for (const kind of [Context, HTMLMediaElement]) {
    kind.prototype.setSinkId = async function (id) {
      sinks.push(`${kind === Context ? "worklet" : "call"} ${id}`);
    };
  }
</script><script type="module">
  import { VoiceSession } from "/client/voice-session.js";
  window.begin = (options) => {
    const session = (window.session = new VoiceSession({ brokerUrl: location.origin, ...options }));
    Object.assign(window, { lines: new Map(), codes: [], doing: [], reasons: [], agents: [] });
    session.addEventListener("transcript", ({ detail }) => lines.set(detail.turnId, detail));
    session.addEventListener("error", ({ detail }) => {
      codes.push(detail.code);
      window.hurries = false;
    });
    session.addEventListener("activity", ({ detail }) => doing.push(detail.activity));
    session.addEventListener("transport", ({ detail }) => reasons.push(detail.reason));
    session.addEventListener("agent", ({ detail }) => agents.push(`${detail.before} ${detail.agentId}`));
    return session;
  };
  window.answers = () => [...lines.values()].filter(({ speaker, final }) => speaker === "assistant" && final).length;
</script>"""
LIVE = "session.state === 'live'"


@asynccontextmanager
async def _page(browser: Browser, server: FakeBroker) -> AsyncIterator[Page]:
    server.extra_page = PAGE
    async with browser.page() as page:
        await page.goto(f"{server.base_url}/extra")
        await page.wait_for("window.begin")
        yield page


async def _connect(page: Page, options: str = "{}") -> None:
    await page.run(f"begin({options}).connect()", user_gesture=True)


@retry_if_host_busy(tries=3)
async def test_silent_connection_is_replaced_and_text_answered(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, _page(quiet_browser, server) as page:
        await _connect(page, "{ microphone: false }")
        # 90 s offline: the browser keeps the socket, and what was typed meanwhile is lost with it.
        server.frozen = True
        await page.offline(gone=True)
        await page.run("session.sendText('Offline')")
        await page.run("later(90)")
        assert await page.run(LIVE)
        server.frozen = False
        await page.offline(gone=False)
        await page.wait_for(f"{LIVE} && reasons.at(-1) === 'network_lost' && answers() === 1")
        assert len(server.sockets) == 2
        # The same, where the socket ends: it is tried again and again, and no attempt counts.
        await page.offline(gone=True)
        await page.run("window.speed = 100")
        await server.sockets[-1].close(4502)
        await page.wait_for("waitedMs > 90_000", 20)
        assert await page.run("session.state") == "reconnecting"
        await page.run("window.speed = 0")
        await page.offline(gone=False)
        await page.wait_for(LIVE)
        assert len(server.sockets) == 3
        # A frozen other side: nothing comes at all.
        server.frozen = True
        await page.run("window.hurries = true; session.sendText('Frozen')")
        await page.wait_for("codes.includes('azure_dropped')", 15)
        server.frozen = False
        await page.wait_for(f"{LIVE} && answers() === 2")
        # A killed broker, that comes back.
        server.frozen = True
        await page.run("session.sendText('Killed')")
        server.token_answers = [503]
        await server.sockets[-1].close(1012)
        server.frozen = False
        await page.wait_for(f"{LIVE} && answers() === 3")
        said = [event["item"]["content"][0]["text"] for event in server.partners[-1].from_client if "item" in event]
        assert said == ["Killed"]
        assert not await page.run("codes.includes('text_lost')")
        await page.run("session.disconnect()")
        # 90 s offline in a call: its path is silent soon, and the talk goes on by another one.
        server.transports = (DIRECT, PROXY)
        await _connect(page)
        await page.offline(gone=True)
        server.calls[-1].vanish()
        await page.run("session.sendText('Offline')")
        await page.run("(async () => { for (let looks = 0; looks < 6; looks += 1) await watch(); })()")
        await page.wait_for("session.state === 'reconnecting' && codes.includes('ice_failed')")
        await page.run("window.speed = 100; waitedMs = 0")
        await page.wait_for("waitedMs > 90_000", 20)
        assert await page.run("session.state") == "reconnecting"
        await page.run("window.speed = 0")
        await page.offline(gone=False)
        await page.wait_for(f"{LIVE} && session.transport === '{PROXY}' && answers() === 1")
        await page.run("session.disconnect()")


@retry_if_host_busy(tries=3)
async def test_phone_call_takes_the_sound_for_a_while(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT, PROXY)) as server, _page(quiet_browser, server) as page:
        for transport in (DIRECT, PROXY):
            await _connect(page, f"{{ transports: ['{transport}'] }}")
            await page.wait_for(LIVE)
            track = "streams.at(-1).getAudioTracks()[0]"
            taken = f"window.refusesSound = true; contexts.at(-1).suspend(); {track}.dispatchEvent(new Event('mute'))"
            await page.run(taken)
            await page.wait_for("codes.includes('sound_paused') && codes.includes('microphone_silent')")
            assert await page.run("session.activity") == "unheard"  # nobody listens
            await page.run("later(120)")
            await page.run("session.sendText('Are you there?')")
            await page.wait_for("answers() === 1")
            assert await page.run(LIVE)
            partner = server.partners[-1]
            heard_s = partner.heard_s
            await page.run(f"window.refusesSound = false; {track}.dispatchEvent(new Event('unmute'))")
            await page.wait_for("codes.includes('sound_back') && codes.includes('microphone_back')")
            assert await page.run("codes.filter((code) => code === 'sound_paused').length") == 1
            await server.until(lambda p=partner, s=heard_s: p.heard_s > s + 0.5)  # type: ignore[misc]
            assert await page.run("session.activity !== 'unheard'")
            assert len(server.partners) == len(server.plans)  # one connection a talk
            if transport == PROXY:
                # Without a hand on the microphone, the sound is tried again all the same.
                await page.run("contexts.at(-1).suspend()")
                await page.wait_for("codes.filter((code) => code === 'sound_back').length === 2")
            await page.run("session.disconnect()")


@retry_if_host_busy(tries=3)
async def test_choices_hold_and_prompts_have_time(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT, PROXY)) as server, _page(quiet_browser, server) as page:
        # The loudspeaker that was chosen before the start, on each transport; gone, the system's, and an event says so.
        await page.run("void (window.prompted = new Promise((allow) => (window.allow = allow)))")
        await page.run("begin({ getToken: () => (asked.push('token'), 'token') }).setSpeaker('desk')")
        await page.run("void session.connect()", user_gesture=True)
        await page.wait_for("asked.includes('microphone')")
        assert await page.run("asked.join()") == "token,microphone"  # a sign-in may open a window in the click alone
        await page.run("later(90)")
        assert server.plan_requests == []  # a plan would have expired
        await page.run("allow(); window.prompted = null")
        await page.wait_for(LIVE)
        assert await page.run("asked.length") == 2  # that token went with the plan
        assert await page.run("[...new Set(sinks)].sort()") == ["call desk", "worklet desk"]
        await page.run("session.switchAgent('marcus')")
        await page.wait_for(f"{LIVE} && agents.join() === 'elena marcus'")
        await server.calls[-1].close_channel()
        await page.wait_for(f"{LIVE} && session.transport === 'websocket_proxy'")
        assert await page.run("sinks.every((sink) => sink.endsWith(' desk'))")
        assert await page.run("agents.length") == 1
        await page.run("navigator.mediaDevices.dispatchEvent(new Event('devicechange'))")
        await page.wait_for("codes.includes('speaker_lost') && sinks.at(-1) === 'worklet '")
        await page.run("session.disconnect()")
