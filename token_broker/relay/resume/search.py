"""Finds another session for a talk that lost its own: whom it asks, for how long, and when it waits for a quota.

The resources that failed the talk a moment ago come last. A wait for a known refill does not count as time that was
used, for BROKER_RESUME_HOLD_S at most: nobody is closed whose only obstacle is such a refill.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from strategies.pool import Pool
from strategies.resources import Resource, Wanted
from token_broker.relay.azure.route import NoUpstreamError
from token_broker.server.close_codes import UPSTREAM_FAILED, Ending

__all__ = ["SessionSearch"]

T = TypeVar("T")

_UNFIT_S = 30.0
_FIRST_PAUSE_S = 0.2  # between attempts, doubled each time


class SessionSearch:
    """One talk's. `routes_of` are the ways by which a resource carries talks, `wanted` is who asks now."""

    def __init__(
        self,
        pool: Pool,
        routes_of: Callable[[str], tuple[str, ...]],
        wanted: Callable[[], Wanted],
        *,
        timeout_s: float,
        hold_s: float,
    ) -> None:
        self._pool = pool
        self._routes_of = routes_of
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._hold_s = hold_s
        self._loop = asyncio.get_running_loop()
        self._unfit: dict[str, float] = {}  # resources that failed this talk, and until when others are asked first

    def failed_at(self, resource: str) -> None:
        """The resource has just failed the talk."""
        self._unfit[resource] = self._loop.time() + _UNFIT_S

    async def find(self, attempt: Callable[[Wanted], Awaitable[T]], on_hold: Callable[[float], Awaitable[None]]) -> T:
        """What `attempt` gives, which raises NoUpstreamError; raises the last one where no time is left.

        `on_hold` is told the seconds of each wait for a quota.
        """
        deadline_s = self._loop.time() + self._timeout_s
        hold_left_s, pause_s = self._hold_s, _FIRST_PAUSE_S
        why = Ending(UPSTREAM_FAILED, "Azure did not answer in time")
        while True:
            wanted, others, now_s = self._wanted(), self._others(), self._loop.time()
            if others:
                wanted = replace(wanted, resources=others)
            # While something is left to do afterwards, a resource that hangs must not use all of the time up.
            is_last = not others and self.refill_s() is None
            try:
                async with asyncio.timeout_at(deadline_s if is_last else now_s + (deadline_s - now_s) / 2):
                    return await attempt(wanted)
            except NoUpstreamError as error:
                why = error.ending
            except TimeoutError:
                pass
            if others:
                if self._others() == others:  # none of them took the talk
                    self._unfit.clear()
                continue
            refill_s = self.refill_s()
            if refill_s is not None and refill_s <= hold_left_s:
                await on_hold(refill_s)
                await asyncio.sleep(refill_s)
                hold_left_s -= max(refill_s, _FIRST_PAUSE_S)
                # An attempt that waited for a resource that hangs has used time up: enough for another one is given.
                deadline_s = max(deadline_s + refill_s, self._loop.time() + self._timeout_s / 2)
                continue
            if self._loop.time() + pause_s >= deadline_s:
                raise NoUpstreamError(why)
            await asyncio.sleep(pause_s)
            pause_s *= 2

    def refill_s(self) -> float | None:
        """When one of the permitted resources has quota again; None where quota is not what is missing, or unknown."""
        wanted = self._wanted()
        waits_s = []
        for resource in self._pool.order(wanted):
            for route in self._routes_of(resource.name):
                refusal = self._pool.why_not(
                    resource,
                    route,
                    agent_id=wanted.agent_id,
                    model=wanted.model,
                    session_id=wanted.session_id,
                    running=True,
                )
                if refusal.is_quota and refusal.retry_after_s > 0:
                    waits_s.append(refusal.retry_after_s)
        return min(waits_s, default=None)

    def _others(self) -> tuple[str, ...]:
        """The resources to ask first: not those that failed this talk a moment ago. None where there is no choice."""
        now_s, wanted = self._loop.time(), self._wanted()

        def fit(resources: tuple[Resource, ...]) -> tuple[str, ...]:
            return tuple(each.name for each in resources if self._unfit.get(each.name, now_s) <= now_s)

        # Those that rest for faults stay permitted: they are asked where all others are silent, or have failed.
        order, resting = self._pool.order(wanted), fit(self._pool.left_out(wanted))
        healthy = fit(order)
        return () if len(healthy) == len(order) else (*healthy, *resting)
