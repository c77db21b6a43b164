"""The page itself: its size, its security policy, its accessibility, and its Health tab."""

import gzip
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.node import installed_modules
from tests.web.support.chromium import Browser, Page
from tests.web.support.fake_broker import PROXY, run_fake

MAX_LOAD_BYTES = 100_000
STRATEGY = {
    "breaker": "closed", "capability": "available", "last_outcome": "minted", "last_status": None, "last_ago_s": 2.0,
    "retry_in_s": None, "why": None, "attempts": 40, "successes": 39,
    "latency_ms": {"p50": 180.0, "p95": 420.0, "p99": 600.0},
}  # fmt: skip
MISSING: dict[str, Any] = STRATEGY | {
    "breaker": "open", "capability": "missing", "successes": 0, "why": "404 Resource not found; asked again in 300 s"
}  # fmt: skip
HEALTH = {
    "endpoint": "https://x.openai.azure.com", "model": "gpt-realtime", "active_sessions": 3, "clock_skew_s": 12.0,
    "agents": {"elena": {}, "marcus": {}},
    "strategies": [
        {"name": "ga", "resource": "eastus2"} | STRATEGY,
        {"name": "unified", "resource": "eastus2"} | MISSING,
        {"name": "websocket_proxy", "resource": None},
    ],
    "resources": [
        {"name": "eastus2", "enabled": True, "health": "failing", "why": "the connection is refused", "zone": "us"},
        {"name": "swedencentral", "enabled": False, "health": "good", "load": {"mints_per_minute": 0.4}, "zone": "eu"},
    ],
    "relay": {"turn_latency_ms": {"p50": 620.0, "p95": 1_140.0, "p99": 1_900.0}},
    "outbox": {"queued": 7, "oldest_age_s": 3.2, "delivered": 1_204, "dead": 1},
    "slo": {
        "aim": 0.9999, "requests": 41, "usable_plans": 41, "degraded_plans": 2, "ratio": 1.0,
        "talks": {"asked": 20, "live": 19, "ratio": 0.95},
    },
}  # fmt: skip


async def test_page_loads_under_100_kb(quiet_browser: Browser) -> None:
    async with run_fake() as server, quiet_browser.page() as page:
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


@pytest.mark.parametrize(
    "path",
    ["/client/test/plan.test.js", "/client/package.json", "/client/tsconfig.json", "/client/index.html",
     "/client/%2e%2e/pyproject.toml", "/client/audio/%2e%2e/%2e%2e/pyproject.toml", "/client/", "/client/no.js"],
)  # fmt: skip
async def test_other_files_are_not_served(path: str) -> None:
    async with run_fake() as server, httpx.AsyncClient(base_url=server.base_url) as client:
        assert (await client.get(path)).status_code == 404


_AXE = """axe.run(document).then(({ passes, violations }) => ({
    passed: passes.length,
    findings: violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html + node.failureSummary)}`),
}))"""


async def _findings(page: Page) -> list[str]:
    outcome = await page.run(_AXE)
    assert outcome["passed"] > 15
    return list(outcome["findings"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(quiet_browser: Browser, scheme: str) -> None:
    axe = (installed_modules(Path(__file__).parent) / "axe-core" / "axe.min.js").read_text()
    async with run_fake(transports=(PROXY,), health=HEALTH) as server, quiet_browser.page(scheme=scheme) as page:
        await page.call("Page.setBypassCSP", enabled=True)
        await page.goto(server.base_url)
        await page.wait_for("document.querySelector('[data-testid=agent]').options.length > 0")
        await page.run(axe)
        assert await _findings(page) == []
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.type("text", "Hello")
        await page.press("Enter")
        await page.wait_for("document.querySelector('.line[data-speaker=assistant][data-final=true]')")
        await page.click("mute")
        assert await _findings(page) == []
        await server.sockets[0].close(4403)
        await page.wait_for_text("state", "failed")
        assert await _findings(page) == []
        await page.run("document.getElementById('tab-health').click()")
        await page.wait_for("document.querySelectorAll('#strategies > li').length === 3")
        assert await _findings(page) == []


async def test_health_tab_shows_status(quiet_browser: Browser) -> None:
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


async def test_health_tab_explains_a_short_status(quiet_browser: Browser) -> None:
    short = {"voicelive_configured": True, "model": "gpt-realtime", "active_sessions": 3, "agents": {"elena": {}}}
    async with run_fake(health=short) as server, quiet_browser.page() as page:
        await page.goto(f"{server.base_url}/#health")
        await page.wait_for("!document.getElementById('health-notice').hidden")
        assert "BROKER_METRICS_TOKEN" in await page.run("document.getElementById('health-notice').textContent")
        text = await page.run("document.getElementById('panel-health').innerText")
    assert "Talks open" in text
    assert "3" in text
    assert "Usable plans" not in text  # nothing is drawn of what was not told


async def test_health_tab_says_broker_is_away(quiet_browser: Browser) -> None:
    async with run_fake(health=None) as server, quiet_browser.page() as page:
        await page.goto(f"{server.base_url}/#health")
        await page.wait_for("!document.getElementById('health-notice').hidden")
        assert "in trouble" in await page.run("document.getElementById('health-notice').textContent")


async def test_keyboard_alone_holds_a_talk(quiet_browser: Browser) -> None:
    focused = "document.activeElement.dataset.testid"
    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        for _ in range(8):
            if await page.run(focused) == "talk":
                break
            await page.press("Tab")
        assert await page.run(focused) == "talk"
        assert await page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await page.press("Enter")
        await page.wait_for_text("state", "live")
        assert await page.run(focused) == "hangup"  # the focus goes where the button went
        await page.press("Enter")
        await page.wait_for_text("state", "ended")
        assert await page.run(focused) == "talk"


async def test_arrow_keys_switch_tabs(quiet_browser: Browser) -> None:
    async with run_fake(health=HEALTH) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.run("document.getElementById('tab-talk').focus()")
        await page.press("ArrowRight")
        assert await page.run("document.activeElement.id") == "tab-health"
        assert await page.run("document.getElementById('panel-talk').hidden")
        await page.press("ArrowLeft")
        assert not await page.run("document.getElementById('panel-talk').hidden")


async def test_phone_needs_no_sideways_scrolling(quiet_browser: Browser) -> None:
    async with run_fake(health=HEALTH) as server, quiet_browser.page(width=360, height=680) as page:
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


async def test_reduced_motion_stops_animations(quiet_browser: Browser) -> None:
    async with run_fake(token_answers=["hang"]) as server, quiet_browser.page() as page:
        await page.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
        )  # fmt: skip
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "requesting")
        assert await page.run("getComputedStyle(document.querySelector('.dot')).animationName") == "none"
