"""Talks in a real browser against the fake, on each transport: transcript, sound and turns."""

import asyncio

import pytest

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser
from tests.web.support.fake_broker import DIRECT, PROXY, RELAY, WEBSOCKET, run_fake
from tests.web.support.page import AGENT_SAID, USER_SAID
from tests.web.support.recorder import MICROPHONE_RATE, install_recorder, recording, without_processing
from tests.web.support.speech import Samples, at_rate, best_match, first_words, pieces_match
from token_broker.api.reports.page_reports import TalkReport

LINES = """[...document.querySelectorAll('.line')].map((line) => [
  line.dataset.speaker,
  line.querySelector('.who').textContent,
  line.querySelector('.words').textContent.split(" ", 2).join(" "),
])"""
ANSWER_HEARD = "__heard.blocks.some(([, block]) => block.some((sample) => Math.abs(sample) > 1600))"


def _silent_for(seconds: float) -> str:
    return (
        f"__heard.blocks.slice(-Math.ceil({seconds} * __heard.rate / 512))"
        ".every(([, block]) => block.every((sample) => Math.abs(sample) < 300))"
    )


@pytest.mark.parametrize("transport", [PROXY, WEBSOCKET, DIRECT, RELAY])
@retry_if_host_busy(tries=3, or_skipped=True)
async def test_click_starts_talk_and_answer_is_heard(browser: Browser, said: Samples, transport: str) -> None:
    async with run_fake(transports=(transport,)) as server, browser.page() as page:
        await install_recorder(page)
        await without_processing(page)
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        assert await page.text("transport") == transport
        await page.wait_for(USER_SAID, 12)
        await page.wait_for(AGENT_SAID)
        assert (await page.run(LINES))[:2] == [["user", "You", "I spoke"], ["assistant", "Elena", "You spoke"]]
        await page.wait_for(ANSWER_HEARD)
        await page.wait_for(_silent_for(0.4), 12)
        heard = await recording(page)
        sound = at_rate(heard.samples, heard.rate, MICROPHONE_RATE)
        if transport in {PROXY, WEBSOCKET}:
            microphone = await recording(page, "said")
            words = first_words(at_rate(microphone.samples, microphone.rate, MICROPHONE_RATE), MICROPHONE_RATE)
            assert len(words) / MICROPHONE_RATE > 1
            likeness, _ = await asyncio.to_thread(best_match, sound, words)
            assert likeness > 0.99
        else:
            assert await asyncio.to_thread(pieces_match, sound, said, MICROPHONE_RATE) > 0.85  # Opus, both ways
        await page.click("hangup")
        await page.wait_for_text("state", "ended")
        asked = (await page.run("__asked"))[0]["audio"]
        assert [asked[name] for name in ("echoCancellation", "noiseSuppression", "autoGainControl")] == [True] * 3
        told = sorted((turn["sequence"], turn["role"]) for turn in server.turns)
        assert told[:2] == ([] if transport == PROXY else [(0, "user"), (1, "assistant")])
        assert len({turn["turn_id"] for turn in server.turns}) == len(server.turns)
        assert [line for line in page.complaints if "AudioContext" not in line] == []


async def test_meters_follow_both_voices(browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, browser.page() as page:
        await page.goto(server.base_url)
        await page.run(
            """import("/client/voice-session.js").then(({ VoiceSession }) => {
                const session = (window.session = new VoiceSession({ brokerUrl: location.origin }));
                window.peak = { input: 0, output: 0 };
                session.addEventListener("level", ({ detail }) => {
                    peak.input = Math.max(peak.input, detail.input);
                    peak.output = Math.max(peak.output, detail.output);
                });
            })"""
        )
        await page.run("session.connect()", user_gesture=True)
        await page.wait_for("peak.input > 0.3 && peak.output > 0.3", 12)
        await page.run("session.disconnect()")
        assert await page.run("session.state") == "ended"


async def test_muted_microphone_sends_silence(browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, browser.page() as page:
        await page.goto(server.base_url)
        await page.click("talk")
        await page.click("mute")
        await page.wait_for_text("state", "live")
        assert await page.run("document.querySelector('[data-testid=mute]').getAttribute('aria-pressed')") == "true"
        partner = server.partners[0]
        for _ in range(80):  # until 4 s of audio: the microphone has spoken by then
            if partner.heard_s > 4:
                break
            await page.run("new Promise((resolve) => setTimeout(resolve, 50))")
        assert partner.heard_s > 4
        assert not partner.was_loud


@pytest.mark.parametrize("transport", [PROXY, WEBSOCKET])
async def test_barge_in_stops_sound_and_truncates(quiet_browser: Browser, transport: str) -> None:
    async with run_fake(transports=(transport,)) as server, quiet_browser.page() as page:
        await install_recorder(page)
        await page.on_every_page(_NOTE_SPEECH_STARTED)
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await server.partners[0].answer_with_tone(seconds=6)
        await page.wait_for(ANSWER_HEARD)
        await page.run("new Promise((resolve) => setTimeout(resolve, 700))")
        await server.partners[0].notice_speech()
        await page.wait_for("window.__speechStarted")
        await page.wait_for(_silent_for(0.3))
        measured = await page.run(
            """(() => {
                const isLoud = (sample) => Math.abs(sample) > 300;
                const loud = __heard.blocks.filter(([, block]) => block.some(isLoud));
                const [time, block] = loud.at(-1);
                return { first: loud[0][0], last: time + block.findLastIndex(isLoud) / __heard.rate };
            })()"""
        )
        # In the sound's own time, so that a busy machine's main thread does not blur it.
        assert (measured["last"] - await page.run("__speechStarted")) * 1000 < 50
        truncation = await server.partners[0].wait_for("conversation.item.truncate")
        played_ms = (measured["last"] - measured["first"]) * 1000
        assert 300 < truncation["audio_end_ms"] <= played_ms
        await page.wait_for("document.querySelector('.line[data-interrupted=true]')")


_NOTE_SPEECH_STARTED = """
(() => {
  const Real = WebSocket;
  window.WebSocket = class extends Real {
    constructor(...given) {
      super(...given);
      this.addEventListener("message", ({ data }) => {
        if (data.includes("speech_started")) window.__speechStarted = __heard.context.currentTime;
      });
    }
  };
})();
"""


async def test_webrtc_barge_in_mutes_and_unmutes(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT,)) as server, quiet_browser.page() as page:
        await page.on_every_page(_WATCH_SPEAKER)
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await server.partners[0].answer_with_tone(seconds=4)
        await page.wait_for("__speaker && !__speaker.paused")
        await server.partners[0].notice_speech()
        await page.wait_for("window.__silencedMs !== undefined")
        assert await page.run("__silencedMs") < 50
        await page.wait_for("!__speaker.muted")  # the mute ends by itself, even where Azure has not stopped


_WATCH_SPEAKER = """
(() => {
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () {
    window.__speaker = this;
    return play.call(this);
  };
  const muted = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "muted");
  Object.defineProperty(HTMLMediaElement.prototype, "muted", {
    ...muted,
    set(value) {
      if (value && window.__toldMs) window.__silencedMs ??= performance.now() - __toldMs;
      muted.set.call(this, value);
    },
  });
  const create = RTCPeerConnection.prototype.createDataChannel;
  RTCPeerConnection.prototype.createDataChannel = function (label) {
    const channel = create.call(this, label);
    channel.addEventListener("message", ({ data }) => {
      if (data.includes("speech_started")) window.__toldMs = performance.now();
    });
    return channel;
  };
})();
"""


async def test_escape_stops_the_answer(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page() as page:
        await install_recorder(page)
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await server.partners[0].answer_with_tone(seconds=6, finished=False)
        await page.wait_for(ANSWER_HEARD)
        await page.press("Escape")
        await page.wait_for(_silent_for(0.2))
        await server.partners[0].wait_for("response.cancel")
        await server.partners[0].wait_for("conversation.item.truncate")


@retry_if_host_busy(tries=3, or_skipped=True)
async def test_talks_measurements_are_reported(browser: Browser) -> None:
    async with run_fake(transports=(DIRECT, RELAY), sdp_answers=[500]) as server, browser.page() as page:
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.wait_for("/^[0-9]+ ms/.test(document.getElementById('latency').textContent)", 12)
        await page.click("hangup")
        await page.wait_for_text("state", "ended")
        await server.until(lambda: bool(server.reports))
        (report,) = server.reports
    assert report["authorization"] == "Bearer session-1"
    assert (report["session_id"], report["transport"]) == ("fake-session-000001", RELAY)
    assert report["failures"] == [{"transport": DIRECT, "reason": "sdp_refused"}]
    assert 0 < report["live_after_ms"] < 60_000
    assert report["turns"]
    assert report["rtc"].keys() == {"rtt_ms", "jitter_ms", "lost"}
    TalkReport.model_validate({name: value for name, value in report.items() if name != "authorization"})
