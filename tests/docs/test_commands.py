"""Every command in the README and in docs/ runs as it is written there, or a reason says why it can't be run here.

They run in a checkout of their own, whose `.venv` is set up already. Only hosts and ports differ.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.sockets import listening_socket

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WAIT_S = 60

# Commands that can't be run here, by a pattern of their beginning, and what checks them instead.
NOT_RUN = {
    r"(?:\w+=\S+ )?az |azd |export .*\baz |\"\$\(az ": "an Azure subscription: "
    "tests/infra/test_deploy_docs.py holds them to the templates",
    r"read_secrets_again|sign_with|regenerate|for VOICE |done$": "they are made of commands for an Azure subscription",
    r"docker |podman ": "a container engine: scripts/container-test runs the image",
    r"open http": "a desktop with a browser: tests/web opens the page",
    r"(?:TEST_LOOP=\S+ )?scripts/(?:check|test|bench)|.*-m pytest": "it is what runs this test, or takes minutes",
    r"python -m benchmarks": "it takes minutes",
    r"scripts/lock": "it needs uv and the package index; the lock's hashes are checked by every installation",
    r"pip install": "it would change the environment that runs this test",
    r"schemathesis |export SCHEMATHESIS": "tests/observability/test_schemathesis.py runs it",
    r"export |unset |[{}]$|git |openssl ": "it prepares the commands after it",
}


def commands(page: Path) -> Iterator[str]:
    """Each command of each shell block, with continued lines joined and comments removed."""
    for block in re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if command := re.sub(r"(?:^|\s+)#.*$", "", line.strip()):
                yield command


ALL = [(page, command) for page in PAGES for command in commands(page)]


@dataclass(frozen=True)
class Demo:
    """A checkout in which `scripts/run` runs the demo."""

    checkout: Path
    port: int
    simulator_port: int

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a shell in that checkout."""
        return {
            "PATH": f"{self.checkout / '.venv/bin'}:{os.environ['PATH']}",
            "HOME": os.environ["HOME"],
            "PYTHONPATH": str(ROOT),
            "PORT": str(self.port),
            "SIMULATOR_PORT": str(self.simulator_port),
        }

    @property
    def operators(self) -> dict[str, str]:
        """The same for an operator, whose Azure is the simulated one."""
        return self.environment | {
            "AZURE_VOICELIVE_ENDPOINT": f"http://127.0.0.1:{self.simulator_port}",
            "AZURE_VOICELIVE_KEY": "simulated-key",
            "AZURE_VOICELIVE_PROJECT_NAME": "demo",
        }

    def here(self, command: str) -> str:
        """The command with the hosts and ports of this demo."""
        url = f"http://127.0.0.1:{self.port}"
        for written in ("http://localhost:8080", "https://voice.example.com", "https://<the broker's URL>"):
            command = command.replace(written, url)
        return command.replace("localhost:8080", f"127.0.0.1:{self.port}")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs the command in bash, as written but for hosts and ports."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(command)],
            cwd=self.checkout, env=self.operators, capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip


def free_port() -> int:
    with listening_socket() as free:
        port: int = free.getsockname()[1]
        return port


def make_checkout(folder: Path) -> Path:
    """The repository's files, with a `.venv` whose stamp says that it is set up."""
    left_out = {".venv", "var", ".env", ".git", "scripts"}
    for entry in ROOT.iterdir():
        if entry.name not in left_out:
            (folder / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    script = folder / ".venv" / "bin" / "token-broker"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{sys.executable}\nfrom token_broker.cli.main import main\nmain(prog_name='token-broker')\n")
    script.chmod(0o755)
    stamp = "cat pyproject.toml requirements-demo.lock requirements-dev.lock | cksum | tr ' ' - >.venv/.installed-dev"
    subprocess.run(["bash", "-c", stamp], cwd=folder, check=True)
    return folder


@contextlib.contextmanager
def running(command: str, demo: Demo, url: str, env: dict[str, str]) -> Iterator[None]:
    """Runs the command, from when `url` answers until the block ends."""
    process = subprocess.Popen(
        shlex.split(command), cwd=demo.checkout, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline_s = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):  # noqa: S310  # loopback
                break
            assert process.poll() is None, f"{command} ended"
            assert time.monotonic() < deadline_s, f"{command} does not answer"
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(WAIT_S)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """What the README's first command starts."""
    if shutil.which("curl") is None:
        pytest.skip("the README's commands need curl")
    demo = Demo(make_checkout(tmp_path_factory.mktemp("checkout")), free_port(), free_port())
    with running("scripts/run", demo, f"http://127.0.0.1:{demo.port}/readyz", demo.environment):
        yield demo


def reason(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


def test_every_command_runs_or_has_its_reason() -> None:
    unknown = [f"{page.name}: {command}" for page, command in ALL if command not in RUN and reason(command) is None]
    assert unknown == []
    assert RUN.keys() <= {command for _, command in ALL}, "a command that is on no page any more"


def test_first_command_starts_the_demo(demo: Demo) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{demo.port}/", timeout=10) as answer:
        assert "Talk" in answer.read().decode()


# What each prints, as a pattern, where its exit code is 0.
RUN = {
    "scripts/run": "",  # the fixture
    """curl -X POST localhost:8080/realtime/token -d '{"agent_id":"elena"}'""": r'"strategy":"ga".*websocket_proxy',
    "scripts/run token --agent elena": r"(?s)ga.*minted",
    "scripts/run doctor": r"(?s)mint ga.*all is well",
    'eval "$(_TOKEN_BROKER_COMPLETE=bash_source token-broker)"': "",
    "scripts/run simulate --port 9100 &": "",  # with the next one
    "curl --retry 9 --retry-connrefused -X PUT localhost:9100/_simulator/faults "
    """-d '[{"match": "/openai/v1", "fault": "hang"}]'""": "",
    "token-broker doctor": r"(?s)mint ga.*all is well",
    "token-broker doctor --connect": r"(?s)talk voice_live.*all is well",
    "token-broker doctor --ping-hooks": r"(?s)hooks .*all is well",
    "token-broker doctor --url https://voice.example.com": r"(?s)url .*all is well",
    "token-broker doctor --url https://<the broker's URL>": r"(?s)url .*all is well",
    "curl --silent https://<the broker's URL>/api/v1/voice/status": r'"voicelive_configured":true',
    "token-broker outbox list": r"0 queued, 0 dead",
    "token-broker outbox retry": r"0 queued again",
    "token-broker export --user ann --out ann.jsonl": r"No session of this user is stored: is it right\?",
    "token-broker forget --user ann": r"0 turns forgotten\n(.*\n)*files: done",
    "token-broker forget --session ID": r"0 turns forgotten",
    "token-broker block --principal easyauth:aad:6f1d0a52-3c1b-4a55-9d5e-0c7f3b8e2d11": (
        r"principal easyauth:aad:6f1d.* (is blocked, everywhere within two seconds|was blocked already)"
    ),
    "token-broker block --session 019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11": r"session 019a.* (is|was) blocked",
    "token-broker block --list": r"\A(\S+Z (principal|session) \S+\n)*\Z",
    "token-broker unblock --session 019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11": (
        r"session 019a.* (is unblocked|was not blocked)"
    ),
}


TOKEN_BROKER = [command for command in RUN if command.startswith("token-broker ")]
OTHERS = [command for command, printed in RUN.items() if printed and command not in TOKEN_BROKER]

RUN_ALL = """
import json, shlex, sys
from click.testing import CliRunner
from token_broker.cli.main import main
runs = [CliRunner().invoke(main, shlex.split(command)[1:]) for command in json.load(sys.stdin)]
print(json.dumps([[run.exit_code, run.output] for run in runs]))
"""


@pytest.fixture(scope="module")
def printed(demo: Demo) -> dict[str, tuple[int, str]]:
    """Exit code and output of each `token-broker` command. One process runs them all: loading one takes a second."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps([demo.here(command) for command in TOKEN_BROKER]),
        cwd=demo.checkout, env=demo.operators, capture_output=True, text=True, timeout=2 * WAIT_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return dict(zip(TOKEN_BROKER, json.loads(ran.stdout), strict=True))


@pytest.mark.parametrize("command", TOKEN_BROKER)
def test_token_broker_prints_what_its_page_says(command: str, printed: dict[str, tuple[int, str]]) -> None:
    exit_code, output = printed[command]
    assert exit_code == 0, output
    assert re.search(RUN[command], output), output


@pytest.mark.parametrize("command", OTHERS)
def test_command_prints_what_its_page_says(command: str, demo: Demo) -> None:
    finished = demo.run(command)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.search(RUN[command], finished.stdout), finished.stdout


def test_plan_in_the_readme_has_real_fields(demo: Demo) -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    sample = json.loads(shown)
    plan = json.loads(demo.run("curl --silent -X POST localhost:8080/realtime/token -d '{}'").stdout)
    assert sample.keys() <= plan.keys()
    for ours, theirs in zip(sample["connections"], plan["connections"], strict=True):
        assert ours["transport"] == theirs["transport"]
        assert ours.keys() <= theirs.keys()


def test_simulator_can_be_told_to_fail(demo: Demo) -> None:
    simulate, fault = [command for command in RUN if "9100" in command]
    port = str(free_port())
    both = f"{fault.replace('9100', port)}; kill -INT %1; wait %1 || true"
    finished = demo.run(f"set -m; {simulate.replace('9100', port)} {both}")
    assert finished.returncode == 0, finished.stderr
    assert "hang" in finished.stdout
