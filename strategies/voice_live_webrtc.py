"""Voice Live by WebRTC: which resources have it, and the strategy that grants it (docs/azure.md §12.1).

Nothing is minted for it. The broker holds the signalling: it opens a control socket for each talk. So the strategy
grants where a resource has the service, and its way to it is not known to be down.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from strategies.base import Attempt, SignallingGrant
from strategies.endpoint import Target
from strategies.errors import MintError
from strategies.pool import Pool
from strategies.resources import Resource, Wanted

__all__ = ["ControlProbe", "VoiceLiveWebRtc", "WebRtcAvailability", "WebRtcMode", "WebRtcState", "WebRtcStatus"]

WebRtcMode = Literal["auto", "on", "off"]
WebRtcState = Literal["available", "missing", "unknown", "off"]
ControlProbe = Callable[[Resource], Awaitable[None]]
"""Opens a control socket at the resource and closes it without an offer, within a bound. Raises MintError."""

_EVERY_S = 3600.0
_FIRST_AGAIN_S = 30.0  # where a try has not found it; doubled up to an hour
_LONGEST_UNKNOWN_S = 300.0  # between tries that say nothing: the resource may be back
_FIRST_TRY_S = 2.0
# Azure's answers for a resource, or an api-version, without the service (docs/azure.md §12.1).
_MISSING = frozenset({401, 404})


@dataclass(frozen=True, slots=True)
class WebRtcStatus:
    """What is known of one resource. `checked_ago_s` is None before the first try; `why` is the last try's failure."""

    resource: str
    state: WebRtcState
    checked_ago_s: float | None = None
    why: str | None = None


@dataclass(slots=True)
class _Known:
    has: bool | None = None
    tried_s: float | None = None
    why: str | None = None
    failures: int = 0  # in a row, of tries that did not find it
    missed: asyncio.Event = field(default_factory=asyncio.Event)  # by a talk


class WebRtcAvailability:
    """Which resources have Voice Live by WebRTC. `start` looks now, and every hour; `mode` on and off need no look.

    A try that fails in another way than by a status of `missing` changes nothing that is known. One that does not find
    the service is soon repeated: an Azure that starts, or a credential that is being renewed, answers alike.
    """

    def __init__(
        self,
        resources: Sequence[Resource],
        *,
        mode: WebRtcMode,
        probe: ControlProbe,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = _EVERY_S,
        again_s: float = _FIRST_AGAIN_S,
        missing: frozenset[int] = _MISSING,
    ) -> None:
        self._mode = mode
        self._missing = missing
        self._probe = probe
        self._clock = clock
        self._every_s = every_s
        self._again_s = again_s
        self._resources = tuple(resources)
        self._known = {each.name: _Known() for each in resources if VoiceLiveWebRtc.applies(each.target)}
        self._first = {name: asyncio.Event() for name in self._known}
        self._looking: list[asyncio.Task[None]] = []

    @property
    def is_possible(self) -> bool:
        """Whether any resource could have it, and it is not switched off."""
        return self._mode != "off" and bool(self._known)

    def start(self) -> None:
        """Looks at each resource in the background, until `aclose`."""
        if self._mode == "auto":
            self._looking = [
                asyncio.create_task(self._watch(each), name=f"voice-live-webrtc {each.name}")
                for each in self._resources
                if each.name in self._known
            ]

    async def aclose(self) -> None:
        """Looks no more."""
        for task in self._looking:
            task.cancel()
        if self._looking:
            await asyncio.wait(self._looking)

    def has(self, resource_name: str) -> bool:
        """Whether the resource is known to have it."""
        return resource_name in self._known and (
            self._mode == "on" or (self._mode == "auto" and self._known[resource_name].has is True)
        )

    async def first_known(self, resource_name: str, *, timeout_s: float) -> None:
        """Returns once the first try has ended, and after `timeout_s`, of which two seconds count, at the latest."""
        if self._mode != "auto" or not self._looking or (first := self._first.get(resource_name)) is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_FIRST_TRY_S, max(0.0, timeout_s))):
                await first.wait()

    async def look(self, resource: Resource) -> None:
        """Tries the resource once, and notes what came of it."""
        known = self._known[resource.name]
        try:
            await self._probe(resource)
        except MintError as error:
            known.why = str(error)
            known.failures += 1
            if error.status in self._missing:
                known.has = False
        else:
            known.has, known.why, known.failures = True, None, 0
        known.tried_s = self._clock()
        self._first[resource.name].set()

    def note(self, resource_name: str, error: MintError) -> None:
        """A talk's own try has failed: where that says that nothing is there, plans leave it out until it is seen."""
        known = self._known.get(resource_name)
        if known is not None and self._mode == "auto" and error.status in self._missing:
            known.has, known.why = False, str(error)
            known.missed.set()

    def snapshot(self) -> tuple[WebRtcStatus, ...]:
        """What is known of each resource that could have it."""
        return tuple(self._status(name, known) for name, known in self._known.items())

    def _status(self, name: str, known: _Known) -> WebRtcStatus:
        if self._mode != "auto":
            return WebRtcStatus(name, "available" if self._mode == "on" else "off")
        state: WebRtcState = "unknown" if known.has is None else "available" if known.has else "missing"
        ago_s = None if known.tried_s is None else round(self._clock() - known.tried_s, 1)
        return WebRtcStatus(name, state, ago_s, known.why)

    async def _watch(self, resource: Resource) -> None:
        known = self._known[resource.name]
        while True:
            await self.look(resource)
            known.missed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(known)):
                    await known.missed.wait()
            if known.missed.is_set():
                await asyncio.sleep(self._again_s)

    def _pause_s(self, known: _Known) -> float:
        if not known.failures:
            return self._every_s
        longest_s = self._every_s if known.has is False else min(self._every_s, _LONGEST_UNKNOWN_S)
        return min(longest_s, self._again_s * 2.0 ** min(known.failures - 1, 16))


class VoiceLiveWebRtc:
    """Grants where a permitted resource has the service. It mints nothing, and asks nobody but its availability.

    `of_agents` is the same for agents that are defined at Azure, by their ids: each may have WebRTC or not.
    """

    name = "voice_live_webrtc"

    def __init__(
        self, availability: WebRtcAvailability, *, of_agents: Mapping[str, WebRtcAvailability] | None = None
    ) -> None:
        self.availability = availability
        self._of_agents = of_agents or {}

    @staticmethod
    def applies(target: Target) -> bool:
        """False for a direct endpoint, which has no Voice Live."""
        return target.unified_base is not None

    @property
    def is_possible(self) -> bool:
        """Whether it could ever grant."""
        return any(each.is_possible for each in (self.availability, *self._of_agents.values()))

    async def grant(self, pool: Pool, wanted: Wanted, *, timeout_s: float) -> tuple[SignallingGrant | None, Attempt]:
        """The grant, or None where no permitted resource has it; and what is to be told of it."""
        began_s, order = time.monotonic(), pool.order(wanted)
        name, availability = self._asked(wanted)
        for resource in order:
            await availability.first_known(resource.name, timeout_s=timeout_s - (time.monotonic() - began_s))
            if self.usable(pool, resource, wanted):
                break
        else:
            why = "no resource has it, or its way there rests"
            return None, Attempt(name, "skipped", (time.monotonic() - began_s) * 1000, why)
        took_ms = (time.monotonic() - began_s) * 1000
        attempt = Attempt(name, "granted", took_ms, "mints nothing", resource=resource.name)
        return SignallingGrant(name, resource.name), attempt

    def usable(self, pool: Pool, resource: Resource, wanted: Wanted) -> bool:
        """Whether the resource has it, and a talk there can be expected to come about."""
        name, availability = self._asked(wanted)
        return availability.has(resource.name) and pool.would_admit(
            resource, name, agent_id=wanted.agent_id, model=wanted.model
        )

    def _asked(self, wanted: Wanted) -> tuple[str, WebRtcAvailability]:
        """The route that the agent takes, and what is known of it: one that is defined at Azure has its own."""
        own = self._of_agents.get(wanted.agent_id)
        return (self.name, self.availability) if own is None else ("foundry_agent", own)
