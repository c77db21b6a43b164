"""The demo page and the element in each of their states: what axe finds, and whether everybody reaches everything."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.machine import retry_if_host_busy
from tests.support.node import installed_modules
from tests.web.support.chromium import Browser, Page
from tests.web.support.fake_broker import PROXY, FakeBroker, run_fake
from tests.web.support.status import HEALTH

# The prompt stays open until somebody calls `__allow`; then it is as if it had been answered before.
_PROMPT = """
(() => {
  const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  let allowed = false;
  navigator.permissions.query = async () => ({ state: allowed ? "granted" : "prompt" });
  const get = async (wish) => (window.__stream = await real(wish));
  navigator.mediaDevices.getUserMedia = (wish) => allowed ? get(wish) : new Promise((yes) => {
    window.__allow = () => { allowed = true; yes(get(wish)); };
  });
  const realFetch = window.fetch;
  window.fetch = (url, init) =>
    window.__easyAuth && url === "/.auth/me" ? Promise.resolve(new Response("[]")) : realFetch(url, init);
})();
"""
# A phone's keyboard covers the page: the page keeps its size, and what is visible of it shrinks.
_KEYBOARD = """
(() => {
  const view = Object.assign(new EventTarget(), { width: innerWidth, height: innerHeight, offsetTop: 0, scale: 1 });
  Object.defineProperty(window, "visualViewport", { value: view });
  window.__keyboard = (height, scale = 1) => {
    Object.assign(view, { height, scale });
    view.dispatchEvent(new Event("resize"));
  };
})();
"""
_AXE = """axe.run(document, OPTIONS).then(({ passes, violations }) => ({
    passed: passes.length,
    findings: violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html + node.failureSummary)}`),
}))"""
# Colours that fade into each other have any contrast.
_STILL = {"name": "prefers-reduced-motion", "value": "reduce"}
_CONTRAST = {"runOnly": ["color-contrast"]}
_AS_ASKED = ("prefers-contrast: more", "forced-colors: active")
"""How else users want colours. One state shows all of the page's."""
_IN_BOX = "(() => { const r = BOX.getBoundingClientRect(); return [r.left, r.right, r.top, r.bottom]; })()"


@dataclass
class Surface:
    """What a user sees of a talk: where its parts are, as expressions of the page."""

    talk: str
    hang_up: str
    mute: str
    text: str
    doing: str
    error: str
    unheard: str = field(kw_only=True)
    """What it says while the microphone is in use elsewhere."""
    type_only: str = field(kw_only=True)
    """Begins a talk without a microphone."""


DEMO = Surface(
    *(f"document.getElementById('{name}')" for name in ("talk", "hangup", "mute", "text", "doing", "notice")),
    unheard="The microphone is in use elsewhere",
    type_only="document.getElementById('type').click()",
)
ELEMENT = Surface(
    *(
        f"document.querySelector('voice-talk').shadowRoot.querySelector('[part={name}]')"
        for name in ("talk", "hang-up", "mute", "text", "status", "error")
    ),
    unheard="Microphone in use elsewhere",
    type_only="(document.querySelector('voice-talk').setAttribute('microphone', 'no'), "
    "document.querySelector('voice-talk').talk().catch(() => undefined), undefined)",
)


async def _look(page: Page, state: str) -> None:
    """Fails with what axe finds: everything in the light, and contrasts in the dark."""
    outcome = await page.run(_AXE.replace("OPTIONS", '{"resultTypes": ["violations"]}'))
    assert outcome["passed"] > 10
    assert outcome["findings"] == [], state
    for wish in ("prefers-color-scheme: dark", *(_AS_ASKED if state == "muted" else ())):
        name, _, value = wish.partition(": ")
        await page.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value}, _STILL])
        found = await page.run(_AXE.replace("OPTIONS", json.dumps(_CONTRAST)))
        assert found["findings"] == [], f"{state}, {wish}"
    await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}, _STILL])


async def _visit_states(
    page: Page, server: FakeBroker, surface: Surface, look: Callable[[str], Awaitable[None]]
) -> None:
    """Goes through all states of a talk, and looks at each."""

    async def press(part: str) -> None:
        await page.run(f"{part}.click()", user_gesture=True)

    async def tell(kind: str, **fields: Any) -> None:
        await server.sockets[-1].send_text(json.dumps({"type": kind, **fields}))

    async def doing(words: str) -> None:
        await page.wait_for(f"{surface.doing}.textContent.trim() === {json.dumps(words)}", 20)
        await look(words)

    first = await page.run(f"{surface.doing}.textContent.trim()")
    await look(first)
    server.token_answers = ["poor", "hang"]
    await press(surface.talk)
    await doing("Allow the microphone")
    await page.run("__allow()")
    await page.wait_for(f"!{surface.error}.hidden", 20)
    await doing("Starting")
    await press(surface.hang_up)
    server.socket_closes = ["hang"]
    await press(surface.talk)
    await doing("Connecting")
    await press(surface.hang_up)
    await press(surface.talk)
    await doing("Listening")
    track = "__stream.getAudioTracks()[0]"
    await page.run(f"{track}.dispatchEvent(new Event('mute'))")  # a phone call has it
    await doing(surface.unheard)
    await page.run(f"{track}.dispatchEvent(new Event('unmute'))")
    await page.wait_for(f"{surface.doing}.textContent.trim() === 'Listening'")
    await tell("input_audio_buffer.speech_started", audio_start_ms=0)
    await tell("input_audio_buffer.speech_stopped", item_id="item_1")
    await doing("Thinking")
    await server.partners[-1].answer_with_tone(60, finished=False)
    await doing("Speaking")
    # With an answer that was interrupted, words that may still change, and another agent.
    await server.partners[-1].notice_speech()
    await server.partners[-1].begin_to_say("And then")
    await tell("broker.agent.switched", agent_id="marcus")
    await tell("broker.resuming", reason="quota", retry_after_s=8)
    await page.wait_for(f"{surface.doing}.textContent.trim() === 'Listening'")
    await press(surface.mute)
    await look("muted")
    call = {"type": "function_call", "call_id": "call_1", "name": "show_card", "arguments": '{"title": "A card"}'}
    await tell("response.output_item.done", response_id="resp_1", item=call)
    server.token_answers = ["hang"]
    await server.sockets[-1].close(4502)
    await doing("Reconnecting")
    await server.until(lambda: not server.token_answers)  # or the next talk would meet it
    await press(surface.hang_up)
    await page.wait_for(f"!{surface.talk}.hidden")
    await look("ended")
    await page.run(surface.type_only, user_gesture=True)
    await page.wait_for(f"!{surface.text}.disabled")
    await look("typed")
    await press(surface.hang_up)
    for _ in range(2):  # first nobody has set a sign-in up
        server.token_answers = [401]
        await press(surface.talk)
        await page.wait_for(f"!{surface.error}.hidden", 20)
        await doing("Not connected")
        await page.run("window.__easyAuth = true")


async def _load(page: Page, url: str) -> None:
    axe = (installed_modules(Path(__file__).parent) / "axe-core" / "axe.min.js").read_text()
    await page.call("Page.setBypassCSP", enabled=True)
    await page.on_every_page(_PROMPT)
    await page.goto(url)
    await page.run(axe)


@retry_if_host_busy(tries=2)
async def test_demo_page_is_accessible(quiet_browser: Browser) -> None:
    signs: list[str] = []
    async with run_fake(transports=(PROXY,), health=HEALTH) as server, quiet_browser.page() as page:
        await _load(page, server.base_url)
        await page.wait_for("document.querySelector('[data-testid=agent]').options.length > 0")
        await page.run("document.querySelector('details').open = true")
        # As where Azure is simulated.
        for part, words in (("simulated", "simulated Azure"), ("break", "Break eastus2")):
            await page.run(
                f"Object.assign(document.getElementById('{part}'), {{ hidden: false, textContent: '{words}' }})"
            )

        async def look(state: str) -> None:
            if state == "Not connected":
                signs.append(await page.wait_for("document.getElementById('sign-in').innerHTML"))
            if state == "muted":
                assert not await page.run("document.getElementById('muted').hidden")
            if state == "Reconnecting":  # the card came before
                assert await page.run("document.querySelector('.shown h2').textContent") == "A card"
            await _look(page, state)

        await _visit_states(page, server, DEMO, look)
        assert "docs/embed.md" in signs[0]
        assert '<a href="/.auth/login/aad?post_login_redirect_uri=%2F">' in signs[1]
        notes = await page.run("[...document.querySelectorAll('.note')].map((note) => note.textContent)")
        assert "The agent shows a card." in notes
        # Nothing is announced of what is heard anyway, until somebody asks.
        assert await page.run("document.getElementById('captions').childElementCount") == 0
        await page.run("document.getElementById('tab-health').click()")
        await page.wait_for("document.querySelectorAll('#strategies > li').length === 3")
        await _look(page, "health")


@retry_if_host_busy(tries=2)
async def test_element_is_accessible(quiet_browser: Browser) -> None:
    tag = (
        '<script type="module" src="/client/voice-talk.js"></script><main><h1>Page</h1><voice-talk></voice-talk></main>'
    )
    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page(width=320, height=640) as page:
        server.extra_page = (
            f"<!doctype html><html lang=en><title>Page</title><meta name=color-scheme content='light dark'>{tag}"
        )
        await _load(page, f"{server.base_url}/extra")
        await page.wait_for("document.querySelector('voice-talk')?.talk")

        async def look(state: str) -> None:
            assert not await page.run("document.documentElement.scrollWidth > innerWidth"), state
            await _look(page, state)
            if state == "muted":
                await page.run("document.querySelector('voice-talk').setAttribute('push-to-talk', '')")
                await _look(page, "push to talk")
                await page.run("document.querySelector('voice-talk').removeAttribute('push-to-talk')")

        await _visit_states(page, server, ELEMENT, look)


@retry_if_host_busy(tries=2)
async def test_keyboard_reaches_and_stops_everything(quiet_browser: Browser) -> None:
    focused = "document.activeElement.id"
    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.run("document.getElementById('tab-talk').focus()")
        await page.press("ArrowRight")
        assert await page.run(f"[{focused}, document.getElementById('panel-talk').hidden]") == ["tab-health", True]
        await page.press("ArrowLeft")
        assert await page.run(f"[{focused}, document.getElementById('panel-talk').hidden]") == ["tab-talk", False]
        for _ in range(8):
            await page.press("Tab")
            if await page.run(focused) == "talk":
                break
        assert await page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await page.press("Enter")
        await page.wait_for_text("state", "live")
        assert await page.run(focused) == "hangup"  # the focus goes where the button went
        await page.press("Enter")
        await page.wait_for_text("state", "ended")
        assert await page.run(focused) == "talk"
        await page.press("Enter")
        await page.wait_for_text("state", "live")
        await page.run("document.body.focus(), document.getElementById('announce').click()")
        reached = set()
        for _ in range(16):
            await page.press("Tab")
            reached.add(await page.run("document.activeElement.id || document.activeElement.localName"))
        assert {"agent", "summary", "transcript", "hangup", "mute", "stop", "text", "send"} <= reached
        await server.partners[-1].answer_with_tone(0.5)
        # Once, whole, and when it was heard.
        said = "[...document.getElementById('captions').children].map((line) => line.textContent).join('|')"
        await page.wait_for(f"{said} === 'Elena: Once upon a time.'")
        await server.partners[-1].answer_with_tone(60)
        await page.wait_for_text("doing", "Speaking")
        await page.wait_for("document.getElementById('stop').getAttribute('aria-disabled') === 'false'")
        await page.press("Escape")
        await page.wait_for_text("doing", "Listening")
        await page.run("document.getElementById('stop').focus()")
        await server.sockets[-1].close(4403)
        await page.wait_for_text("state", "failed")
        assert await page.run("document.activeElement.id") == "talk"


@retry_if_host_busy(tries=2)
async def test_keyboard_alone_holds_a_talk_in_the_element(quiet_browser: Browser) -> None:
    focused = "document.querySelector('voice-talk').shadowRoot.activeElement?.part.value"
    state = "document.querySelector('voice-talk').session?.state"

    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page() as page:

        async def tab_to(part: str) -> None:
            for _ in range(6):
                if await page.run(focused) == part:
                    return
                await page.press("Tab")
            raise AssertionError(f"Tab does not lead to {part}")

        server.extra_page = (
            "<!doctype html><html lang=en><title>Page</title>"
            '<script type="module" src="/client/voice-talk.js"></script><voice-talk></voice-talk>'
        )
        await page.goto(f"{server.base_url}/extra")
        await page.wait_for("document.querySelector('voice-talk')?.talk")
        await tab_to("talk")
        assert await page.run(
            "getComputedStyle(document.querySelector('voice-talk').shadowRoot.activeElement).outlineStyle"
        ) == "solid"  # fmt: skip
        await page.press("Enter")
        await page.wait_for(f"{state} === 'live'")
        assert await page.run(focused) == "hang-up"
        await tab_to("mute")
        await page.press(" ")
        muted = "document.querySelector('voice-talk').shadowRoot.activeElement.ariaPressed"
        assert await page.run(muted) == "true"
        await page.press(" ")
        assert await page.run(muted) == "false"
        await tab_to("text")
        await page.call("Input.insertText", text="Hello")
        await page.press("Enter")
        said = "document.querySelector('voice-talk').shadowRoot.querySelector('[part=transcript]').innerText"
        await page.wait_for(f"{said}.endsWith('Agent: You wrote to me.')")
        await page.run("document.querySelector('voice-talk').hangUp()")
        await page.wait_for(f"{state} === 'ended'")
        # With push to talk the button is held by the space bar; leaving it lets it go.
        await page.run("document.querySelector('voice-talk').setAttribute('push-to-talk', '')")
        await page.run("document.querySelector('voice-talk').shadowRoot.querySelector('[part=talk]').focus()")
        await page.press("Enter")
        await page.wait_for(f"{state} === 'live'")
        await tab_to("hold")
        sent = server.partners[-1].from_client
        held = {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32}
        await page.call("Input.dispatchKeyEvent", type="keyDown", **held)
        await page.run("new Promise((done) => setTimeout(done, 300))")  # a shorter press is a slip
        await page.call("Input.dispatchKeyEvent", type="keyUp", **held)
        await server.until(lambda: any(event["type"] == "input_audio_buffer.commit" for event in sent))
        await page.call("Input.dispatchKeyEvent", type="keyDown", **held)
        await page.run("new Promise((done) => setTimeout(done, 300))")
        await page.press("Tab")
        await server.until(lambda: sum(event["type"] == "input_audio_buffer.commit" for event in sent) == 2)
        await page.run("document.querySelector('voice-talk').hangUp()")


async def test_text_box_stays_reachable_on_phones(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page(width=320, height=568) as page:
        await page.on_every_page(_KEYBOARD)
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.type("text", "Hello")
        await page.press("Enter")
        await page.wait_for("document.querySelector('.line[data-speaker=assistant]')")
        # Upright; with the keyboard open; lying; lying with the keyboard open.
        for width, height, visible in ((320, 568, 568), (320, 568, 300), (640, 320, 320), (640, 320, 180)):
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            await page.run(f"__keyboard({visible})")
            for part in ("text", "send", "hangup"):
                box = await page.run(_IN_BOX.replace("BOX", f"document.getElementById('{part}')"))
                assert 0 <= box[0] < box[1] <= width, (part, width, visible)
                assert 0 <= box[2] < box[3] <= visible, (part, width, visible)
            assert not await page.run("document.documentElement.scrollWidth > innerWidth")
        # Somebody who has zoomed in sees less of the page, which must not shrink under them.
        await page.run("__keyboard(320), __keyboard(90, 3)")
        assert await page.run("document.body.style.getPropertyValue('--height')") == "320px"
