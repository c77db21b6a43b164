"""Production builds of the packed client: each holds a talk, Vite's in every engine and under the strict policy."""

from pathlib import Path

import pytest

from tests.support.machine import retry_if_host_busy
from tests.web.support.fake_broker import PROXY, run_fake
from tests.web.support.page import ScriptPage, real_faults

STRICT = (
    "default-src 'none'; script-src 'self'; connect-src 'self' ws://BROKER; style-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""What docs/embed.md says that a page needs. Only Vite's own code does with it, of those here."""


@pytest.mark.parametrize(
    ("engine", "bundler"),
    [
        ("chromium", "esbuild"),
        pytest.param("chromium", "vite", marks=pytest.mark.bundlers),
        pytest.param("chromium", "webpack", marks=pytest.mark.bundlers),
        ("firefox", "vite"),
        ("webkit", "vite"),
        pytest.param("chromium", "parcel", marks=pytest.mark.bundlers),
        pytest.param("chromium", "next", marks=pytest.mark.bundlers),
    ],
)
@retry_if_host_busy(tries=3)
async def test_production_build_talks(engine: str, bundler: str, engine_page: ScriptPage, built_page: Path) -> None:
    policy = STRICT if bundler == "vite" else ""
    async with run_fake(transports=(PROXY,), built=built_page, policy=policy) as server:
        await engine_page.goto(f"{server.base_url}/built/index.html")
        await engine_page.wait_for("window.startTalk")
        assert await engine_page.run("startTalk()", user_gesture=True) is True
        await engine_page.wait_for("session.state === 'live'")
        (partner,) = server.partners
        # Both worklets run: sound comes from the microphone, and goes to the loudspeaker.
        await server.until(lambda: partner.heard_s > 0.3)
        await partner.answer_with_tone(seconds=1)
        await engine_page.wait_for("loudest > 0.05")
        await engine_page.run("session.sendText('Hello')")
        await engine_page.wait_for("answers.at(-1) === 'You wrote to me.'")
        assert real_faults(await engine_page.run("complaints")) == []
        await engine_page.run("session.disconnect()")
    assert engine_page.faults == []
