"""Runs each snippet of docs/clients.md as it is written there, with the broker's address in its environment."""

import json
import re
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

from tests.clients.support.compat import CompatEndpoint, open_compat
from tests.clients.support.offers import make_offer
from tests.clients.support.programs import CLIENTS, ClientRunner, environment, node_command, python_command
from tests.clients.support.setups import QUESTION, TURNS, assert_heard, make_setup
from tests.clients.support.snippets import PAGE, Snippet, of_kind, snippets
from tests.support.broker import plain_client
from tests.support.node import installed_modules
from tests.support.processes import run_program

SPOKEN = f"you: {TURNS[0][1]}\nagent: {TURNS[1][1]}\n2.5 s of audio\n"


in_modules_loop = pytest.mark.asyncio(loop_scope="module")  # the compatible endpoint is the module's


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compat(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> AsyncIterator[CompatEndpoint]:
    async with open_compat("voice_live", tmp_path_factory.mktemp("compat"), authority) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's folder: the snippet's audio, and the installed clients."""
    made = tmp_path / "readers"
    made.mkdir()
    (made / "question.pcm").write_bytes(QUESTION)
    (made / "node_modules").symlink_to(installed_modules(CLIENTS))
    return made


def test_every_snippet_is_run() -> None:
    kinds = [snippet.kind for snippet in snippets()]
    counts = {kind: kinds.count(kind) for kind in kinds}
    # test_dotnet_wire.py speaks as the C# snippets do: no .NET runs here.
    assert counts == {"python": 2, "js": 3, "js browser": 2, "csharp": 2, "sh clients": 1}
    assert all("BROKER_URL" in snippet.code for snippet in snippets())


@in_modules_loop
@of_kind("python", "js")
async def test_program_prints_both_sides_words(
    snippet: Snippet, compat: CompatEndpoint, folder: Path, authority_file: Path
) -> None:
    program = folder / ("program.py" if snippet.kind == "python" else "program.mjs")
    program.write_text(snippet.code)
    command = python_command() if snippet.kind == "python" else node_command()
    env = environment(authority_file, BROKER_URL=compat.http)
    finished = await run_program([*command, str(program)], env=env, cwd=folder)
    assert (finished.out, finished.err, finished.code) == (SPOKEN, "", 0)


@in_modules_loop
@of_kind("sh clients")
async def test_curl_mints_calls_and_hangs_up(
    snippet: Snippet, compat: CompatEndpoint, folder: Path, authority_file: Path
) -> None:
    (folder / "offer.sdp").write_text(await make_offer())
    env = environment(authority_file, BROKER_URL=compat.http)
    finished = await run_program(["bash", "-euo", "pipefail", "-c", snippet.code], env=env, cwd=folder)
    assert (finished.out, finished.err, finished.code) == ("200\n", "", 0)
    assert (folder / "answer.sdp").read_text().startswith("v=0")
    await compat.azure.until_calls(0)


@in_modules_loop
async def test_session_tokens_secret_resumes_session(compat: CompatEndpoint, clients: ClientRunner) -> None:
    assert compat.broker is not None
    plan = await compat.broker.plan()
    async with plain_client(compat.http) as client:
        bearer = {"Authorization": f"Bearer {plan['session_token']}"}
        minted = (await client.post("/v1/realtime/client_secrets", headers=bearer)).raise_for_status().json()
        assert minted["session"]["id"] == plan["session_id"]
        assert_heard(await clients.run("openai_python", make_setup(compat, minted["value"])))
        await compat.turns(minted["value"])
        answer = await client.get(f"/api/v1/memory/sessions/{plan['session_id']}/turns", headers=bearer)
    assert [(turn["role"], turn["content"]) for turn in answer.raise_for_status().json()["turns"]] == TURNS


def test_page_names_the_tested_versions() -> None:
    named = PAGE.read_text().partition("Tested at every change")[2]
    npm = json.loads((CLIENTS / "package.json").read_text())["devDependencies"]
    installed = [npm[name] for name in ("openai", "@openai/agents-realtime", "@azure/ai-voicelive")]
    for full in [*installed, version("openai"), version("azure-ai-voicelive")]:
        assert re.search(rf"\b{re.escape(full.removesuffix('.0'))}\b", named), full
