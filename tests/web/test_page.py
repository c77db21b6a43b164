"""The page itself: its size, its security policy, its accessibility, and its Health tab."""

import gzip

import httpx

from tests.web.support.chromium import Browser
from tests.web.support.fake_broker import run_fake
from tests.web.support.status import HEALTH

MAX_LOAD_BYTES = 100_000


async def test_page_loads_under_100_kb(quiet_browser: Browser) -> None:
    async with run_fake() as server, quiet_browser.page(still=False) as page:
        await page.goto(server.base_url)
        await page.wait_for("document.querySelector('[data-testid=agent]').options.length > 0")
        await page.click("talk")  # the worklets are loaded here
        await page.wait_for_text("state", "live")
        await server.until(lambda: len(server.attached) == 1)  # by the module that is loaded last
        await page.click("hangup")
        assert 10_000 < page.received_bytes < MAX_LOAD_BYTES
        assert page.complaints == []
        hosts = {request["url"].split("/")[2] for request in page.requests if request["url"].startswith("http")}
        assert hosts == {server.base_url.removeprefix("http://")}


async def test_page_obeys_its_strict_policy(quiet_browser: Browser) -> None:
    async with run_fake() as server:
        async with httpx.AsyncClient() as client:
            answer = await client.get(server.base_url)
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["permissions-policy"].startswith("microphone=(self)")
        async with quiet_browser.page() as page:
            await page.on_every_page(
                "window.__broken = []; document.addEventListener('securitypolicyviolation',"
                "(event) => __broken.push(event.violatedDirective))"
            )
            await page.goto(server.base_url)
            await page.click("talk")
            await page.wait_for_text("state", "live")
            assert await page.run("__broken") == []
            await page.run(
                "document.body.append(Object.assign(document.createElement('img'), { src: 'https://x.test/' }))"
            )
            await page.wait_for("__broken.length === 1")


async def test_modules_are_typed_compressed_and_cached() -> None:
    async with run_fake() as server, httpx.AsyncClient(base_url=server.base_url) as client:
        for path, media_type in (
            ("voice-session.js", "text/javascript"),
            ("style.css", "text/css"),
            ("mark.svg", "image/svg"),
        ):
            answer = await client.get(f"/client/{path}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(media_type)
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = await client.get(f"/client/{path}", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        async with client.stream("GET", "/client/voice-session.js") as raw:
            sent = b"".join([chunk async for chunk in raw.aiter_raw()])
        assert b"class VoiceSession" in gzip.decompress(sent)
        page = await client.get("/")
        assert (await client.get("/", headers={"If-None-Match": page.headers["etag"]})).status_code == 304


async def test_other_files_are_not_served() -> None:
    hidden = (
        *("/client/test/plan.test.js", "/client/package.json", "/client/tsconfig.json", "/client/index.html"),
        *("/client/%2e%2e/pyproject.toml", "/client/audio/%2e%2e/%2e%2e/pyproject.toml", "/client/", "/client/no.js"),
    )
    async with run_fake() as server, httpx.AsyncClient(base_url=server.base_url) as client:
        assert {path: (await client.get(path)).status_code for path in hidden} == dict.fromkeys(hidden, 404)


async def test_health_tab_shows_what_the_status_has(quiet_browser: Browser) -> None:
    async with run_fake(health=HEALTH) as server, quiet_browser.page() as page:
        await page.goto(f"{server.base_url}/#health")
        await page.wait_for("document.querySelectorAll('#strategies > li').length === 3")
        text = await page.run("document.getElementById('panel-health').innerText")
        figures = ["100 %", "97.5 % of 40", "180 ms, p95 420 ms", "working", "not there", "asked again in 300 s"]
        of_resources = [
            "eastus2: ga",
            "failing",
            "the connection is refused",
            "taken out",
            "40 % of mints per minute",
            "95 %",
        ]
        for shown in [
            *figures,
            *of_resources,
            "620 ms",
            "p95 1140 ms",
            "1,204",
            "oldest 3 s",
            "1 dead letters",
            "always there",
            "clock is 12 s off",
        ]:
            assert shown in text
        assert page.complaints == []
        # Looked at again, it is asked again: a status for everybody, and none at all.
        again = "document.getElementById('tab-talk').click(), document.getElementById('tab-health').click()"
        server.health = {"model": "gpt-realtime", "active_sessions": 3, "agents": {"elena": {}}}
        await page.run(again)
        await page.wait_for("!document.getElementById('health-notice').hidden")
        assert "BROKER_METRICS_TOKEN" in await page.run("document.getElementById('health-notice').textContent")
        text = await page.run("document.getElementById('panel-health').innerText")
        assert "Talks open" in text
        assert "3" in text
        assert "Usable plans" not in text  # nothing is drawn of what was not told
        server.health = None
        await page.run(again)
        await page.wait_for("document.getElementById('health-notice').textContent.includes('in trouble')")


async def test_phone_needs_no_sideways_scrolling_or_motion(quiet_browser: Browser) -> None:
    async with (
        run_fake(health=HEALTH, token_answers=["hang"]) as server,
        quiet_browser.page(width=360, height=680, still=False) as page,
    ):
        await page.goto(server.base_url)
        sideways = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not await page.run(sideways)
        for test_id in ("talk", "text", "agent"):
            box = await page.run(f"document.querySelector('[data-testid={test_id}]').getBoundingClientRect().toJSON()")
            assert 0 <= box["left"] < box["right"] <= 360
            assert box["bottom"] <= 680
        await page.run("document.getElementById('tab-health').click()")
        await page.wait_for("document.querySelectorAll('#strategies > li').length === 3")
        assert not await page.run(sideways)
        await page.run("document.getElementById('tab-talk').click()")
        await page.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
        )  # fmt: skip
        await page.click("talk")
        await page.wait_for_text("state", "requesting")
        assert await page.run("getComputedStyle(document.querySelector('.dot')).animationName") == "none"
