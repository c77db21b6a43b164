"""GPT-Live in the page: a broker with such agents, the simulated Azure, and talks by WebRTC and through the proxy."""

from pathlib import Path

from tests.live.support import live_broker
from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser, Page

BEGIN = """(async (options) => {
  const { VoiceSession } = await import("/client/voice-session.js");
  const session = (window.session = new VoiceSession({ brokerUrl: location.origin, ...options }));
  Object.assign(window, { lines: new Map(), doing: [], codes: [], told: [], loudest: 0 });
  session.tool("show_map", () => "the map is shown");
  session.addEventListener("transcript", ({ detail }) => lines.set(detail.turnId, detail));
  session.addEventListener("activity", ({ detail }) => doing.push(detail.activity));
  session.addEventListener("error", ({ detail }) => codes.push(detail.code));
  session.addEventListener("level", ({ detail }) => (window.loudest = Math.max(loudest, detail.output)));
  for (const name of ["latency", "resuming", "resumed"]) {
    session.addEventListener(name, ({ detail }) => told.push(name));
  }
  window.said = (speaker) => [...lines.values()].filter((line) => line.speaker === speaker && line.final)
    .map(({ text }) => text);
  await session.connect();
  return session.transport;
})"""
HEARD = "said('user').some((text) => text.startsWith('[simulated] ')) && said('assistant').length > 0"


async def _begin(page: Page, options: str = "{}") -> str:
    return str(await page.run(f"{BEGIN}({options})", user_gesture=True, within_s=30))


async def _refusal(page: Page, call: str) -> str:
    return str(await page.run(f"(async () => {{ try {{ await {call}; }} catch ({{ code }}) {{ return code; }} }})()"))


@retry_if_host_busy(tries=3)
async def test_gpt_live_talks_by_webrtc_and_through_the_proxy(browser: Browser, tmp_path: Path) -> None:
    async with live_broker(tmp_path) as broker, browser.page() as page:
        await page.goto(broker.running.base_url)
        # By WebRTC: what both say is shown as it is said, and the agent is heard.
        assert await _begin(page) == "webrtc_relay"
        await page.wait_for(HEARD, 30)
        await page.wait_for("loudest > 0.02")
        await page.wait_for("told.includes('latency')")  # the broker's measurement, once
        assert await page.run("[doing.includes('speaking'), doing.at(-1) === session.activity]") == [True, True]
        assert await _refusal(page, "session.sendText('Hello')") == "text_not_taken"
        assert await page.run("[...lines.values()].every(({ text }) => text !== 'Hello')")
        assert await _refusal(page, "session.sendImage(new Blob())") == "image_not_taken"
        await page.run("session.interrupt()")
        assert await page.run("session.state") == "live"
        # A tool of the page's, over the broker's sideband.
        broker.azure.script_responses({"calls": [{"name": "show_map"}]})
        await page.wait_for("said('assistant').includes('[simulated] the function gave: the map is shown')", 30)
        await page.run("session.disconnect()")
        await broker.azure.until_calls(0)
        # Through the proxy: the same, with a tool of the page's.
        broker.azure.script_responses({"calls": [{"name": "show_map"}]})
        assert await _begin(page, "{ transports: ['websocket_proxy'] }") == "websocket_proxy"
        await page.wait_for(HEARD, 30)
        assert (await page.run("said('assistant')"))[0] == "[simulated] the function gave: the map is shown"
        await page.wait_for("loudest > 0.02 && doing.includes('speaking') && told.includes('latency')")
        await page.run("session.disconnect()")
        # Typed alone: the call is left out, since nothing is read there. A session that Azure ends is replaced.
        assert await _begin(page, "{ microphone: false }") == "websocket_proxy"
        await page.run("session.sendText('Good morning')")
        await page.wait_for("said('assistant').includes('[simulated] you wrote: Good morning')")
        assert await page.run("doing.slice(0, 2)") == ["thinking", "speaking"]
        broker.azure.set_faults({"match": "/openai/v1/live", "fault": "cut", "at": "now"})
        await page.wait_for("told.includes('resuming')")
        broker.azure.set_faults()
        await page.wait_for("told.includes('resumed')")
        await page.run("session.sendText('And now?')")
        await page.wait_for("said('assistant').includes('[simulated] you wrote: And now?')")
        # An agent without a model that reads says so.
        await page.run("session.switchAgent('ben')")
        await page.wait_for("session.agentId === 'ben' && session.state === 'live'")
        await page.run("session.sendText('Hello')")
        await page.wait_for("codes.includes('text_not_taken')")
        assert await page.run("[session.state, codes]") == ["live", ["text_not_taken"]]
        await page.run("session.disconnect()")
        await broker.all_ended()
        # The demo page asks an Azure on loopback for its resources, which only the demo's has.
        assert [line for line in page.complaints if "/_simulator/" not in line] == []
