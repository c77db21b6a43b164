"""A simulation of Azure's realtime APIs on loopback: strict where Azure is documented to be, failing on command.

`token-broker simulate`, the demo and the tests use it. It shares no code with what it is there to check.
"""

from token_broker.simulator.config import Kind, SimulatorConfig
from token_broker.simulator.fleet import RunningResources, run_resources_in_thread, serve_resources
from token_broker.simulator.server import RunningSimulator, run_in_thread, serve

__all__ = [
    "Kind",
    "RunningResources",
    "RunningSimulator",
    "SimulatorConfig",
    "run_in_thread",
    "run_resources_in_thread",
    "serve",
    "serve_resources",
]
