"""Measures what a mint costs, beside a bare aiohttp handler that makes the same upstream call.

    python -m benchmarks.mint [--seconds 5] [--rounds 3]

Five processes: an upstream that answers at once, the broker, a broker whose breakers are all open, the bare handler,
and this one, which makes the load. It measures the three in turn, so that a machine whose speed drifts drifts for all.

With all breakers open a plan asks Azure nothing. It should cost less than the bare handler, which does ask.

Also printed: how long `serve` takes to get ready, and its memory at rest.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tests.support.machine import StolenTime

KEY = "benchmark-key"
BODY = b'{"agent_id":"elena"}'
MINTED = b"ek_0123456789abcdef"
DEGRADED = b'"degraded":true'


@dataclass(frozen=True)
class Round:
    """One stretch of load: requests per second, median latency, and CPU per request of the process that answers."""

    rate: float
    p50_ms: float
    cpu_us: float


def upstream(port: int) -> None:
    """Answers every POST with a fresh secret. A plain protocol, so that it is never the bottleneck."""

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)
            self.buffer = b""

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
                head = self.buffer[:end].lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
                if len(self.buffer) < end + 4 + length:
                    return
                self.buffer = self.buffer[end + 4 + length :]
                content = b'{"value":"ek_0123456789abcdef","expires_at":%d,"session":{}}' % (time.time() + 60)
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(content), content)
                )

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port)
        await server.serve_forever()

    import uvloop

    uvloop.run(main())


def bare(port: int, upstream_port: int) -> None:
    """The peer: reads JSON, posts the same body upstream, answers JSON. It does nothing that the broker is for."""
    import uvloop
    from aiohttp import ClientSession, web

    from strategies.session_model.session_fields import ga_client_secret
    from token_broker.sessions.agents import load_agents
    from token_broker.sessions.plans import session_spec
    from token_broker.settings import Settings

    agent = load_agents().get("elena")
    assert agent is not None
    body = ga_client_secret(session_spec(agent, Settings()))

    url = f"http://127.0.0.1:{upstream_port}/openai/v1/realtime/client_secrets"

    async def main() -> None:
        async with ClientSession() as session:

            async def handle(request: web.Request) -> web.Response:
                json.loads(await request.read())
                async with session.post(url, json=body, headers={"api-key": KEY}) as answer:
                    secret = json.loads(await answer.read())
                return web.json_response({"token": secret["value"], "expires_at": secret["expires_at"]})

            async def ready(request: web.Request) -> web.Response:
                return web.Response(text=request.path)

            application = web.Application()
            application.router.add_post("/realtime/token", handle)
            application.router.add_get("/readyz", ready)
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await asyncio.Event().wait()

    uvloop.run(main())


class Client(asyncio.Protocol):
    """One keep-alive connection that asks again at each answer, until the time is up. Answers contain `expected`."""

    def __init__(self, until_s: float, latencies_s: list[float], expected: bytes) -> None:
        self.expected = expected
        self.until_s = until_s
        self.latencies_s = latencies_s
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.ask()

    def ask(self) -> None:
        self.asked_s = time.perf_counter()
        self.transport.write(
            b"POST /realtime/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
        )

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        if len(self.buffer) < end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        now_s = time.perf_counter()
        if not self.buffer.startswith(b"HTTP/1.1 200") or self.expected not in self.buffer:
            self.done.set_exception(RuntimeError(f"no {self.expected!r} in {self.buffer[:200]!r}"))
            self.transport.close()
            return
        self.latencies_s.append(now_s - self.asked_s)
        self.buffer = b""
        if now_s < self.until_s:
            self.ask()
        else:
            self.transport.close()
            self.done.set_result(None)


async def load(port: int, connections: int, seconds: float, pid: int, expected: bytes = MINTED) -> Round:
    """`connections` clients at once for `seconds`; `pid` is the process that answers with `expected`."""
    latencies_s: list[float] = []
    cpu_before_s, began_s = cpu_seconds(pid), time.perf_counter()
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(began_s + seconds, latencies_s, expected), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), seconds + 20)
    took_s = time.perf_counter() - began_s
    cpu_us = (cpu_seconds(pid) - cpu_before_s) / len(latencies_s) * 1e6
    return Round(len(latencies_s) / took_s, statistics.median(latencies_s) * 1000, cpu_us)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], port: int, path: str, **environment: str) -> Iterator[tuple[int, float]]:
    """Starts a server, waits until it answers, and yields its pid and how long that took."""
    began_s = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1):
                break
            if process.poll() is not None or time.perf_counter() - began_s > 20:
                raise RuntimeError(f"{command} did not start")
            time.sleep(0.005)
        yield process.pid, time.perf_counter() - began_s
    finally:
        process.terminate()
        process.wait(20)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=4)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--role", choices=["upstream", "bare"])
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--upstream-port", type=int, default=0)
    chosen = options.parse_args()
    if chosen.role == "upstream":
        upstream(chosen.port)
        return
    if chosen.role == "bare":
        bare(chosen.port, chosen.upstream_port)
        return
    measure(chosen.seconds, chosen.rounds)


def measure(seconds: float, rounds: int) -> None:
    upstream_port, bare_port, broker_port, open_port = (free_port() for _ in range(4))
    this = [sys.executable, "-m", "benchmarks.mint"]
    broker = str(Path(sys.executable).with_name("token-broker"))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        upstream_process = subprocess.Popen([*this, "--role", "upstream", "--port", str(upstream_port)])
        stack.callback(upstream_process.wait, 20)
        stack.callback(upstream_process.terminate)
        bare_pid, _ = stack.enter_context(
            running(
                [*this, "--role", "bare", "--port", str(bare_port), "--upstream-port", str(upstream_port)],
                bare_port,
                "/readyz",
            )
        )
        environment = {
            "PORT": str(broker_port),
            "AZURE_VOICELIVE_ENDPOINT": f"http://127.0.0.1:{upstream_port}",
            "AZURE_VOICELIVE_KEY": KEY,
            "BROKER_RATE_LIMIT_PER_MINUTE": "0",
            "BROKER_LOG_FORMAT": "json",
            "BROKER_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/broker.db",
        }
        ready_s: list[float] = []
        for _ in range(rounds - 1):
            with running([broker, "serve"], broker_port, "/readyz", **environment) as (_, took_s):
                ready_s.append(took_s)
        broker_pid, took_s = stack.enter_context(running([broker, "serve"], broker_port, "/readyz", **environment))
        ready_s.append(took_s)
        # Nothing listens on port 1, so that each strategy fails at once, and opens its breaker for the whole run.
        failing = {
            "PORT": str(open_port),
            "AZURE_VOICELIVE_ENDPOINT": "http://127.0.0.1:1",
            "BROKER_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/open.db",
            "BROKER_BREAKER_FAILURES": "1",
            "BROKER_BREAKER_OPEN_S": "86400",
        }
        open_pid, _ = stack.enter_context(
            running([broker, "serve"], open_port, "/readyz", **{**environment, **failing})
        )
        open_breakers(open_port)
        time.sleep(1)
        print(f"ready {statistics.median(ready_s):.2f} s after `serve`; {resident_mb(broker_pid):.0f} MB at rest\n")
        print(f"{'connections':>11}  {'':8}{'mints/s':>9}{'p50 ms':>9}{'CPU µs':>9}")
        for connections in (1, 32):
            ours, opens, peers = [], [], []
            for _ in range(rounds):
                ours.append(asyncio.run(load(broker_port, connections, seconds, broker_pid)))
                opens.append(asyncio.run(load(open_port, connections, seconds, open_pid, DEGRADED)))
                peers.append(asyncio.run(load(bare_port, connections, seconds, bare_pid)))
            report(connections, "broker", ours)
            report(connections, "open", opens)
            report(connections, "bare", peers)
            compare("broker/bare", ours, peers)
            compare("open/bare", opens, peers)
            print()


def open_breakers(port: int) -> None:
    """Asks the broker for a plan until every breaker is open."""
    for _ in range(20):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/realtime/token", BODY, timeout=20) as answer:
            answer.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=20) as answer:
            strategies = json.load(answer)["strategies"]
        if all(strategy["breaker"] == "open" for strategy in strategies if strategy["resource"] is not None):
            return
    raise RuntimeError("the breakers do not open")


def compare(title: str, some: list[Round], peers: list[Round]) -> None:
    """Prints the medians of the rate's ratio and of the latency's difference, round by round."""
    rate = statistics.median(one.rate / peer.rate for one, peer in zip(some, peers, strict=True))
    more_ms = statistics.median(one.p50_ms - peer.p50_ms for one, peer in zip(some, peers, strict=True))
    print(f"{'':11}  {title}: {rate:.2f} of the rate, {more_ms:+.2f} ms at the median")


def report(connections: int, name: str, rounds: list[Round]) -> None:
    rate, p50_ms, cpu_us = (
        statistics.median(getattr(a_round, field) for a_round in rounds) for field in ("rate", "p50_ms", "cpu_us")
    )
    print(f"{connections:>11}  {name:8}{rate:>9.0f}{p50_ms:>9.2f}{cpu_us:>9.0f}")


if __name__ == "__main__":
    stolen = StolenTime()
    main()
    stolen.tell()
