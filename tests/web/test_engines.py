"""Talks in Firefox and WebKitGTK, by every transport that each has, with the sound of a sound card of software."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest

from tests.support.machine import retry_if_host_busy
from tests.web.support.fake_broker import DIRECT, PROXY, RELAY, WEBSOCKET, FakeBroker, run_fake
from tests.web.support.page import ScriptPage
from tests.web.support.partner import Partner
from tests.web.support.sound_card import CARD_RATE, SoundCard
from tests.web.support.speech import Samples, pieces_match, speech

JUDGED = {"firefox": (PROXY, DIRECT), "webkit": (PROXY,)}
"""Transports whose sound is compared, by engine; the others take their sound the same way."""
ALONGSIDE = {"firefox": (WEBSOCKET, RELAY), "webkit": (WEBSOCKET,)}
AUDIBLE = 0.01
UTTERANCES = 5
ANSWER_S = 15
LIKE = 0.85  # Opus changes sound more than that
PAGE = """<!doctype html><title>Page</title><script type="module">
import { VoiceSession } from "/client/voice-session.js";
const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
// The browser's processing changes the sound.
const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
navigator.mediaDevices.getUserMedia = () => get({ audio });
window.talks = {};
window.begin = (transport) => {
  const session = new VoiceSession({ brokerUrl: location.origin, transports: [transport] });
  const talk = (talks[transport] = { session, lines: new Map(), errors: [], loudest: { input: 0, output: 0 } });
  session.addEventListener("transcript", ({ detail }) => talk.lines.set(detail.turnId, detail));
  session.addEventListener("error", ({ detail }) => talk.errors.push(detail.code));
  session.addEventListener("level", ({ detail }) => {
    for (const side of ["input", "output"]) talk.loudest[side] = Math.max(talk.loudest[side], detail[side]);
  });
  return session.connect();
};
window.said = (transport, speaker) =>
  [...talks[transport].lines.values()]
    .filter((line) => line.speaker === speaker && line.final).map(({ text }) => text).join();
</script>"""


@asynccontextmanager
async def _talk(page: ScriptPage, server: FakeBroker, transport: str) -> AsyncIterator[Partner]:
    before = len(server.partners)
    await page.run(f"begin('{transport}')", user_gesture=True)
    assert await page.run(f"[talks.{transport}.session.state, talks.{transport}.session.transport]") == [
        "live",
        transport,
    ]
    (partner,) = server.partners[before:]
    yield partner
    await page.run(f"talks.{transport}.session.sendText('What is new?')")
    await page.wait_for(f"said('{transport}', 'assistant').endsWith('You wrote to me.')")
    await page.run(f"talks.{transport}.session.disconnect()")
    state, errors = await page.run(f"[talks.{transport}.session.state, talks.{transport}.errors]")
    assert state == "ended"
    assert set(errors) <= {"other_tab"}, "two talks at a time are told of each other"


def _samples(pcm: bytes | bytearray) -> Samples:
    return np.frombuffer(bytes(pcm[: len(pcm) // 2 * 2]), "<i2") / 32_768


async def _until_said(pcm: bytearray, start: int) -> None:
    """Waits until something is heard from `start` on, and a pause after it; at most until the next utterance."""
    pause = int(0.6 * CARD_RATE)
    end_s = asyncio.get_running_loop().time() + ANSWER_S
    while asyncio.get_running_loop().time() < end_s:
        sound = _samples(pcm[start:])
        loud = np.flatnonzero(np.abs(sound) > AUDIBLE)
        if len(loud) and len(sound) - loud[-1] > pause:
            return
        await asyncio.sleep(0.1)


async def _likeness(card: SoundCard, said: Samples) -> float:
    """How like `said` the sound card's loudspeaker sounds, when the page's user has said it and was answered.

    What a busy machine swallows of one utterance, it does not swallow of each.
    """
    likeness = 0.0
    async with card.heard() as pcm:
        for _ in range(UTTERANCES):
            start = len(pcm) // 2 * 2
            await card.say(said)
            await _until_said(pcm, start)
            likeness = await asyncio.to_thread(pieces_match, _samples(pcm), said, CARD_RATE)
            if likeness > LIKE:
                break
    return likeness


@pytest.mark.parametrize("engine", ["firefox", "webkit"])
@retry_if_host_busy(tries=3, or_skipped=True)
async def test_talk_is_heard_by_every_transport(
    engine: str, engine_page: ScriptPage, sound_card: SoundCard | None
) -> None:
    said = speech(1.2, CARD_RATE)
    async with run_fake(transports=(DIRECT, RELAY, WEBSOCKET, PROXY)) as server:
        server.extra_page = PAGE
        await engine_page.goto(f"{server.base_url}/extra")
        await engine_page.wait_for("window.begin")
        for transport in JUDGED[engine]:
            async with _talk(engine_page, server, transport) as partner:
                if sound_card:
                    assert await _likeness(sound_card, said) > LIKE
                    await engine_page.wait_for(f"said('{transport}', 'user').includes('I spoke for')")
                else:  # the browser's own microphone beeps
                    await server.until(lambda partner=partner: partner.was_loud)  # type: ignore[misc]
        async with AsyncExitStack() as stack:
            for transport in ALONGSIDE[engine]:
                partner = await stack.enter_async_context(_talk(engine_page, server, transport))
                await partner.answer_with_tone(seconds=1)
            for transport in ALONGSIDE[engine]:
                await engine_page.wait_for(f"talks.{transport}.loudest.output > 0.1")
    assert engine_page.faults == []
