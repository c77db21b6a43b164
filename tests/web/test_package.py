"""The package of `scripts/pack-client`, as pages use it: the element, the hook and a bundle, in Chromium."""

import gzip
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.machine import retry_if_host_busy
from tests.support.node import installed_modules, run_node
from tests.web.support.chromium import Browser, Page
from tests.web.support.fake_broker import DIRECT, PROXY, FakeBroker, run_fake

TOOLS = Path(__file__).parent
STATUS = "document.querySelector('voice-talk').shadowRoot.querySelector('[part=status]').textContent"
LINES = (
    "[...document.querySelector('voice-talk').shadowRoot.querySelectorAll('[part~=line]')]"
    ".map((line) => line.textContent)"
)


BUILD = """
import { build } from "ESBUILD";
await build({
  ...{ entryPoints: ["page.jsx"], outdir: ".", entryNames: "out", splitting: SPLITTING },
  ...{ bundle: true, minify: true, format: "esm", jsx: "automatic" },
  ...{ define: { "process.env.NODE_ENV": '"production"' }, logLevel: "error", platform: "PLATFORM" },
});
"""


async def bundle(
    package: Path, source: str, target: Path, *, platform: str = "browser", splitting: bool = False
) -> str:
    """`source` and all that it imports, as one script for production; the worklets are beside it in `target`."""
    (target / "node_modules").mkdir(parents=True)
    for name in ("react", "react-dom", "scheduler"):
        (target / "node_modules" / name).symlink_to(installed_modules(TOOLS) / name)
    shutil.copytree(package, target / "node_modules" / "voice-session")
    (target / "page.jsx").write_text(source)
    script = target / "build.mjs"
    script.write_text(
        BUILD.replace("PLATFORM", platform)
        .replace("SPLITTING", "true" if splitting else "false")
        .replace("ESBUILD", (installed_modules(TOOLS) / "esbuild/lib/main.js").as_uri())
    )
    await run_node(script, cwd=target)
    return (target / "out.js").read_text()


@asynccontextmanager
async def extra_page(browser: Browser, server: FakeBroker, body: str) -> AsyncIterator[Page]:
    server.extra_page = f"<!doctype html><html lang=en><title>Page</title><body>{body}</body></html>"
    async with browser.page() as page:
        await page.goto(f"{server.base_url}/extra")
        yield page


TAG = (
    '<script type="module" src="/client/voice-talk.js"></script><voice-talk broker="{base}" agent="elena"></voice-talk>'
)


async def press(page: Page, part: str) -> None:
    await page.run(
        f"document.querySelector('voice-talk').shadowRoot.querySelector('[part={part}]').click()", user_gesture=True
    )


@retry_if_host_busy(tries=3)
async def test_one_tag_talks(quiet_browser: Browser) -> None:
    async with (
        run_fake(transports=(PROXY,)) as server,
        extra_page(quiet_browser, server, TAG.format(base=server.base_url)) as page,
    ):
        await page.wait_for(f"{STATUS} === 'Ready'")
        await press(page, "talk")
        await page.wait_for(f"{STATUS} === 'Listening'")
        await page.run("document.querySelector('voice-talk').session.sendText('Hello')")
        await page.wait_for(f"{LINES}.join() === 'You: Hello,Agent: You wrote to me.'")
        assert "AI" in await page.run("document.querySelector('voice-talk').shadowRoot.textContent")
        # Moved at once, the talk goes on; removed, it ends.
        await page.run("document.body.append(document.querySelector('voice-talk'))")
        await page.run("new Promise((done) => setTimeout(done, 400))")
        assert await page.run("document.querySelector('voice-talk').session.state") == "live"
        await page.run("window.gone = document.querySelector('voice-talk'); gone.remove()")
        await page.wait_for("gone.session.state === 'ended'")


@retry_if_host_busy(tries=3)
async def test_elements_share_one_microphone(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server:
        two = (
            TAG.format(base=server.base_url)
            + f'<voice-talk broker="{server.base_url}" microphone="false" disclosure=""></voice-talk>'
        )
        async with extra_page(quiet_browser, server, two) as page:
            await page.wait_for(
                "customElements.get('voice-talk') && document.querySelectorAll('voice-talk').length === 2"
            )
            await page.run("window.pair = [...document.querySelectorAll('voice-talk')]")
            for element in (0, 1):
                await page.run(f"pair[{element}].talk()", user_gesture=True)
                await page.wait_for(f"pair[{element}].session.state === 'live'")
            assert await page.run("pair.map(({ session }) => session.state)") == ["ended", "live"]
            status = "pair[1].shadowRoot.querySelector('[part=status]').textContent"
            assert await page.run(status) == "Ready", "nobody listens"
            assert "AI" in await page.run("pair[1].shadowRoot.querySelector('[part=disclosure]').textContent")
            await page.run("pair[1].hangUp()")


HOOK = """
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { useLevels, useVoiceSession } from "voice-session/react";

window.renders = 0;
window.heard = [];
function Talk() {
  window.renders += 1;
  const [count, setCount] = useState(0);
  window.count = () => setCount((before) => before + 1);
  const talk = useVoiceSession({
    brokerUrl: location.origin,
    agentId: "elena",
    onTranscript: () => window.heard.push(count),
    tools: count > 5 ? { latest: () => count } : {},
  });
  window.talk = talk;
  useEffect(() => void (window.committed = count)); // after the hook's own effects
  return <button onClick={() => talk.connect()}>{talk.state}{talk.lines.map(({ text }) => text).join()}</button>;
}
window.levels = new Set();
function Level() {
  window.levels.add(useLevels(window.talk));
  return null;
}
createRoot(document.getElementById("root")).render(<StrictMode><Talk /><Level /></StrictMode>);

// Connects by itself, which strict mode does twice, and has options of its own in each render.
function Eager() {
  const [count, setCount] = useState(0);
  window.eagerCount = () => setCount((before) => before + 1);
  const headers = { "X-Count": String(count) };
  const talk = useVoiceSession({ brokerUrl: location.origin, microphone: false, headers });
  const { connect, disconnect } = talk;
  useEffect(() => {
    connect().catch(() => undefined);
    return () => void disconnect();
  }, [connect, disconnect]);
  window.eager = talk;
  return <p id="eager">{count} {talk.state}</p>;
}
window.mountEager = () => {
  const root = createRoot(document.body.appendChild(document.createElement("div")));
  root.render(<StrictMode><Eager /></StrictMode>);
  window.unmountEager = () => root.unmount();
};
"""


@retry_if_host_busy(tries=3)
async def test_hook_talks_from_a_bundle(quiet_browser: Browser, package: Path, tmp_path: Path) -> None:
    script = await bundle(package, HOOK, tmp_path / "page")
    # esbuild leaves `new URL("./worklets.js", import.meta.url)` as it is: the file is served beside the bundle.
    async with run_fake(transports=(DIRECT, PROXY)) as server:
        server.extra_files = {"/out.js": script, "/worklets.js": (package / "audio" / "worklets.js").read_text()}
        body = '<div id="root"></div><script type="module" src="/out.js"></script>'
        async with extra_page(quiet_browser, server, body) as page:
            await page.wait_for("window.talk?.state === 'idle'")
            for _ in range(5):
                await page.run("count()")
            press = "document.querySelector('button').click()"
            await page.run(f"{press}, {press}", user_gesture=True)
            await page.wait_for("talk.state === 'live'")
            assert len(server.plan_requests) == 1  # one talk, though strict mode mounts twice
            before = await page.run("renders")
            await page.wait_for("levels.size > 10")
            assert await page.run("renders") - before < 4  # levels render who reads them alone
            await page.run("talk.sendText('Hello')")
            await page.wait_for("document.querySelector('button').textContent.includes('You wrote to me.')")
            assert await page.run("heard.every((count) => count === 5)")  # the latest render's handler
            await page.run("count(), count()")  # and the latest render's tool, which the talk began without
            await page.wait_for("committed === 7")
            (partner,) = server.partners
            call_id = await partner.call_function("latest")
            await server.until(lambda: partner.outputs == [(call_id, "7")])
            await page.run("talk.disconnect()")
            # Connected in an effect, rendered twenty times and removed: one talk, which ends with its component.
            await page.run("mountEager()", user_gesture=True)
            await page.wait_for("window.eager?.state === 'live'")
            for _ in range(20):
                await page.run("eagerCount()")
            await page.wait_for("document.getElementById('eager').textContent === '20 live'")
            assert len(server.plan_requests) == 2
            await page.run("window.session = eager.session; unmountEager()")
            await page.wait_for("session.state === 'ended'", 2)
            # Removed while it begins, it ends as well.
            server.token_answers = ["hang"]
            await page.run("mountEager()", user_gesture=True)
            await page.wait_for("eager.session !== session && eager.state === 'requesting'")
            await page.run("window.session = eager.session; unmountEager()")
            await page.wait_for("session.state === 'ended'", 2)


async def test_hook_renders_on_a_server(package: Path, tmp_path: Path) -> None:
    source = """
import { renderToString } from "react-dom/server.browser";
import { useVoiceSession } from "voice-session/react";
import "voice-session/voice-talk";
const Talk = () => <p>{useVoiceSession({ brokerUrl: "https://voice.example" }).state}</p>;
console.log(renderToString(<Talk />));
process.exit(0);
"""
    (tmp_path / "run.mjs").write_text(await bundle(package, source, tmp_path / "bundle", platform="node"))
    assert await run_node(tmp_path / "run.mjs", cwd=tmp_path) == "<p>idle</p>\n"


async def test_package_is_whole_and_small(package: Path, tmp_path: Path) -> None:
    stated = json.loads((package / "package.json").read_text())
    named = [
        path
        for entry in stated["exports"].values()
        for path in ([entry] if isinstance(entry, str) else entry.values())
        if "*" not in path
    ]
    assert len(named) > 8
    assert [path for path in named if not (package / path).is_file()] == []
    assert "dependencies" not in stated
    assert not (package / "demo.js").exists()
    worklets = (package / "audio/worklets.js").read_text()
    assert re.search(r"^\s*import\b", worklets, re.MULTILINE) is None  # bundlers copy it alone
    # What a page loads at first; what few talks need comes when they need it.
    core = await bundle(package, 'export { VoiceSession } from "voice-session";', tmp_path / "core", splitting=True)
    chunks = re.findall(r'from"\./(chunk-\w+\.js)"', core)
    at_first = core + "".join((tmp_path / "core" / chunk).read_text() for chunk in chunks)
    assert len(gzip.compress(at_first.encode())) < 20_000
    assert len(gzip.compress((package / "bundle/voice-talk.js").read_bytes())) < 35_000
