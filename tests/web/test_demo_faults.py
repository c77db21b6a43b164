"""The page against `token-broker demo` when calls, sockets and mints fail: where the talk goes on, and its turns."""

import asyncio
from typing import Any

import pytest

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser
from tests.web.support.clock import HURRIED_MS, install_clock, waited_s
from tests.web.support.demo import Demo, page_turns, turns_of
from tests.web.support.page import AGENT_SAID, KEEP_PLANS

CALLS = "/openai/v1/realtime/calls"


# The broker does not hear the call, and turns fail until the page closes. Then only `keepalive` requests arrive, as on
# a network that is slow.
_TURNS_WAIT_FOR_THE_END = """
(() => {
  let closing = false;
  addEventListener("pagehide", () => { closing = true; }, { capture: true });
  const real = window.fetch;
  window.fetch = (url, init) => String(url).endsWith("/calls/attach")
    || (String(url).endsWith("/conversation/turn") && !(closing && init.keepalive))
    ? Promise.reject(new TypeError("the network is gone"))
    : real(url, init);
})();
"""


@pytest.mark.parametrize(
    ("fault", "then", "reason"),
    [
        pytest.param({"fault": "status", "code": 401}, "webrtc_relay", "sdp_refused", id="sdp-401"),
        pytest.param({"fault": "hang"}, "webrtc_relay", "sdp_timeout", id="sdp-hangs"),
        pytest.param({"fault": "ice_never"}, "websocket_proxy", "ice_timeout", id="ice-never"),
    ],
)
@retry_if_host_busy(tries=3)
async def test_refused_call_takes_next_connection(
    quiet_browser: Browser, demo: Demo, fault: dict[str, Any], then: str, reason: str
) -> None:
    # The page's own call alone: the hang-up of an earlier call, which may be late, is a POST below the same path.
    await demo.set_faults({"match": CALLS, "method": "POST", "auth": "ephemeral", "times": 1, **fault})
    async with quiet_browser.page() as page:
        await install_clock(page, hurried_ms=HURRIED_MS.get(reason, []))
        await page.goto(demo.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live", 11)
        assert await waited_s(page) <= 8
        assert await page.text("transport") == then
        assert await page.run("document.querySelector('[data-testid=transport]').dataset.reason") == reason


@pytest.mark.parametrize("how", ["close", "channel", "silent"])
@retry_if_host_busy(tries=3)
async def test_dead_call_resumes_on_proxy_with_turns(quiet_browser: Browser, demo: Demo, how: str) -> None:
    await demo.set_faults({"match": CALLS, "method": "POST", "fault": "die_after", "seconds": 2.5, "how": how})
    async with quiet_browser.page() as page:
        await page.on_every_page(KEEP_PLANS)
        await page.goto(demo.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        assert await page.text("transport") == "webrtc"
        await page.type("text", "Before")
        await page.press("Enter")
        await page.wait_for(AGENT_SAID)
        await page.wait_for_text("transport", "websocket_proxy", 15)
        await page.wait_for_text("state", "live")
        await page.type("text", "After")
        await page.press("Enter")
        turns = await page_turns(page, demo, 4)
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant"]
        assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["Before", "After"]
        assert [turn["source"] for turn in turns[2:]] == ["proxy", "proxy"]


@pytest.mark.parametrize("how", ["closed", "left"])
@retry_if_host_busy(tries=3)
async def test_unreported_turns_survive_closing(quiet_browser: Browser, demo: Demo, how: str) -> None:
    async with quiet_browser.page() as page:
        await page.on_every_page(KEEP_PLANS)
        await page.on_every_page(_TURNS_WAIT_FOR_THE_END)
        await page.goto(f"{demo.base_url}/?transports=webrtc")
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.type("text", "My last words")
        await page.press("Enter")
        await page.wait_for(AGENT_SAID)
        answer = await page.run(f"{AGENT_SAID}.querySelector('.words').textContent")
        plan = await page.run("__plans.at(-1)")
        assert await demo.turns(plan["session_id"], plan["session_token"]) == []
        if how == "closed":
            await page.close()
        else:
            await page.goto(f"{demo.base_url}/healthz")
        turns = await turns_of(plan, demo, 2)
        assert [turn["content"] for turn in turns] == ["My last words", answer]


@retry_if_host_busy(tries=3)
async def test_turns_around_a_drop_stay_in_order(quiet_browser: Browser, demo: Demo) -> None:
    async with quiet_browser.page() as page:
        await page.on_every_page(KEEP_PLANS)
        await page.goto(f"{demo.base_url}/?transports=websocket_proxy")
        await page.click("talk")
        for number, words in enumerate(("First", "Second"), start=1):
            await page.wait_for_text("state", "live")
            await page.type("text", words)
            await page.press("Enter")
            await page.wait_for(
                f"document.querySelectorAll('.line[data-speaker=assistant][data-final=true]').length === {number}"
            )
            if number == 1:
                await page_turns(page, demo, 2)
                await asyncio.to_thread(demo.stop)
                await page.wait_for_text("state", "reconnecting")
                await asyncio.to_thread(demo.start)
        turns = await page_turns(page, demo, 4)
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant"]
        assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["First", "Second"]


# Last: after it the demo has to be restarted, to close its circuit breakers.
@retry_if_host_busy(tries=3)
async def test_failed_mints_end_on_voice_lives_call(quiet_browser: Browser, demo: Demo) -> None:
    async with quiet_browser.page() as page:
        await page.goto(f"{demo.base_url}/?transports=webrtc_relay,websocket_proxy")
        await page.click("talk")  # the simulator's first call of all takes long on a busy machine
        await page.wait_for_text("state", "live", 40)
    no_mint = ({"match": "/openai", "method": "POST", "fault": "status", "code": 500},
               {"match": "/api/projects", "fault": "status", "code": 500})  # fmt: skip
    await demo.set_faults(*no_mint)
    async with quiet_browser.page() as page:
        await page.on_every_page(KEEP_PLANS)
        await page.goto(demo.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live", 40)
        assert await page.run("__plans[0].connections.map(({ transport }) => transport)") == [
            "webrtc_websocket", "websocket_proxy",
        ]  # fmt: skip
        assert await page.text("transport") == "webrtc_websocket"
        await page.type("text", "Before")
        await page.press("Enter")
        await page.wait_for(AGENT_SAID)
        # The control socket is lost, and no other is to be had: the next plan's call fails, and the proxy goes on.
        calls = "/voice-live/realtime/calls"
        lost = ({"match": calls, "fault": "cut", "at": "now"}, {"match": calls, "fault": "refuse"})
        await demo.set_faults(*no_mint, *lost)
        await page.wait_for_text("transport", "websocket_proxy", 40)
        await page.wait_for_text("state", "live", 40)
        await page.type("text", "After")
        await page.press("Enter")
        turns = await page_turns(page, demo, 4)
        # A call's turns are kept once, from whichever tells of them first: its control socket, or the page.
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
        assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["Before", "After"]
        assert [turn["source"] for turn in turns[2:]] == ["proxy", "proxy"]
