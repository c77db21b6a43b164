"""What is said while a talk connects: kept for the proxy, once and in order, and for nobody else."""

import asyncio

import numpy as np

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser, Page
from tests.web.support.fake_broker import DIRECT, PROXY, FakeBroker, run_fake
from tests.web.support.partner import WIRE_RATE, Partner

_LOUD = 3_000  # of 32,768; a whole tone is some 20,000

# A microphone of the page's own, which says a number as a tone.
PAGE = """<!doctype html><title>Page</title><script type="module">
import { VoiceSession } from "/client/voice-session.js";
window.begin = async (options) => {
  const context = new AudioContext();
  const microphone = new MediaStreamAudioDestinationNode(context);
  navigator.mediaDevices.getUserMedia = async () => microphone.stream.clone();
  const ear = new AudioContext();
  const heard = new AnalyserNode(ear, { fftSize: 2048 });
  ear.createMediaStreamSource(microphone.stream.clone()).connect(heard);
  const isQuiet = () => {
    const samples = new Float32Array(heard.fftSize);
    heard.getFloatTimeDomainData(samples);
    return samples.every((sample) => Math.abs(sample) < 0.01);
  };
  window.say = async (...numbers) => {
    for (const number of numbers) {
      const tone = new OscillatorNode(context, { frequency: 400 + 300 * number });
      tone.connect(microphone);
      tone.start();
      tone.stop(context.currentTime + 0.3);
      await new Promise((done) => (tone.onended = done));
      tone.disconnect();
      await new Promise((done) => setTimeout(done, 120));
    }
    do await new Promise((done) => setTimeout(done, 200)); // on a busy machine a page hears a tone after its end
    while (!isQuiet());
  };
  const session = (window.session = new VoiceSession({ brokerUrl: location.origin, ...options }));
  window.levels = 0;
  session.addEventListener("level", () => (window.levels += 1));
  await Promise.all([context.resume(), ear.resume(), session.connect().catch(() => undefined)]);
};
</script>"""


def _numbers(partner: Partner) -> list[int]:
    """The numbers that the partner heard, in order; none is said twice in a row."""
    samples = np.frombuffer(bytes(partner.recorded), "<i2").astype(float)
    size = WIRE_RATE // 20
    heard: list[int] = []
    for start in range(0, len(samples) - size, size):
        block = samples[start : start + size]
        spectrum = np.abs(np.fft.rfft(block * np.hanning(size)))
        number = round((float(np.argmax(spectrum)) * WIRE_RATE / size - 400) / 300)
        if np.abs(block).mean() > _LOUD and heard[-1:] != [number]:
            heard.append(number)
    return heard


async def _begin(page: Page, options: str = "{}") -> None:
    await page.goto(str(await page.run("location.href")))
    await page.wait_for("window.begin")
    await page.run(f"void begin({options})", user_gesture=True)
    await page.wait_for("window.levels > 2")  # microphone and worklets are there


async def _heard(server: FakeBroker, *numbers: int) -> None:
    await server.until(lambda: _numbers(server.partners[-1])[-1:] == [numbers[-1]])
    assert _numbers(server.partners[-1]) == list(numbers)


@retry_if_host_busy(tries=3)
async def test_first_words_reach_the_proxy_alone(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT, PROXY)) as server, quiet_browser.page() as page:
        server.extra_page = PAGE
        await page.goto(f"{server.base_url}/extra")
        # WebRTC is refused, the proxy takes its time: the words arrive once and in order, with those that follow.
        server.sdp_answers, server.ready = [500], asyncio.Event()
        await _begin(page)
        await page.run("say(1, 2, 3)")
        server.ready.set()
        await page.wait_for("session.state === 'live'")
        await page.run("say(4)")
        await _heard(server, 1, 2, 3, 4)
        # While it reconnects it is the same; of what is said for longer than three seconds, the last three count.
        server.sdp_answers, server.ready = [500], asyncio.Event()
        await server.sockets[-1].close(4502)
        await page.wait_for("session.state === 'reconnecting'")
        await server.until(lambda: len(server.sockets) == 2)
        await page.run("say(1, 2, 3, 4, 1, 2, 3, 4, 5)")
        server.ready.set()
        await page.wait_for("session.state === 'live'")
        await page.run("say(6)")
        await server.until(lambda: _numbers(server.partners[-1])[-1:] == [6])
        heard = _numbers(server.partners[-1])
        assert heard == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6][-len(heard) :]
        assert 6 <= len(heard) <= 8
        await page.run("session.disconnect()")
        # Nothing that was said before the microphone was muted, or while it was.
        server.sdp_answers, server.ready = [500], asyncio.Event()
        await _begin(page)
        await page.run("say(1, 2).then(() => { session.setMuted(true); return say(3); })")
        await asyncio.sleep(1)  # the talk's own graph may hear a tone later than the page's ear
        await page.run("session.setMuted(false)")
        await page.run("say(4)")
        server.ready.set()
        await _heard(server, 4)
        await page.run("session.disconnect()")
        # What was said over WebRTC was heard there, and is not said again.
        server.ready = None
        await _begin(page)
        await page.wait_for("session.transport === 'webrtc' && session.state === 'live'")
        await page.run("say(1, 2)")
        await server.calls[-1].close_channel()
        await page.wait_for("session.transport === 'websocket_proxy' && session.state === 'live'")
        await page.run("say(3)")
        await _heard(server, 3)
        await page.run("session.disconnect()")
        # A button that was held when the talk broke off has to be pressed again.
        server.sdp_answers = [500, 500]
        await _begin(page, "{ pushToTalk: true }")
        await page.wait_for("session.state === 'live'")
        await page.run("session.startSpeaking()")
        server.ready = asyncio.Event()
        await server.sockets[-1].close(4502)
        await page.wait_for("session.state === 'reconnecting'")
        await page.run("say(1)")
        server.ready.set()
        await page.wait_for("session.state === 'live'")
        await page.run("say(2)")
        await page.run("session.startSpeaking()")
        await page.run("say(3)")
        await _heard(server, 3)
        await page.run("session.disconnect()")
