"""Sign-in as docs/embed.md has it: Microsoft's own library in a page, a tenant on loopback, the broker that checks."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.security.fakes import AUDIENCE, TENANT
from tests.support.broker import make_settings, run_broker
from tests.support.node import installed_modules, run_node
from tests.support.serving import serve_app
from tests.support.tls import tls_files
from tests.web.support.chromium import Browser, run_chromium
from tests.web.support.entra import CLIENT_ID, SignInTenant
from token_broker.simulator.server import serve

TOOLS = Path(__file__).parent / "sign_in"
EMBED = Path(__file__).parents[2] / "docs" / "embed.md"
PAGE = """
window.codes = [];
document.querySelector("voice-talk").addEventListener("error", ({ detail }) => codes.push(detail.code));
"""
BUILD = """
import { build } from "ESBUILD";
await build({
  ...{ entryPoints: ["page.js", "signed-in.js"], outdir: "out", bundle: true, format: "esm", target: "es2022" },
  ...{ logLevel: "error", nodePaths: ["MODULES"] },
});
"""


async def build_pages(folder: Path) -> dict[str, tuple[str, str]]:
    """The recipe's files with the ids of a tenant filled in, bundled; by path, the media type and the text."""
    text = EMBED.read_text()
    recipe, use = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    *_, landing = re.findall(r"```html\n(.*?)```", text, re.DOTALL)
    for blank, value in (
        ("<page's client id>", CLIENT_ID),
        ("<tenant id>", TENANT),
        ("api://<broker's app>", AUDIENCE),
    ):
        assert blank in recipe
        recipe = recipe.replace(blank, value)
    (inline,) = re.findall(r"<script type=\"module\">(.*?)</script>", landing, re.DOTALL)
    modules = installed_modules(TOOLS)
    build = BUILD.replace("ESBUILD", (modules / "esbuild/lib/main.js").as_uri()).replace("MODULES", str(modules))
    for name, source in (
        ("sign-in.js", recipe),
        ("page.js", use + PAGE),
        ("signed-in.js", inline),
        ("build.mjs", build),
    ):
        (folder / name).write_text(source)
    await run_node(folder / "build.mjs", cwd=folder)
    bundled = {f"/{path.name}": ("text/javascript", path.read_text()) for path in (folder / "out").glob("*.js")}
    linked = landing.replace(f'<script type="module">{inline}', '<script type="module" src="/signed-in.js">')
    return {**bundled, "/signed-in.html": ("text/html", linked)}


@asynccontextmanager
async def serve_files(files: dict[str, tuple[str, str]]) -> AsyncIterator[str]:
    async def answer(request: Request) -> Response:
        media_type, text = files.get(request.url.path, ("text/html", ""))
        return Response(text, 200 if text else 404, media_type=media_type)

    async with serve_app(Starlette(routes=[Route("/{path:path}", answer)])) as base_url:
        yield base_url


async def test_msal_recipe_signs_in_and_renews(tmp_path: Path, silent_microphone: Path) -> None:
    tenant = SignInTenant(expired=1)
    files = await build_pages(tmp_path)
    tls = tls_files(trustme.CA(), tmp_path, "login.microsoftonline.com")
    async with (
        serve_files(files) as page_url,
        serve_app(tenant.app) as keys_url,
        serve_app(tenant.app, ssl_certfile=str(tls.certificate), ssl_keyfile=str(tls.key)) as entra_url,
        serve() as azure,
    ):
        settings = make_settings(
            tmp_path, azure.base_url, allowed_origins=(page_url,), metrics_token="m" * 32, **tenant.settings(keys_url)
        )
        host = entra_url.removeprefix("http://")
        async with run_broker(settings) as broker:
            tag = f'<voice-talk broker="{broker.base_url}" transports="websocket_proxy"></voice-talk>'
            scripts = f'<script type="module" src="{broker.base_url}/client/voice-talk.js"></script>'
            page_of = f'<!doctype html>{scripts}{tag}<script type="module" src="/page.js"></script>'
            files["/"] = ("text/html", page_of)
            refused = await broker.client.post("/realtime/token", json={})
            assert refused.status_code == 401
            with run_chromium(
                silent_microphone, trusting=True, hosts=f"MAP login.microsoftonline.com:443 {host}"
            ) as url:
                async with Browser.connect(url) as browser, browser.page() as page:
                    await page.goto(page_url)
                    await page.wait_for("window.codes && document.querySelector('voice-talk').talk")
                    await page.run(
                        "document.querySelector('voice-talk').talk().catch(() => undefined)", user_gesture=True
                    )
                    await page.wait_for(
                        "codes.length > 0 || document.querySelector('voice-talk').session?.state === 'live'", 60
                    )
                    assert await page.run("codes") == [], page.complaints
                    # The first token was not taken; the library renewed it without the user.
                    assert tenant.asked == ["authorization_code", "refresh_token"]
