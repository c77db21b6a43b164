"""Runs and compiles the examples of docs/embed.md as they are written there."""

import json
import re
from pathlib import Path

import pytest

from tests.support.node import installed_modules, run_node
from tests.web.support.chromium import Browser
from tests.web.support.fake_broker import DIRECT, PROXY, run_fake
from tests.web.support.page import ScriptPage

TOOLS = Path(__file__).parent
CLIENT = TOOLS.parents[1] / "web_client"
EMBED = TOOLS.parents[1] / "docs" / "embed.md"


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", EMBED.read_text(), re.DOTALL)


async def test_ten_line_example_talks(browser: Browser) -> None:
    tag, ten_lines = examples("html")
    assert len([line for line in ten_lines.splitlines() if line.strip()]) <= 11
    async with run_fake(transports=(DIRECT, PROXY)) as server, browser.page() as page:
        server.extra_page = "<!doctype html>" + ten_lines.replace("https://voice.example.com", server.base_url)
        await page.goto(f"{server.base_url}/extra")
        await page.click_on("#talk")
        await page.wait_for("words.textContent.includes('spoke for')", 15)
        await server.until(lambda: {turn["role"] for turn in server.turns} == {"user", "assistant"})
        await page.click_on("#talk")
        assert [line for line in page.complaints if "favicon" not in line] == []
        server.extra_page = "<!doctype html>" + tag.replace("https://voice.example.com", server.base_url)
        await page.goto(f"{server.base_url}/extra")
        await page.wait_for("document.querySelector('voice-talk')?.talk")
        await page.run("document.querySelector('voice-talk').talk()", user_gesture=True)
        await page.wait_for("document.querySelector('voice-talk').session.state === 'live'")


async def test_typed_examples_compile(tmp_path: Path) -> None:
    modules = installed_modules(TOOLS)
    tsc = modules / "typescript" / "bin" / "tsc"
    await run_node(tsc, "-p", CLIENT / "tsconfig.json", "--outDir", tmp_path / "types", cwd=TOOLS)
    paths = {
        "voice-session": ["./types/voice-session.d.ts"],
        "voice-session/react": ["./types/react.d.ts"],
        "react": [str(modules / "@types" / "react")],
        "react/jsx-runtime": [str(modules / "@types" / "react" / "jsx-runtime")],
    }
    options = {"strict": True, "noEmit": True, "target": "es2023", "module": "es2022", "moduleResolution": "bundler"}
    more = {"paths": paths, "types": [], "jsx": "react-jsx", "allowJs": True, "skipLibCheck": True}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options | more, "include": ["example*"]}))
    (typed,), (component,) = examples("ts"), examples("jsx")
    (tmp_path / "example.ts").write_text(typed)
    (tmp_path / "example-react.jsx").write_text(
        "// @ts-check\n"
        + component.replace("function Talk({", "function Talk(/** @type {{brokerUrl: string, agentId: string}} */ {")
    )
    await run_node(tsc, "-p", tmp_path / "tsconfig.json", cwd=tmp_path)


@pytest.mark.parametrize("engine", ["chromium", "firefox", "webkit"])
async def test_strict_policy_lets_the_tag_talk(engine: str, engine_page: ScriptPage) -> None:
    async with run_fake(transports=(PROXY,)) as server:
        origin = server.base_url.removeprefix("http://")
        sources = f"script-src {server.base_url}; connect-src {server.base_url} ws://{origin}; style-src 'self'"
        policy = f"default-src 'none'; {sources}; require-trusted-types-for 'script'; trusted-types 'none'"
        tag = (
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<script type="module" src="/client/voice-talk.js"></script><voice-talk></voice-talk>'
        )
        server.extra_page = f"<!doctype html><head>{tag}"
        await engine_page.goto(f"{server.base_url}/extra")
        await engine_page.wait_for("document.querySelector('voice-talk')?.talk")
        await engine_page.run("document.querySelector('voice-talk').talk()", user_gesture=True)
        await engine_page.wait_for("document.querySelector('voice-talk').session.state === 'live'")
        assert [line for line in engine_page.complaints if "favicon" not in line] == []
        # Without the socket's address, the page is told which directive lacks it.
        server.extra_page = f"<!doctype html><head>{tag.replace(f'ws://{origin}', '')}"
        await engine_page.goto(f"{server.base_url}/extra")
        await engine_page.wait_for("document.querySelector('voice-talk')?.talk")
        await engine_page.run(
            "(() => { const element = document.querySelector('voice-talk'); window.codes = [];"
            "element.addEventListener('error', ({ detail }) => codes.push(detail.code));"
            "element.talk().catch(() => undefined); })()",
            user_gesture=True,
        )
        await engine_page.wait_for("codes.includes('csp_connect_src')")
