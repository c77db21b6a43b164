"""A day in the life of the container, driven from outside: what `container-test` runs once the image is built.

The image's own configuration is turned into an OCI bundle (read-only root, its user, no capabilities, one writable
volume) and started with crun; the simulated Azure runs here, from the checkout. Every step prints a line; the first
that fails ends it with exit code 1.
"""
# ruff: noqa: INP001, PLR2004, S603, T201  # a script: it prints, starts what it was given, and compares HTTP statuses

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

VOLUME = "/var/lib/token-broker"
READY_AIM_S = 2.0
STARTS = 3  # the best of them is the image's; the others are the machine's
LAYERS_AIM_BYTES = 120_000_000
DRAIN_S = 6
STEP_TIMEOUT_S = 20
SIMULATOR_KEY = "simulated-key"
# A dependency that only the development lock brings shows here.
IMPORT_EVERYTHING = """
import importlib, pkgutil, strategies, token_broker
packages = (token_broker, strategies)
names = [m.name for package in packages for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if ".migrations" not in name:
        importlib.import_module(name)
import asyncpg, sqlalchemy.ext.asyncio
print(len(names), "modules", end="")
"""
# crun refuses a machine that mounts both versions of cgroups; there it is shown the second alone.
CGROUPS_V2 = (
    ["unshare", "--mount", "sh", "-c", 'umount -R "$0" && mount -t cgroup2 none "$0" && exec "$@"', "/sys/fs/cgroup"]
    if Path("/sys/fs/cgroup/unified").is_dir()
    else []
)


class StepError(AssertionError):
    """A step did not go as the container promises."""


@dataclass(frozen=True)
class Image:
    """What the exported image says of itself."""

    config: dict[str, Any]
    compressed_bytes: list[int]
    plain_bytes: list[int]

    @classmethod
    def read(cls, directory: Path) -> "Image":
        manifest = json.loads((directory / "manifest.json").read_text())
        layers = [directory / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]
        config = directory / manifest["config"]["digest"].removeprefix("sha256:")
        return cls(
            config=json.loads(config.read_text())["config"],
            compressed_bytes=[path.stat().st_size for path in layers],
            plain_bytes=[_plain_size(path) for path in layers],
        )


def _plain_size(path: Path) -> int:
    with gzip.open(path) as layer:
        return sum(len(block) for block in iter(lambda: layer.read(1 << 20), b""))


def check(condition: object, what: str) -> None:
    """Prints the step, or ends the run with it."""
    if not condition:
        raise StepError(what)
    print(f"  ok  {what}", flush=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# --- the container


@dataclass
class Container:
    """A container of the image, under crun, sharing this machine's network."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    crun: list[str]
    log: Path

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pid(self) -> int:
        state = subprocess.run([*self.crun, "state", self.name], check=True, capture_output=True)
        pid: int = json.loads(state.stdout)["pid"]
        return pid

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as the container's user."""
        return subprocess.run(
            [*self.crun, "exec", self.name, *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT_S,
        )

    def terminate(self) -> None:
        os.kill(self.pid(), signal.SIGTERM)


def bundle(image: Image, rootfs: Path, volume: Path, environment: dict[str, str], *, args: list[str]) -> dict[str, Any]:
    """An OCI runtime configuration that adds nothing to the image but a name server and a volume."""
    user, _, group = image.config["User"].partition(":")
    own = dict(line.split("=", 1) for line in image.config["Env"])
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": int(user), "gid": int(group)},
            "args": args or [*image.config["Entrypoint"], *image.config["Cmd"]],
            "env": [f"{name}={value}" for name, value in {**own, **environment}.items()],
            "cwd": image.config["WorkingDir"],
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": VOLUME, "type": "bind", "source": str(volume), "options": ["rbind", "rw"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
    }


@contextlib.contextmanager
def started(image: Image, rootfs: Path, state: Path, environment: dict[str, str], port: int) -> Iterator[Container]:
    volume = state / "volume"
    shutil.rmtree(state, ignore_errors=True)
    volume.mkdir(parents=True)
    os.chown(volume, 10001, 10001)
    volume.chmod(0o700)
    (state / "config.json").write_text(json.dumps(bundle(image, rootfs, volume, environment, args=[])))
    crun = [*CGROUPS_V2, "crun", f"--root={state / 'crun'}", "--cgroup-manager=disabled"]
    name = f"token-broker-{uuid.uuid4().hex[:8]}"
    log = state / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([*crun, "run", "--bundle", str(state), name], stdout=output, stderr=output)
        try:
            yield Container(name, process, port, crun, log)
        finally:
            subprocess.run([*crun, "delete", "--force", name], check=False, capture_output=True)
            process.wait(timeout=STEP_TIMEOUT_S)


# --- the simulated Azure


@contextlib.contextmanager
def simulated_azure(broker: str) -> Iterator[str]:
    """`token-broker simulate` from the checkout; yields its base URL."""
    port = free_port()
    process = subprocess.Popen(
        [broker, "simulate", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        line = process.stderr.readline().decode() if process.stderr else ""
        if "SIMULATED" not in line:
            raise StepError(f"the simulated Azure did not start: {line}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=STEP_TIMEOUT_S)


# --- HTTP


def request(
    method: str, url: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer, whatever the status."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(  # noqa: S310  # http on loopback
        url, data=data, method=method, headers={"Content-Type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(asked, timeout=STEP_TIMEOUT_S) as answer:  # noqa: S310  # as above
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text[:1] == b"{" else {}


def until_ready(container: Container, since: float) -> float:
    """Seconds from `since` until /readyz says so."""
    while time.monotonic() - since < STEP_TIMEOUT_S:
        if container.process.poll() is not None:
            break
        try:
            if request("GET", f"{container.base_url}/readyz")[0] == 200:
                return time.monotonic() - since
        except OSError:
            pass
        time.sleep(0.01)
    raise StepError(f"the container is not ready; its log says:\n{container.log.read_text()}")


# --- the steps


def check_confinement(container: Container, image: Image) -> None:
    status = Path(f"/proc/{container.pid()}/status").read_text()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    check(set(fields["Uid"] + fields["Gid"]) == {"10001"}, "runs as user and group 10001")
    check(int(fields["CapEff"][0], 16) == 0 and fields["NoNewPrivs"] == ["1"], "has no capability and can gain none")
    for path in ("/opt/app/x", "/tmp/x", "/etc/x"):  # noqa: S108  # a path inside
        attempt = container.execute("python", "-c", f"open({path!r}, 'w')")
        check(attempt.returncode != 0, f"cannot write {path}")
    check(container.execute("python", "-m", "pip").returncode != 0, "has no pip")
    check(container.execute("python", "-c", "import token_broker.simulator").returncode != 0, "has no simulator")
    imported = container.execute("python", "-c", IMPORT_EVERYTHING)
    check(imported.returncode == 0, f"every module's dependencies are there: {imported.stdout or imported.stderr}")
    tracing = container.execute(
        "python", "-c", "import opentelemetry.exporter.otlp.proto.http, opentelemetry.sdk.trace"
    )
    check(tracing.returncode == 0, "can send traces")
    kind, *health = image.config["Healthcheck"]["Test"]
    check(kind == "CMD" and container.execute(*health).returncode == 0, "its own health check passes")


def mint(container: Container) -> dict[str, Any]:
    status, plan = request("POST", f"{container.base_url}/api/v1/voice/realtime/token", {"agent_id": "elena"})
    if status != 200:
        raise StepError(f"a token request was answered {status}: {plan}")
    return plan


def check_mint(container: Container) -> dict[str, Any]:
    plan = mint(container)
    check(not plan["degraded"] and plan["token"].startswith("ek_"), f"mints against Azure by {plan['strategy']}")
    check(plan["connections"][-1]["transport"] == "websocket_proxy", "the plan ends with the proxy")
    return plan


@contextlib.asynccontextmanager
async def talk(plan: dict[str, Any]) -> AsyncIterator[ClientConnection]:
    """The plan's proxied talk, after `broker.ready`."""
    proxy = plan["connections"][-1]
    protocols = [Subprotocol(name) for name in proxy["protocols"]]
    async with connect(proxy["url"], subprotocols=protocols, max_size=1 << 20) as socket_:
        await until(socket_, "broker.ready")
        yield socket_


async def until(socket_: ClientConnection, kind: str) -> dict[str, Any]:
    """The next event of that type."""
    async with asyncio.timeout(STEP_TIMEOUT_S):
        while True:
            event: dict[str, Any] = json.loads(await socket_.recv())
            if event["type"] == kind:
                return event


async def speak(socket_: ClientConnection) -> None:
    """Types a sentence and waits for the whole answer."""
    content = [{"type": "input_text", "text": "Hello"}]
    item = {"type": "message", "role": "user", "content": content}
    await socket_.send(json.dumps({"type": "conversation.item.create", "item": item}))
    await socket_.send(json.dumps({"type": "response.create"}))
    done = await until(socket_, "response.done")
    check(done["response"]["status"] == "completed", "a proxied talk is held: said and answered")


def check_turns(container: Container, plan: dict[str, Any]) -> None:
    bearer = {"Authorization": f"Bearer {plan['session_token']}"}
    turn = {
        "session_id": plan["session_id"],
        "agent_id": plan["agent_id"],
        "role": "user",
        "content": "Remember me",
        "turn_id": "container-test",
    }
    status, stored = request("POST", f"{container.base_url}/api/v1/voice/conversation/turn", turn, bearer)
    check(status == 200 and not stored["duplicate"], "stores a turn")
    status, again = request("POST", f"{container.base_url}/api/v1/voice/conversation/turn", turn, bearer)
    check(status == 200 and again["duplicate"], "stores it once")
    url = f"{container.base_url}/api/v1/memory/sessions/{plan['session_id']}/turns?limit=100"
    status, kept = request("GET", url, headers=bearer)
    texts = [item["content"] for item in kept.get("turns", [])]
    check("Remember me" in texts, f"keeps it, with the proxied talk's own: {len(texts)} turns")


async def check_drain(container: Container) -> None:
    """SIGTERM in mid-talk: not ready, newcomers sent away, the talk goes on until the drain ends, exit code 0."""
    plan, late = mint(container), mint(container)
    async with talk(plan) as socket_:
        began = time.monotonic()
        container.terminate()
        await asyncio.sleep(0.5)
        check(request("GET", f"{container.base_url}/readyz")[0] == 503, "on SIGTERM it is no longer ready")
        check(request("GET", f"{container.base_url}/healthz")[0] == 200, "but alive")
        check(await closed_with(late) == 4503, "a newcomer is asked to go elsewhere (4503)")
        await speak(socket_)
        async with asyncio.timeout(STEP_TIMEOUT_S):
            await socket_.wait_closed()
        check(socket_.close_code == 4503, "at the drain's end the talk is asked to move on (4503)")
    code = await asyncio.to_thread(container.process.wait, STEP_TIMEOUT_S)
    took_s = time.monotonic() - began
    check(code == 0 and took_s < DRAIN_S + 10, f"it exits with 0, {took_s:.1f} s after SIGTERM (drain {DRAIN_S} s)")


async def closed_with(plan: dict[str, Any]) -> int:
    """The close code that a talk on this plan gets."""
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S), talk(plan):
            return 0
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 0


def check_size(image: Image) -> None:
    added, packed = sum(image.plain_bytes[1:]), sum(image.compressed_bytes[1:])
    check(
        added < LAYERS_AIM_BYTES,
        f"our layers are {added / 1e6:.0f} MB ({packed / 1e6:.0f} MB compressed), "
        f"on a base of {image.plain_bytes[0] / 1e6:.0f} MB",
    )
    labels = image.config["Labels"]
    said = {name: labels[f"org.opencontainers.image.{name}"] for name in ("version", "revision")}
    check(all(said.values()), f"labels: version {said['version']}, revision {said['revision'][:12]}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True, help="the image, exported as a directory")
    parser.add_argument("--rootfs", type=Path, required=True, help="the image's root, mounted")
    parser.add_argument("--broker", required=True, help="token-broker of the checkout, for the simulated Azure")
    parser.add_argument("--state", type=Path, required=True, help="directory for the bundle, the volume and the log")
    given = parser.parse_args()
    image = Image.read(given.image)
    check_size(image)
    with simulated_azure(given.broker) as azure:
        port = free_port()
        environment = {
            "PORT": str(port),
            "AZURE_VOICELIVE_ENDPOINT": azure,
            "AZURE_VOICELIVE_KEY": SIMULATOR_KEY,
            "BROKER_DRAIN_S": str(DRAIN_S),
        }
        starts_s = []
        for _ in range(STARTS):
            began = time.monotonic()
            with started(image, given.rootfs, given.state, environment, port) as container:
                starts_s.append(until_ready(container, began))
        check(min(starts_s) < READY_AIM_S, f"ready {min(starts_s):.2f} s after its start, the best of {STARTS}")
        with started(image, given.rootfs, given.state, environment, port) as container:
            until_ready(container, time.monotonic())
            check_confinement(container, image)
            plan = check_mint(container)
            async with talk(plan) as socket_:
                await speak(socket_)
            check_turns(container, plan)
            await check_drain(container)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except StepError as failed:
        print(f"FAIL  {failed}", file=sys.stderr)
        sys.exit(1)
