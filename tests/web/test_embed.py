"""Runs and compiles the examples of docs/embed.md as they are written there."""

import json
import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from tests.support.broker import make_settings, run_broker
from tests.support.machine import retry_if_host_busy
from tests.support.node import installed_modules, run_node
from tests.support.serving import serve_app
from tests.web.support.chromium import Browser
from tests.web.support.fake_broker import DIRECT, PROXY, run_fake
from tests.web.support.page import ScriptPage
from token_broker.simulator.server import serve

TOOLS = Path(__file__).parent
CLIENT = TOOLS.parents[1] / "web_client"
EMBED = TOOLS.parents[1] / "docs" / "embed.md"


def test_every_example_is_known() -> None:
    """Each is run here, but for those about Entra, which `test_sign_in.py` runs."""
    found = re.findall(r"^```(\w*)\n", EMBED.read_text(), re.MULTILINE)
    assert found[::2] == ["html", "html", "jsx", "ts", "js", "html", "js", ""]


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", EMBED.read_text(), re.DOTALL)


async def test_ten_line_example_talks(browser: Browser) -> None:
    tag, ten_lines, _signed_in = examples("html")
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


_BUILD = """
import { build } from "ESBUILD";
await build({
  ...{ entryPoints: ["react.jsx", "typed.ts"], outdir: "out", bundle: true, format: "esm", jsx: "automatic" },
  ...{ alias: { "voice-session": "CLIENT/voice-session.js", "voice-session/react": "CLIENT/react.js" } },
  ...{ nodePaths: ["MODULES"], define: { "process.env.NODE_ENV": '"production"' }, logLevel: "error" },
});
"""
_RENDER = """
import { createRoot } from "react-dom/client";
createRoot(document.getElementById("root")).render(<Talk brokerUrl={location.origin} agentId="elena" />);
"""
_ANSWERS = """
globalThis.signIn = async () => "token";
globalThis.show = (title, text) => (document.title += ` ${title}: ${text}`);
"""


async def test_react_and_bundler_examples_talk(browser: Browser, tmp_path: Path) -> None:
    modules = installed_modules(TOOLS)
    (typed,), (component,) = examples("ts"), examples("jsx")
    (tmp_path / "react.jsx").write_text(component + _RENDER)
    (tmp_path / "typed.ts").write_text(typed + "\nObject.assign(globalThis, { session });\n")
    build = _BUILD.replace("ESBUILD", (modules / "esbuild/lib/main.js").as_uri())
    (tmp_path / "build.mjs").write_text(build.replace("CLIENT", str(CLIENT)).replace("MODULES", str(modules)))
    await run_node(tmp_path / "build.mjs", cwd=tmp_path)
    scripts = {f"/{name}.js": (tmp_path / "out" / f"{name}.js").read_text() for name in ("react", "typed")}
    worklets = {"/worklets.js": (CLIENT / "audio" / "worklets.js").read_text()}
    async with run_fake(transports=(PROXY,)) as server, browser.page() as page:
        server.extra_files = scripts | worklets | {"/answers.js": _ANSWERS}
        server.extra_page = '<!doctype html><div id="root"></div><script type="module" src="/react.js"></script>'
        await page.goto(f"{server.base_url}/extra")
        await page.click_on("button")
        await page.wait_for("document.querySelector('[role=status]').textContent === 'listening'", 20)
        await page.wait_for("document.body.innerText.includes('You spoke for')", 20)
        assert await page.run("document.querySelector('button').textContent") == "Hang up"
        await page.click_on("button")
        # The example with types names the broker of the docs, and is bundled: its address is put in afterwards.
        server.extra_files["/typed.js"] = scripts["/typed.js"].replace("https://voice.example.com", server.base_url)
        server.extra_page = "<!doctype html>" + "".join(
            f'<script type="module" src="/{name}.js"></script>' for name in ("answers", "typed")
        )
        await page.goto(f"{server.base_url}/extra")
        await page.wait_for("globalThis.session")
        await page.run("session.connect()", user_gesture=True)
        await page.wait_for("document.title.includes('assistant: You spoke for')", 20)
        assert [line for line in page.complaints if "favicon" not in line] == []


@retry_if_host_busy(tries=2)
async def test_tag_talks_from_another_origin(quiet_browser: Browser, tmp_path: Path) -> None:
    tag, *_ = examples("html")
    text = ""

    async def answer(request: Request) -> Response:
        # Nothing that does not allow it is loaded from elsewhere.
        isolated = {"Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Opener-Policy": "same-origin"}
        return HTMLResponse(text, headers=isolated)

    async with (
        serve_app(Starlette(routes=[Route("/", answer)])) as page_url,
        serve() as azure,
        run_broker(make_settings(tmp_path, azure.base_url, allowed_origins=(page_url,))) as broker,
        run_broker(make_settings(tmp_path, azure.base_url)) as closed,
        quiet_browser.page() as page,
    ):
        for place in (broker, closed):  # a page that loads no script from there, as one with a bundle
            script, element = tag.split("</script>")
            text = "<!doctype html>" + "</script>".join(
                (
                    script.replace("https://voice.example.com", broker.base_url),
                    element.replace("https://voice.example.com", place.base_url),
                )
            )
            await page.goto(page_url)
            await page.wait_for("document.querySelector('voice-talk')?.talk")
            await page.run("document.querySelector('voice-talk').talk().catch(() => undefined)", user_gesture=True)
            if place is broker:
                await page.wait_for("document.querySelector('voice-talk').session?.state === 'live'", 30)
                assert await page.run("crossOriginIsolated")
                assert page.faults == []
                await page.run("document.querySelector('voice-talk').session.disconnect()")
        await page.wait_for("!document.querySelector('voice-talk').shadowRoot.querySelector('[part=error]').hidden", 30)
        assert any("BROKER_ALLOWED_ORIGINS" in line for line in page.complaints)


async def test_typed_examples_compile(package: Path, tmp_path: Path) -> None:
    modules = installed_modules(TOOLS)
    tsc = modules / "typescript" / "bin" / "tsc"
    paths = {
        "voice-session": [str(package / "types/voice-session.d.ts")],
        "voice-session/react": [str(package / "types/react.d.ts")],
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


_TALK = """(() => {
  window.element ??= document.querySelector("voice-talk");
  window.codes = [];
  element.onerror = ({ detail }) => codes.push(detail.code);
  element.hangUp();
  void element.talk().catch(() => undefined);
})()"""
_TO_ANOTHER_DOCUMENT = """(() => {
  window.frame = document.body.appendChild(document.createElement("iframe"));
  frame.contentDocument.body.append(element);
  return new Promise((done) => setTimeout(done, 400)); // longer than a move within the page takes
})()"""
_STYLED = "frame.contentWindow.getComputedStyle(element.shadowRoot.querySelector('[part=box]')).display === 'grid'"
WITHOUT_WEBRTC = "webkit"  # as Debian builds it
# Engines name what a policy refuses of a worklet differently.
_OF_WORKLETS = {"csp_script_src", "csp_script_src_elem", "csp_worker_src", "sound_unavailable"}


@pytest.mark.parametrize("engine", ["chromium", "firefox", "webkit"])
async def test_policy_lets_the_tag_talk_or_is_told(engine: str, engine_page: ScriptPage) -> None:
    live = "element.session.state === 'live'"
    async with run_fake(transports=(PROXY,)) as server:
        server.extra_headers = {
            "Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Opener-Policy": "same-origin"
        }  # fmt: skip
        socket = server.base_url.replace("http", "ws")

        async def talk_under(policy: str) -> None:
            server.extra_page = (
                "<!doctype html><head>"
                f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; {policy}">'
                '<script type="module" nonce="n1" src="/client/voice-talk.js"></script><voice-talk></voice-talk>'
            )
            await engine_page.goto(f"{server.base_url}/extra")
            await engine_page.wait_for("document.querySelector('voice-talk')?.talk")
            await engine_page.run(_TALK, user_gesture=True)

        # What docs/embed.md says.
        (stated,) = re.findall(r"^```\n(script-src .*)\n```$", EMBED.read_text(), re.MULTILINE)
        stated = stated.replace("wss:B", socket).replace(" https://<resource>.openai.azure.com", "")
        types = "require-trusted-types-for 'script'; trusted-types 'none'"
        await talk_under(re.sub(r"\bB\b", server.base_url, stated) + f"; {types}")
        await engine_page.wait_for(live)
        assert await engine_page.run("codes") == []
        assert engine_page.faults == []
        await engine_page.run(_TO_ANOTHER_DOCUMENT)
        assert await engine_page.run(f"{live} && {_STYLED}")
        # Of an Azure that it does not name the page is told, and the talk takes the broker's socket.
        server.transports, server.azure_url = (DIRECT, PROXY), server.base_url.replace("127.0.0.1", "localhost")
        await engine_page.run(_TALK, user_gesture=True)
        await engine_page.wait_for(f"{live} && element.session.transport === '{PROXY}'")
        assert await engine_page.run("codes") == ([] if engine == WITHOUT_WEBRTC else ["csp_connect_src"])
        # A sign-in on an address that it does not name is no refusal of the policy's.
        server.token_answers = ["redirect"]
        await engine_page.run(_TALK, user_gesture=True)
        await engine_page.wait_for("element.session.state === 'failed'")
        assert await engine_page.run("codes") == ["sign_in_required"]
        server.transports = (PROXY,)
        # Nonces alone, of scripts and styles: no worklet has one, so that a talk may be without its sound, and says so.
        await talk_under(f"script-src 'nonce-n1'; connect-src {server.base_url} {socket}; style-src 'nonce-n1'")
        await engine_page.wait_for(live)
        assert set(await engine_page.run("codes")) <= _OF_WORKLETS
        await engine_page.run("element.session.sendText('Hello')")
        await server.until(lambda: any("item" in event for event in server.partners[-1].from_client))
        # Without the socket's address, the page is told which directive lacks it.
        await talk_under(f"script-src {server.base_url}; connect-src {server.base_url}; style-src 'self'")
        await engine_page.wait_for("codes.includes('csp_connect_src')")


_CODES = re.compile(
    r"(?:[rR]eport|errorWithCode|BrokerError|failure|MicrophoneError|onWarning)\(\s*\"([a-z_]+)\""
    r"|(?:\bcode|reportAs): \"([a-z_]+)\"|\[\"([a-z]+_[a-z_]+)\", \"[A-Z]"
)
# A kind of close that is always reported under a name of its own.
_INTERNAL = {"ended", "refused"}


def test_every_code_is_documented() -> None:
    sources = [path for folder in (".", "audio", "transports") for path in (CLIENT / folder).glob("*.js")]
    shipped = [path.read_text() for path in sources if not path.name.startswith("demo")]
    codes = {code for text in shipped for found in _CODES.findall(text) for code in found if code} - _INTERNAL
    assert len(codes) > 40
    text = EMBED.read_text()
    assert {code for code in codes if f"`{code}`" not in text} == set()
