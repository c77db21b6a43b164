"""The page at `/docs`, in a browser: Swagger UI as npm has it, under a policy without inline code."""

import hashlib
import re
from pathlib import Path

from tests.conftest import StartBroker
from tests.web.support.chromium import Browser
from token_broker import web
from token_broker.simulator import RunningSimulator

FILES = Path(web.__file__).with_name("swagger_ui")


def test_files_are_those_of_the_readme() -> None:
    sums = dict(re.findall(r"^\| `(\S+)` \| `([0-9a-f]{64})` \|$", (FILES / "README.md").read_text(), re.MULTILINE))
    assert set(sums) == {"swagger-ui-bundle.js", "swagger-ui.css"}
    assert {name: hashlib.sha256((FILES / name).read_bytes()).hexdigest() for name in sums} == sums


async def test_policy_is_strict_and_files_are_ours(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    page = await broker.client.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    paths = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    assert {(await broker.client.get(path)).status_code for path in paths} == {200}
    assert all(path.startswith("/") for path in paths), "it loads from elsewhere"
    assert (await broker.client.get("/docs/README.md")).status_code == 404


async def test_page_shows_every_operation(
    azure: RunningSimulator, start_broker: StartBroker, quiet_browser: Browser
) -> None:
    broker = await start_broker(azure)
    document = (await broker.client.get("/openapi.json")).json()
    operations = [method for item in document["paths"].values() for method in item if not method.startswith("x-")]
    methods = [method for method in operations if method in {"get", "post", "put", "delete"}]
    async with quiet_browser.page() as page:
        await page.on_every_page(
            "window.violations = [];"
            "addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective))"
        )
        await page.goto(f"{broker.base_url}/docs")
        await page.wait_for(f"document.querySelectorAll('.opblock').length === {len(methods)}")
        assert await page.run("violations") == []
        shown = await page.run("document.querySelector('.info').innerText")
    for path in (path for path, item in document["paths"].items() if "x-websocket" in item):
        assert path in shown
