"""Runs a simulator: in the caller's event loop (`serve`) or in a thread with one of its own (`run_in_thread`)."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from token_broker.simulator.config import SimulatorConfig
from token_broker.simulator.faults.fault_table import FaultTable, RefuseFault, parse_faults
from token_broker.simulator.raw_wire import HttpProtocol, WebSocketProtocol
from token_broker.simulator.records.request_log import SeenRequest
from token_broker.simulator.records.transcript import TalkTranscript
from token_broker.simulator.simulator import Simulator

# The largest append that Azure takes, 15 MiB of audio (docs/azure.md §8.2), in base64 and JSON.
_MAX_MESSAGE_BYTES = 21 * 1024 * 1024
# Azure's front keeps idle connections; uvicorn's 5 s would make clients meet closed ones.
_KEEP_ALIVE_S = 75
_START_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunningSimulator:
    """A simulator that listens at `base_url`, and the handles a test needs. Safe to use from other threads."""

    base_url: str
    simulator: Simulator

    @property
    def name(self) -> str:
        return self.simulator.resource.name

    @property
    def url(self) -> str:
        return self.base_url

    @property
    def websocket_url(self) -> str:
        return "ws" + self.base_url.removeprefix("http")

    @property
    def transcript(self) -> TalkTranscript:
        """What the talks said, of all resources of the process."""
        return self.simulator.resource.transcript

    @property
    def requests(self) -> list[SeenRequest]:
        """What it saw so far, oldest first."""
        return self.simulator.log.entries()

    @property
    def running(self) -> int:
        """Requests and WebSockets that have not ended."""
        return self.simulator.running

    @property
    def calls(self) -> int:
        """WebRTC calls that have not ended."""
        return self.simulator.calls

    async def until(self, running: int, timeout_s: float = 20.0) -> None:
        """Waits until exactly so many requests and WebSockets are running; only in the simulator's own event loop.

        Raises:
            TimeoutError: there were never exactly so many in that time.

        """
        async with asyncio.timeout(timeout_s):
            await self.simulator.until(running)

    async def until_calls(self, count: int, timeout_s: float = 20.0) -> None:
        """As `until`, for WebRTC calls."""
        async with asyncio.timeout(timeout_s):
            await self.simulator.until_calls(count)

    def set_faults(self, *faults: dict[str, Any]) -> None:
        """As `PUT /_simulator/faults`: these and no others. With none, nothing fails."""
        self.simulator.faults.replace(parse_faults(list(faults)))

    def script_responses(self, *responses: dict[str, Any]) -> None:
        """As `PUT /_simulator/responses`: what the next responses are to be, in place of those that wait."""
        self.simulator.resource.scripted.replace(list(responses))

    @contextlib.contextmanager
    def fault(self, name: str, match: str = "/", **options: Any) -> Iterator[None]:
        """Within the block a fault is set, ahead of any other: `with azure.fault("hang", "/openai/v1"):`."""
        (fault,) = parse_faults([{"match": match, "fault": name, **options}])
        self.simulator.faults.add(fault)
        try:
            yield
        finally:
            self.simulator.faults.remove(fault)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of a PEM certificate chain and its private key."""

    certificate: Path
    key: Path


@contextlib.asynccontextmanager
async def serve(
    config: SimulatorConfig | None = None, host: str = "127.0.0.1", port: int = 0, *, tls: TlsFiles | None = None
) -> AsyncIterator[RunningSimulator]:
    """Serves a simulator in this event loop until the block ends; `port` 0 takes any free one.

    Raises:
        OSError: the port is taken.

    """
    async with serve_simulator(Simulator(config or SimulatorConfig()), host, port, tls=tls) as running:
        yield running


@contextlib.asynccontextmanager
async def serve_simulator(
    simulator: Simulator, host: str = "127.0.0.1", port: int = 0, *, tls: TlsFiles | None = None
) -> AsyncIterator[RunningSimulator]:
    """As `serve`, for a simulator that was made already."""
    # The second is bound and never listens: it keeps the port ours while connections are refused.
    with _bind(host, port) as listener, _bind(host, listener.getsockname()[1]):
        address = listener.getsockname()[:2]
        server = _SimulatorServer(
            uvicorn.Config(
                simulator,
                http=HttpProtocol,
                ws=WebSocketProtocol,
                ws_max_size=_MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,
                lifespan="off",
                interface="asgi3",
                # The loop and the log belong to the process that the simulator runs in.
                loop="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                # Both are set by the simulator: its clock may be off, and Azure names no server.
                date_header=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=2,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
            ),
            address,
            simulator.faults,
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="simulator")
        try:
            async with asyncio.timeout(_START_S):
                await server.listening.wait()
            scheme = "https" if tls else "http"
            simulator.base_url = f"{scheme}://{host}:{address[1]}"
            yield RunningSimulator(simulator.base_url, simulator)
        finally:
            await simulator.stop()
            server.stop()
            await serving


@contextlib.contextmanager
def run_in_thread(
    config: SimulatorConfig | None = None, host: str = "127.0.0.1", port: int = 0, *, tls: TlsFiles | None = None
) -> Iterator[RunningSimulator]:
    """As `serve`, for callers without an event loop, or with one that must not carry the simulator's work."""
    with in_thread(lambda: serve(config, host, port, tls=tls)) as running:
        yield running


@contextlib.contextmanager
def in_thread(enter: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Holds an asynchronous context in a thread with an event loop of its own."""
    ready: Future[tuple[T, Callable[[], object]]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with enter() as running:
            ready.set_result((running, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    # A daemon: a test that dies inside the block must not keep the process alive.
    thread = threading.Thread(target=run, name="simulator", daemon=True)
    thread.start()
    running, stop = ready.result(_START_S)
    try:
        yield running
    finally:
        stop()
        thread.join()


def _bind(host: str, port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only for sockets that name TCP as protocol; with it each answer takes 40 ms.
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


async def shut_down(server: uvicorn.Server, sockets: Sequence[socket.socket]) -> None:
    """`uvicorn.Server.shutdown`, which would also sleep for 100 ms where no connection is open."""
    for listening in server.servers:
        listening.close()
    for listener in sockets:
        listener.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    try:
        async with asyncio.timeout(server.config.timeout_graceful_shutdown):
            state = server.server_state
            while state.connections or state.tasks:  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.002)
            for listening in server.servers:
                await listening.wait_closed()
    except TimeoutError:
        for task in server.server_state.tasks:
            task.cancel()
    await server.lifespan.shutdown()


class EmbeddedServer(uvicorn.Server):
    """uvicorn inside another process: it tells when it listens, leaves signals alone, and stops at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Has `serve` close what is open, and end."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """As uvicorn's, which would see a stop only at its next look, after 100 ms."""
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, without its pauses."""
        await shut_down(self, sockets or [])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _SimulatorServer(EmbeddedServer):
    """It also stops listening, and begins again, as the faults say."""

    def __init__(self, config: uvicorn.Config, address: tuple[str, int], faults: FaultTable) -> None:
        super().__init__(config)
        self._address = address
        self._faults = faults
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._refusing = False
        self._again: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._faults.listen(self.follow_from_any_thread)

    def follow_from_any_thread(self) -> None:
        if threading.get_ident() == self._thread:
            self.follow()
            return

        async def follow() -> None:
            self.follow()

        # Waited for, so that the next connection meets what was set.
        asyncio.run_coroutine_threadsafe(follow(), self._loop).result(_START_S)

    def follow(self) -> None:
        """Listens, or refuses connections, as the faults say now."""
        fault = next((fault for _, fault in self._faults.of_kind(RefuseFault, "/")), None)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if fault is not None and fault.seconds is not None:
            self._again = self._loop.call_later(fault.seconds, self._faults.remove, fault)
        if self._refusing is (fault is not None):
            return
        self._refusing = fault is not None
        if self._refusing:
            for server in self.servers:
                server.close()
            self.servers = []
        else:
            # At once, so that the next connection is taken; it waits in the kernel until the task below is done.
            listener = _bind(*self._address)
            listener.listen(self.config.backlog)
            self._opening = self._loop.create_task(self.listen_again(listener))

    async def listen_again(self, listener: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        server = await self._loop.create_server(protocol, sock=listener, ssl=self.config.ssl)
        if self._refusing or self.should_exit:
            server.close()
        else:
            self.servers = [server]
