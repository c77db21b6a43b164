"""The simulated resource while it runs: its configuration, clock, secrets and faults, and the responses to come."""

import time

from starlette.datastructures import Headers

from token_broker.simulator.auth import Credential, credential_of
from token_broker.simulator.config import SimulatorConfig
from token_broker.simulator.ephemeral import EphemeralSecrets
from token_broker.simulator.faults.fault_table import FaultTable
from token_broker.simulator.records.transcript import TalkTranscript
from token_broker.simulator.scripted_responses import ScriptedResponses


class Clock:
    """The resource's own time, `offset_s` ahead of the machine's. A test may move it on."""

    def __init__(self, offset_s: float = 0.0) -> None:
        self.offset_s = offset_s

    def now(self) -> float:
        """Unix seconds."""
        # The wall clock, since tokens are compared with the broker's own.
        return time.time() + self.offset_s


class Resource:
    """What the routes of one simulator share. The transcript is of all resources of the process."""

    def __init__(
        self, config: SimulatorConfig, name: str = "default", transcript: TalkTranscript | None = None
    ) -> None:
        self.name = name
        self.config = config
        self.faults = FaultTable()
        self.transcript = transcript or TalkTranscript()
        self.clock = Clock(config.clock_offset_s)
        self.secrets = EphemeralSecrets(self.clock.now)
        self.scripted = ScriptedResponses()

    def credential_of(self, headers: Headers) -> Credential:
        return credential_of(headers, self.config, self.secrets)
