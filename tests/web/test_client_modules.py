"""The browser client without a browser: its own tests in Node, its types, and what of it is shipped."""

import json
import re
from pathlib import Path

from tests.web.support.node import CLIENT, installed_tools, run_node


async def test_the_clients_own_tests_pass_in_node() -> None:
    tests = sorted((CLIENT / "test").glob("*.test.js"))
    output = await run_node("--test", "--test-reporter=tap", *tests)
    passed = re.search(r"^# pass (\d+)$", output, re.MULTILINE)
    assert passed
    assert int(passed[1]) > 150


async def test_the_client_type_checks_strictly() -> None:
    await run_node(installed_tools() / "typescript" / "bin" / "tsc", "-p", CLIENT / "tsconfig.json", "--noEmit")


async def test_the_shipped_types_are_those_of_the_sources(tmp_path: Path) -> None:
    tsc = installed_tools() / "typescript" / "bin" / "tsc"
    await run_node(tsc, "-p", CLIENT / "tsconfig.json", "--outDir", tmp_path)

    def texts(folder: Path) -> dict[str, str]:
        return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*.d.ts")}

    assert texts(tmp_path) == texts(CLIENT / "types"), "run: npm --prefix tests/web run types"


async def test_the_package_can_be_imported_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "voice-session").symlink_to(CLIENT)
    script = tmp_path / "page.mjs"
    script.write_text(
        'import { VoiceSession } from "voice-session";\nimport { Broker } from "voice-session/broker";\n'
        'const session = new VoiceSession({ brokerUrl: "https://voice.example" });\n'
        "console.log(JSON.stringify([session.state, session.transport, session.sessionId, typeof Broker]));\n"
    )
    assert json.loads(await run_node(script)) == ["idle", None, None, "function"]


def test_the_package_names_only_files_that_are_there() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    named = [
        path
        for entry in package["exports"].values()
        for path in ([entry] if isinstance(entry, str) else entry.values())
    ]
    assert named
    assert [path for path in named if "*" not in path and not (CLIENT / path).is_file()] == []
    assert "dependencies" not in package
