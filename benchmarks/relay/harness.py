"""Starts the parts of a run as processes of their own, and reads what they used."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from pydantic import SecretStr

from token_broker.security.tokens import Owner, TokenSigner
from token_broker.web.requests import uuid7

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
SIGNING_KEY = "benchmark-" * 4
_TICKS = os.sysconf("SC_CLK_TCK")

NGINX_CONF = """
daemon off; master_process off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass {upstream}; proxy_http_version 1.1; proxy_ssl_verify off; proxy_read_timeout 600s;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "Upgrade"; proxy_set_header Host localhost;
    }}
  }}
}}
"""

_SERVE = ("-c", "from token_broker.cli.main import main; main(['serve'])")

Target = dict[str, Any]


@dataclass(frozen=True)
class Proxy:
    """Something that relays WebSockets, by its process."""

    name: str
    pid: int
    port: int

    def targets(self, count: int) -> list[Target]:
        """Where and how so many talks connect; the broker wants a ticket for each."""
        if self.name == "nginx":
            return [{"url": f"ws://127.0.0.1:{self.port}/voice-live/realtime", "protocols": []}] * count
        signer = TokenSigner([SecretStr(SIGNING_KEY)])
        return [_ticketed(signer, self.port) for _ in range(count)]

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def resident_kb(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise RuntimeError("no VmRSS")


def _ticketed(signer: TokenSigner, port: int) -> Target:
    session = uuid7()
    ticket = signer.ticket(Owner(session, "anonymous", 1), agent_id="elena", ttl_s=600)
    return {
        "url": f"ws://127.0.0.1:{port}/api/v1/voice/voicelive/{session}",
        "protocols": ["realtime", f"ticket.{ticket}"],
    }


@contextlib.contextmanager
def process(*command: str, **options: Any) -> "Iterator[subprocess.Popen[str]]":
    running = subprocess.Popen(command, text=True, **options)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        for pipe in (running.stdin, running.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def azure(directory: Path, *, tls: bool = False) -> Iterator[str]:
    """The echoing Azure; its base URL. With `tls`, `directory` gets the CA that signed its certificate."""
    arguments: list[str] = []
    if tls:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        certificate = authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
        certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
        arguments = [str(directory / "cert.pem"), str(directory / "key.pem")]
    with process(sys.executable, "-m", "benchmarks.relay.azure", *arguments, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        port = int(running.stdout.readline())
        yield f"{'https' if tls else 'http'}://localhost:{port}"


@contextlib.contextmanager
def broker(directory: Path, azure_url: str, *, command: tuple[str, ...] = _SERVE, **settings: str) -> Iterator[Proxy]:
    """The broker as it is served, with limits off; `settings` are variables beside."""
    port = _free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "AZURE_"))},
        "PORT": str(port),
        "AZURE_VOICELIVE_ENDPOINT": azure_url,
        "AZURE_VOICELIVE_KEY": "benchmark",
        "AZURE_VOICELIVE_AUTH": "key",
        "BROKER_SIGNING_KEY": SIGNING_KEY,
        "BROKER_DATABASE_URL": f"sqlite+aiosqlite:///{directory}/broker.db",
        "BROKER_MAX_SESSIONS": "0",
        "BROKER_MAX_SESSIONS_PER_PRINCIPAL": "0",
        # A ping-pong is no talk: thousands of frames a second. Counted all the same, as they are in a talk.
        "BROKER_FRAMES_PER_SECOND": "1000000",
        "BROKER_CONTROL_FRAMES_PER_SECOND": "1000000",
        "BROKER_LOG_LEVEL": "error",
        **settings,
    }
    if (directory / "ca.pem").exists():
        environment["SSL_CERT_FILE"] = str(directory / "ca.pem")
    with process(
        sys.executable, *command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        _wait_for(port)
        yield Proxy("broker", running.pid, port)


@contextlib.contextmanager
def nginx(directory: Path, azure_url: str) -> Iterator[Proxy]:
    port = _free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX_CONF.format(dir=directory, port=port, upstream=azure_url))
    with process(NGINX, "-p", str(directory), "-c", str(configuration)) as running:
        _wait_for(port)
        yield Proxy("nginx", running.pid, port)


@contextlib.contextmanager
def brokers(directory: Path, azure_url: str, count: int) -> Iterator[list[Proxy]]:
    """So many brokers, each with a store of its own: SQLite is one process's."""
    with contextlib.ExitStack() as stack:
        running = []
        for number in range(count):
            own = directory / f"broker-{number}"
            own.mkdir()
            running.append(stack.enter_context(broker(own, azure_url)))
        yield running


@dataclass(frozen=True)
class Result:
    """What came back. `latencies` counts frames by the microseconds that they took there and back."""

    round_trips: int
    lost: int
    seconds: float
    latencies: Counter[int]

    def ms(self, share: float) -> float:
        """The percentile of the way there and back, in milliseconds."""
        left = self.latencies.total() * share / 100
        for value, count in sorted(self.latencies.items()):
            left -= count
            if left <= 0:
                return value / 1000
        return float("nan")


class Load:
    """Processes that are connected and wait; `measure` lets them go, all at once."""

    def __init__(self, processes: "list[subprocess.Popen[str]]") -> None:
        self._processes = processes

    def measure(self) -> Result:
        for running in self._processes:
            _write(running, "")
        results = [json.loads(_line(running)) for running in self._processes]
        latencies: Counter[int] = Counter()
        for result in results:
            latencies.update({int(value): count for value, count in result["latencies"].items()})
        return Result(
            round_trips=sum(result["round_trips"] for result in results),
            lost=sum(result["lost"] for result in results),
            seconds=max(result["seconds"] for result in results),
            latencies=latencies,
        )


@contextlib.contextmanager
def load(
    targets: list[Target], *, frame_bytes: int, seconds: float, rate: int = 0, processes: int = 1, flood: bool = False
) -> Iterator[Load]:
    """The load, connected and waiting, over so many processes."""
    command = (sys.executable, "-m", "benchmarks.relay.load")
    with contextlib.ExitStack() as stack:
        started = []
        for share in range(processes):
            running = stack.enter_context(process(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            job = {
                "targets": targets[share::processes],
                "frame_bytes": frame_bytes,
                "seconds": seconds,
                "rate": rate,
                "share": share,
                "shares": processes,
                "flood": flood,
            }
            _write(running, json.dumps(job))
            started.append(running)
        for running in started:
            assert _line(running) == "connected"
        yield Load(started)


def _write(running: "subprocess.Popen[str]", line: str) -> None:
    assert running.stdin is not None
    running.stdin.write(line + "\n")
    running.stdin.flush()


def _line(running: "subprocess.Popen[str]") -> str:
    assert running.stdout is not None
    return running.stdout.readline().rstrip("\n")


def need_nginx() -> None:
    if not Path(NGINX).exists():
        sys.exit("nginx is not installed here, and it is what this benchmark compares with: install it, and run again.")


def table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
