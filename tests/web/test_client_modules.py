"""The browser client without a browser: its own tests in Node, and what of it is shipped."""

import json
import re
from pathlib import Path

from tests.support.node import run_node

TOOLS = Path(__file__).parent
CLIENT = TOOLS.parents[1] / "web_client"


async def test_unit_tests_pass_in_node(tmp_path: Path) -> None:
    all_tests = tmp_path / "all.mjs"  # one process: `node --test` would start one for each file
    all_tests.write_text("".join(f'import "{file}";\n' for file in sorted((CLIENT / "test").glob("*.test.js"))))
    quiet = "--disable-warning=ExperimentalWarning"  # Node 20 says so of the timers that tests move
    output = await run_node(quiet, "--test-reporter=tap", all_tests, cwd=TOOLS)
    passed = re.search(r"^# pass (\d+)$", output, re.MULTILINE)
    assert passed
    assert int(passed[1]) > 150


async def test_package_is_imported_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "voice-session").symlink_to(CLIENT)
    script = tmp_path / "page.mjs"
    script.write_text(
        'import { VoiceSession } from "voice-session";\nimport { Broker } from "voice-session/broker";\n'
        'const session = new VoiceSession({ brokerUrl: "https://voice.example" });\n'
        "console.log(JSON.stringify([session.state, session.transport, session.sessionId, typeof Broker]));\n"
    )
    assert json.loads(await run_node(script, cwd=TOOLS)) == ["idle", None, None, "function"]
