"""Voice Live by WebRTC in a real browser: the offer and the page's events over a socket, the sound straight."""

import pytest

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser, Page
from tests.web.support.fake_broker import PROXY, VOICE_LIVE, FakeBroker, run_fake

PAGE = """<!doctype html><title>Page</title><script type="module">
import { VoiceSession } from "/client/voice-session.js";
window.begin = () => {
  const session = (window.session = new VoiceSession({ brokerUrl: location.origin }));
  Object.assign(window, { lines: new Map(), used: [], tools: [], loudest: 0 });
  session.tool("show_card", ({ title }) => `shown: ${title}`);
  session.addEventListener("transcript", ({ detail }) => lines.set(detail.turnId, detail));
  session.addEventListener("transport", ({ detail }) => used.push(`${detail.transport} ${detail.reason}`));
  session.addEventListener("level", ({ detail }) => (window.loudest = Math.max(loudest, detail.output)));
  return session.connect();
};
window.said = (speaker) => [...lines.values()].filter((line) => line.speaker === speaker).map((line) => line.text);
</script>"""
LIVE = "session.state === 'live' && session.transport"


async def _begin(page: Page, server: FakeBroker) -> None:
    server.extra_page = PAGE
    await page.goto(f"{server.base_url}/extra")
    await page.wait_for("window.begin")
    await page.run("begin()", user_gesture=True)


async def _asks_and_is_answered(page: Page, server: FakeBroker, words: str) -> None:
    await page.run(f"session.sendText('{words}')")
    await page.wait_for(f"said('user').includes('{words}') && said('assistant').at(-1) === 'You wrote to me.'")
    asked = [event["type"] for event in server.partners[-1].from_client]
    assert asked.count("response.create") == 1
    assert not {"input_audio_buffer.append", "rtc.call.sdp.create"} & set(asked)


@retry_if_host_busy(tries=3)
async def test_voice_live_call_is_held_and_goes_on(quiet_browser: Browser) -> None:
    async with run_fake(transports=(VOICE_LIVE, PROXY)) as server, quiet_browser.page() as page:
        await _begin(page, server)
        assert await page.run("used") == [f"{VOICE_LIVE} first_choice"]
        (offer,) = server.sdp_offers
        assert offer.count("m=audio") == 1
        assert "a=candidate" in offer
        await _asks_and_is_answered(page, server, "First")
        await page.wait_for("said('assistant').length === 1")  # its words came on both channels
        await server.partners[0].answer_with_tone(2)
        await page.wait_for("loudest > 0.3")
        # A tool of the page's: one output, and the broker asks for the answer.
        sent = server.partners[0].from_client
        call_id = await server.partners[0].call_function("show_card", '{"title": "A"}')
        await server.until(lambda: bool(server.partners[0].outputs))
        # Another agent has another voice: a new call.
        await server.sockets[0].send_json({"type": "broker.agent.switch", "agent_id": "marcus"})
        await server.until(lambda: len(server.calls) == 2)
        await page.wait_for(f"used.at(-1) === '{VOICE_LIVE} agent_switched' && {LIVE} && session.agentId === 'marcus'")
        assert server.plan_requests[1]["agent_id"] == "marcus"
        assert server.partners[0].outputs == [(call_id, "shown: A")]
        assert [event["type"] for event in sent].count("response.create") == 1  # the typed text's
        # The control socket is lost while media flows.
        await server.sockets[1].close(4502)
        await server.until(lambda: len(server.calls) == 3)
        await page.wait_for(f"used.at(-1) === '{VOICE_LIVE} azure_dropped' && {LIVE}")
        await _asks_and_is_answered(page, server, "Third")
        # The call itself ends: the media's path is not tried again.
        await server.calls[2].close()
        await page.wait_for(f"used.at(-1).startsWith('{PROXY} ') && {LIVE}", 15)
        assert len(server.calls) == 3
        await page.run("session.sendText('Last')")
        await page.wait_for("said('user').includes('Last')")
        # What the broker may not have heard of the calls is told to it as well, by the ids that it has.
        await server.until(lambda: {turn["content"] for turn in server.turns} >= {"First", "Third"})
        told = [turn["turn_id"] for turn in server.turns]
        assert len(told) == len(set(told))
        assert "Last" not in {turn["content"] for turn in server.turns}
        await page.run("session.disconnect()")


@pytest.mark.parametrize("channel", ["own", "none"])
@retry_if_host_busy(tries=3)
async def test_call_needs_no_channel_of_its_own(quiet_browser: Browser, channel: str) -> None:
    async with run_fake(transports=(VOICE_LIVE, PROXY), call_channel=channel) as server, quiet_browser.page() as page:
        await _begin(page, server)
        assert await page.run(LIVE) == VOICE_LIVE
        await _asks_and_is_answered(page, server, "First")
        await page.run("session.disconnect()")


@retry_if_host_busy(tries=3)
async def test_refused_call_takes_the_proxy(quiet_browser: Browser) -> None:
    async with run_fake(transports=(VOICE_LIVE, PROXY)) as server, quiet_browser.page() as page:
        for code, reason in ((4502, "azure_dropped"), (1011, "socket_closed"), (4408, "azure_dropped")):
            server.socket_closes = [code]
            await _begin(page, server)
            assert await page.run("used") == [f"{VOICE_LIVE} first_choice", f"{PROXY} {reason}"]
            # And back: the proxy's talk breaks off, and the next plan begins with the call.
            await server.sockets[-1].close(4502)
            await page.wait_for(f"used.at(-1) === '{VOICE_LIVE} azure_dropped' && {LIVE}")
            await page.run("session.disconnect()")
