"""What is typed and what a page does with its turns, in a real browser against the fake."""

from tests.web.support.chromium import Browser
from tests.web.support.fake_broker import DIRECT, run_fake
from tests.web.support.page import AGENT_SAID, USER_SAID


async def test_typed_text_is_answered_and_reported(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT,)) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.type("text", "What is new?")
        await page.press("Enter")
        await page.wait_for(AGENT_SAID)
        assert await page.run(f"{USER_SAID}.querySelector('.words').textContent") == "What is new?"
        assert await page.run("document.querySelector('[data-testid=text]').value") == ""
        await page.click("hangup")
        await page.wait_for_text("state", "ended")
        assert [(turn["role"], turn["content"]) for turn in server.turns] == [
            ("user", "What is new?"),
            ("assistant", "You wrote to me."),
        ]


async def test_closing_page_sends_last_turns(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT,), turn_answers=[503, 503, 503]) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.type("text", "Remember this.")
        await page.press("Enter")
        await server.until(lambda: not server.turn_answers)
        await page.call("Page.navigate", url="about:blank")
        await server.until(lambda: any(turn["content"] == "Remember this." for turn in server.turns))


async def test_refused_turns_arrive_later_in_order(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT,), turn_answers=[503, 503, 500]) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        for count, words in ((2, "One"), (4, "Two")):
            await page.type("text", words)
            await page.press("Enter")
            await page.wait_for(f"document.querySelectorAll('.line').length === {count}")
        await server.until(lambda: len(server.turns) == 4)
        assert [turn["content"] for turn in server.turns if turn["role"] == "user"] == ["One", "Two"]


async def test_page_sends_items_alone_once_attached(quiet_browser: Browser) -> None:
    async with run_fake(transports=(DIRECT,)) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.run(
            """import("/client/voice-session.js").then(({ VoiceSession }) => {
                const session = (window.session = new VoiceSession({ brokerUrl: location.origin }));
                window.told = [];
                const cycle = [];
                cycle.push(cycle);
                session.tool("nothing", () => undefined);
                session.tool("count", async () => ({ count: 12n }));
                session.tool("cycle", () => cycle);
                session.addEventListener("tool", ({ detail }) => told.push(detail.name));
                session.addEventListener("event", ({ detail }) => told.push(detail.type));
                return session.connect();
            })"""
        )
        await server.until(lambda: bool(server.attached))
        assert server.attached == [{"session_id": server.plans[0]["session_id"], "call_id": "1"}]
        sent = server.partners[0].from_client

        def asked() -> int:
            return sum(event["type"] == "response.create" for event in sent)

        server.call_events.put_nowait({"type": "broker.attached", "call_id": "attached-1"})
        server.call_events.put_nowait({"type": "broker.tool", "name": "look_up", "call_id": "c1", "state": "done"})
        await page.wait_for("told.includes('look_up')")
        assert await page.run("told.includes('broker.attached')")
        # One answer calls tools of the page's, and one of the broker's: an output each, and the broker asks.
        partner = server.partners[0]
        calls = [await partner.call_function(name) for name in ("nothing", "look_up", "count", "cycle")]
        await server.until(lambda: len(partner.outputs) == 3)
        failed = '{"error":"the page could not do this"}'
        outputs = dict(zip(calls, ("done", None, '{"count":"12"}', failed), strict=True))
        assert dict(partner.outputs) == {call: output for call, output in outputs.items() if output}
        await page.run("session.sendText('Hello?')")
        await server.until(lambda: any(event.get("item", {}).get("role") == "user" for event in sent))
        server.call_events.put_nowait({"type": "broker.detached", "call_id": "attached-1"})
        await page.wait_for("told.includes('broker.detached')")
        await server.until(lambda: asked() == 1)  # the broker has gone without an answer
        items = [event["type"] for event in sent if event["type"] in {"conversation.item.create", "response.create"}]
        assert items == ["conversation.item.create"] * 4 + ["response.create"]
