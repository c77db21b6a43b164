"""Several simulated resources in one process, each with its own port, deployments, quotas and faults.

    async with serve_resources("eastus2", "swedencentral") as azure:
        azure.by_name["eastus2"].set_faults({"match": "/", "fault": "refuse"})
        ...
        assert azure.transcript.answers_to("#1")[0].resource == "swedencentral"

Their transcript is one. The control routes of each reach the others, under `/_simulator/resources/{name}/…`.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat

from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from token_broker.simulator.config import SimulatorConfig
from token_broker.simulator.faults.control import PREFIX
from token_broker.simulator.records.transcript import TalkTranscript
from token_broker.simulator.server import RunningSimulator, in_thread, serve_simulator
from token_broker.simulator.simulator import Simulator


@dataclass(frozen=True, slots=True)
class RunningResources:
    """Simulated resources that listen, by name and in order."""

    by_name: Mapping[str, RunningSimulator]
    transcript: TalkTranscript

    def __iter__(self) -> Iterator[RunningSimulator]:
        return iter(self.by_name.values())

    def resources_file(self, key_env: str = "SIMULATOR_KEY") -> str:
        """A `BROKER_RESOURCES_FILE` that names them all, in TOML, with equal priorities."""
        tables = []
        for resource in self:
            config = resource.simulator.resource.config
            model = "gpt-realtime" if "gpt-realtime" in config.deployments else min(config.deployments)
            lines = [f'name = "{resource.name}"', f'endpoint = "{resource.url}"', 'kind = "unified"']
            lines += ['project = "demo"', 'auth = "key"', f'key_env = "{key_env}"', f'model = "{model}"']
            tables.append("\n".join(["[[resources]]", *lines, ""]))
        return "\n".join(tables)

    def control(self) -> Mount:
        """The control routes of all, for an application of this process, which decides who may use them."""
        simulator = next(iter(self)).simulator

        async def forward(scope: Scope, receive: Receive, send: Send) -> None:
            await simulator({**scope, "root_path": ""}, receive, send)

        return Mount(PREFIX, forward)


@contextlib.asynccontextmanager
async def serve_resources(
    *names: str,
    host: str = "127.0.0.1",
    ports: Sequence[int] = (),
    configs: Mapping[str, SimulatorConfig] | None = None,
    transcript: TalkTranscript | None = None,
) -> AsyncIterator[RunningResources]:
    """Serves resources in this event loop until the block ends: `names` with the defaults, and `configs`.

    They listen on `ports`, in order; where one is 0 or missing, on any free one. All of them write into `transcript`,
    by default a new one.

    Raises:
        OSError: a port is taken.

    """
    wanted = {name: SimulatorConfig() for name in names} | dict(configs or {})
    transcript, simulators = transcript or TalkTranscript(), dict[str, Simulator]()
    for name, config in wanted.items():
        simulators[name] = Simulator(config, name, transcript, simulators)
    async with contextlib.AsyncExitStack() as stack:
        running = {
            name: await stack.enter_async_context(serve_simulator(simulator, host, port))
            for (name, simulator), port in zip(simulators.items(), chain(ports, repeat(0)), strict=False)
        }
        yield RunningResources(running, transcript)


@contextlib.contextmanager
def run_resources_in_thread(
    *names: str,
    host: str = "127.0.0.1",
    ports: Sequence[int] = (),
    configs: Mapping[str, SimulatorConfig] | None = None,
    transcript: TalkTranscript | None = None,
) -> Iterator[RunningResources]:
    """As `serve_resources`, in a thread with an event loop of its own."""
    served = partial(serve_resources, *names, host=host, ports=ports, configs=configs, transcript=transcript)
    with in_thread(served) as running:
        yield running
