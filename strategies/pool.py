"""The pool of Azure resources: which of them a request asks, in which order, and what their answers say of them.

Mints, SDP offers, the proxy and the compatible endpoints all go through one pool, so that what one of them learns
counts for the others. A call is admitted, made within `settle`, and thereby counted. Single-threaded.

What an answer says goes to where it belongs: the breaker of the (resource, route); for a 5xx that only one agent has
had, a breaker of the (resource, route, agent); for a limit of tokens, or an agent's deployment that is not there, one
of the (resource, model); and the health of the resource.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from strategies.answer_times import AnswerTimes
from strategies.errors import MintError, RateLimitedError
from strategies.health import BreakerPolicy, BreakerState, BreakerStatus, Capability, CircuitBreaker, Permit
from strategies.pool_answers import Outlook, PoolPermit, Refusal, ResourceStatus
from strategies.quotas import KnownQuotas
from strategies.resource_health import Fault, ResourceHealth, fault_of
from strategies.resources import Resource, Wanted, by_preference, is_allowed, uniform
from strategies.scoped_breakers import ScopedBreakers

__all__ = ["Outlook", "Pool", "PoolPermit", "Refusal", "ResourceStatus"]

# The longest rest of the last routes that are left.
_LAST_ROUTE_REST_S = 15.0
# The same where several resources fail at once: then the fault may be ours, or over already.
_ALL_FAILING_REST_S = 2.0
# A talk that gets its token within that time can be expected to come about.
_SOON_S = 1.0
_TOO_MANY_REQUESTS = 429
# After a stall, answers that had come meanwhile are read one after the other.
_STALL_GRACE_S = 1.0


class Pool:
    """The resources, their health and their quotas. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        resources: Sequence[Resource],
        *,
        policy: BreakerPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resources = tuple(resources)
        self.by_name = {each.name: each for each in self.resources}
        self._policy = policy or BreakerPolicy()
        self._clock = clock
        self._health = {each.name: ResourceHealth(each.name, self._policy, clock=clock) for each in self.resources}
        self._quotas = KnownQuotas({each.name: each.quotas for each in self.resources}, clock=clock)
        self._has_quotas = bool(self._quotas)
        self._breakers: dict[tuple[str, str], CircuitBreaker] = {}
        self._alone: dict[tuple[str, str], tuple[CircuitBreaker]] = {}  # the same, as `breakers` gives them
        self._times: dict[tuple[str, str], AnswerTimes] = {}
        self._scoped = ScopedBreakers(self._policy, clock)
        self._disabled: frozenset[str] = frozenset()
        self._stalled_until_s = -math.inf

    def allowed(self, wanted: Wanted) -> tuple[Resource, ...]:
        """Those that residency lets `wanted` use, healthy or not."""
        if not wanted.zones and not wanted.resources:
            return self.resources
        return tuple(each for each in self.resources if is_allowed(each, wanted))

    def order(self, wanted: Wanted) -> tuple[Resource, ...]:
        """Those to ask, in order: allowed, enabled, healthy; by priority and the session's own preference.

        Slow ones come behind the others, and so do recovering ones for most sessions at first. Where all that are
        allowed and enabled seem to fail, or cannot be asked, it has all of them.
        """
        enabled = self.allowed(wanted)
        if self._disabled:
            enabled = tuple(each for each in enabled if each.name not in self._disabled)
        if len(enabled) <= 1:
            return enabled
        preferred = by_preference(enabled, wanted.session_id)
        failing = {each.name: self._health[each.name].failing for each in preferred}
        if any(breaker.is_closed for breaker in failing.values()):
            # One whose rest is over is asked in its own place by the first request that comes: its probe.
            asked = [each for each in preferred if failing[each.name].would_admit]
            if len(asked) < len(preferred) and all(self._rests(each, wanted) for each in asked):
                # Those that do not fail cannot be asked either: one that fails may be well again.
                asked += [each for each in preferred if each not in asked]
        else:
            asked = sorted(preferred, key=lambda each: not failing[each.name].would_admit)
        behind = [each for each in asked if self._is_behind(each, wanted.session_id)]
        return (*(each for each in asked if each not in behind), *behind)

    def left_out(self, wanted: Wanted) -> tuple[Resource, ...]:
        """Those that `order` leaves out because they fail, in the session's own preference."""
        names = self._disabled.union(each.name for each in self.order(wanted))
        left = tuple(each for each in self.allowed(wanted) if each.name not in names)
        return tuple(by_preference(left, wanted.session_id))

    def breaker(self, resource_name: str, route_name: str) -> CircuitBreaker:
        """The breaker of one route of one resource, made when it is first asked for."""
        key = (resource_name, route_name)
        if (found := self._breakers.get(key)) is None:
            found = self._breakers[key] = CircuitBreaker(route_name, self._policy, clock=self._clock)
        return found

    def breakers(
        self, resource: Resource, route_name: str, *, agent_id: str, model: str = ""
    ) -> tuple[CircuitBreaker, ...]:
        """Those that decide on a call: the route's, and while something is wrong, the agent's and the model's."""
        key = (resource.name, route_name)
        if (alone := self._alone.get(key)) is None:
            alone = self._alone[key] = (self.breaker(*key),)
        if not self._scoped.all:  # nearly always
            return alone
        return (*alone, *self._scoped.of(*key, agent_id=agent_id, model=model or resource.model))

    def would_admit(
        self, resource: Resource, route_name: str, *, agent_id: str, model: str = "", early: bool = False
    ) -> bool:
        """Whether `admit` would give a permit now, as far as its quota is not used up."""
        breakers = self.breakers(resource, route_name, agent_id=agent_id, model=model)
        return _would_admit(breakers, early=early)

    def all_fail(self, wanted: Wanted, ways: Iterable[tuple[Resource, str]]) -> bool:
        """Whether each of several resources seems to fail, by all of its `ways` (resource and route).

        Then a request asks before the rests are over. With one resource the rest protects it, and is short.
        """
        return len(self.resources) > 1 and not any(
            self._health[resource.name].failing.is_closed
            and all(
                each.is_closed for each in self.breakers(resource, route, agent_id=wanted.agent_id, model=wanted.model)
            )
            for resource, route in ways
        )

    def route_status(self, resource_name: str, route_name: str) -> BreakerStatus:
        """The status of a route. Where its last call failed, and only agents' breakers are open, it is theirs."""
        own = self.breaker(resource_name, route_name).snapshot()
        if own.breaker is not BreakerState.CLOSED or own.last_outcome in {"minted", "connected"}:
            return own
        if (agents := self._scoped.resting(resource_name, route_name)) is None:
            return own
        why = f"agent {agents.name}: {agents.why_open}"
        return replace(own, breaker=agents.state, retry_in_s=round(agents.retry_in_s, 1), why=why)

    def answer_times(self, resource_name: str, route_name: str) -> AnswerTimes:
        """How long the route takes to answer, for hedging."""
        return self._times.setdefault((resource_name, route_name), AnswerTimes())

    def pace(self, resource_name: str) -> CircuitBreaker:
        """The breaker that opens when the resource was slow three times in a row."""
        return self._health[resource_name].slow

    def is_sick(self, resource_name: str) -> bool:
        """Whether the resource is known to fail, or to be slow: a request that is under way asks others before it."""
        health = self._health[resource_name]
        return not (health.failing.is_closed and health.slow.is_closed)

    def admit(
        self,
        resource: Resource,
        route_name: str,
        *,
        agent_id: str,
        model: str = "",
        session_id: str = "",
        running: bool = False,
        early: bool = False,
    ) -> PoolPermit | None:
        """A permit for one call now, or None; then `why_not` says why.

        It takes a token of the route's quota, which does not come back however the call ends. `model` is the deployment
        to be used, where it is not the resource's. A running talk that is refused for its quota, and is named by
        `session_id`, gets the next token before new talks do.

        A resource that fails is no reason to refuse: `order` has it only where a probe is due, or no other is left.
        `early` is for a request with no other way (`all_fail`): a route that rests for faults is asked all the same, by
        one request at a time. A wait that Azure named, a refused credential and a missing route hold.
        """
        breaker, *scoped = breakers = self.breakers(resource, route_name, agent_id=agent_id, model=model)
        if not _would_admit(breakers, early=early):
            return None
        began_s = self._clock()
        if self._has_quotas and self._quotas.take(
            resource.name, route_name, began_s, session_id=session_id, running=running
        ):
            return None
        if (permit := breaker.admit(early=early)) is None:
            return None
        return PoolPermit(
            resource=resource,
            route=route_name,
            agent_id=agent_id,
            model=model or resource.model,
            began_s=began_s,
            breaker=breaker,
            permit=permit,
            health=self._health[resource.name].failing.admit(early=True),
            scoped=tuple((each, granted) for each in scoped if (granted := each.admit(early=early))) if scoped else (),
        )

    def may_repeat(self, permit: PoolPermit) -> bool:
        """Takes a token for a repetition within the permit's call; False where there is none."""
        if not self._has_quotas:
            return True
        return self._quotas.take(permit.resource.name, permit.route, self._clock(), session_id="", running=False) == 0

    def repeated(self, permit: PoolPermit) -> None:
        """The permit's call has asked once more already: this takes a token, whether there is one or not."""
        if self._has_quotas:
            self._quotas.take_more(permit.resource.name, permit.route)

    def why_not(
        self,
        resource: Resource,
        route_name: str,
        *,
        agent_id: str,
        model: str = "",
        session_id: str = "",
        running: bool = False,
    ) -> Refusal:
        """Why `admit` gives no permit now. A running talk that was refused and names itself keeps its place.

        A route that waits for a probe has its reason too, without a time.
        """
        breakers = self.breakers(resource, route_name, agent_id=agent_id, model=model)
        for breaker in breakers:
            if not breaker.would_admit:
                return Refusal(breaker.why_open, breaker.retry_in_s, breaker.last_status == _TOO_MANY_REQUESTS)
        wait_s = self._quotas.wait_s(resource.name, route_name, session_id=session_id, running=running)
        if wait_s > 0:
            return Refusal(f"its quota is used up; there is more in {wait_s:.0f} s", wait_s, is_quota=True)
        return Refusal(next((breaker.why_open for breaker in breakers if not breaker.is_closed), ""), 0.0)

    @contextlib.contextmanager
    def settle(self, permit: PoolPermit) -> Iterator[None]:
        """Runs one admitted call in its block and counts the result, as `CircuitBreaker.settle` does, on all levels."""
        with self._told_of_failure(permit):
            yield
        self.answered(permit)

    @contextlib.contextmanager
    def connecting(self, permit: PoolPermit) -> Iterator[None]:
        """Runs an admitted handshake in its block. Its failure counts; its success proves nothing yet.

        Whoever holds the connection says later what it came to, with `succeeded` or `failed`.
        """
        with self._told_of_failure(permit):
            yield
        self.connected(permit)

    @contextlib.contextmanager
    def _told_of_failure(self, permit: PoolPermit) -> Iterator[None]:
        try:
            yield
        except MintError as error:
            self.refused(permit, error)
            raise
        except BaseException:  # it says nothing about Azure, and is most often the cancellation of a client that left
            self.abandoned(permit)
            raise

    def answered(self, permit: PoolPermit, *, asked_s: float | None = None) -> None:
        """The call was answered well, and is over. `asked_s` is when Azure was asked, if later than the permit."""
        permit.breaker.answered("minted", self._age_ms(permit))
        if len(self.resources) > 1:
            self._note_time(permit, asked_s)
        self._end_call(permit)
        self.succeeded(permit)

    def connected(self, permit: PoolPermit) -> None:
        """The handshake succeeded: neither success nor failure, but another call may be the probe."""
        permit.breaker.answered("connected", self._age_ms(permit))
        self._note_time(permit, None)
        self._give_back(permit)

    def refused(self, permit: PoolPermit, error: MintError) -> None:
        """The call failed."""
        self._count_failure(permit, permit.permit, error, self._age_ms(permit))

    def undone(self, permit: PoolPermit, *, asked_s: float | None = None) -> None:
        """Another answer came first. This is neither success nor failure, but the call's age counts for hedging."""
        self._note_time(permit, asked_s)
        self._give_back(permit)

    def abandoned(self, permit: PoolPermit) -> None:
        """Nobody waited for the result."""
        self._give_back(permit)

    def succeeded(self, permit: PoolPermit) -> None:
        """What was connected within `connecting` works: an answer was completed, or 30 s passed without a fault."""
        permit.breaker.proved(permit.permit)
        if permit.scoped:
            self._scoped.proved(permit.scoped)
        self._scoped.pairs.pop((permit.resource.name, permit.agent_id), None)
        self._health[permit.resource.name].lives(permit.health)

    def failed(self, permit: PoolPermit, error: MintError) -> None:
        """What was connected within `connecting` failed later: this is news of now, whenever the call was admitted."""
        self._count_failure(permit, permit.breaker.permit_for_news(), error, None, is_news=True)

    def ease(self, wanted: Wanted, routes: Sequence[str]) -> None:
        """Shortens the rests of `routes`; call it where none of the permitted resources gave a permit.

        The last routes that are left never rest longer than 15 s, unless Azure named a wait or refused the credential.
        Where several resources fail at once, faults of theirs rest 2 s: the fault may be ours, or over already.
        """
        enabled = [each for each in self.allowed(wanted) if each.name not in self._disabled]
        for resource in enabled:
            for route in routes:
                for breaker in self.breakers(resource, route, agent_id=wanted.agent_id, model=wanted.model):
                    is_fault = len(enabled) > 1 and breaker.capability is not Capability.MISSING
                    breaker.rest_at_most(_ALL_FAILING_REST_S if is_fault else _LAST_ROUTE_REST_S)

    def all_rest(self, wanted: Wanted) -> bool:
        """Whether every route of the permitted resources rests, of those that were ever asked."""
        names = {each.name for each in self.allowed(wanted)} - self._disabled
        return not any(breaker.would_admit for (name, _), breaker in self._breakers.items() if name in names)

    def outlook(self, wanted: Wanted, routes: Sequence[str]) -> Outlook:
        """What to expect of a talk by one of `routes`: poor where all permitted resources are known to be down.

        A route whose rest is over and that nobody probes is not known to be down: a talk that starts now may be the
        probe. A rest that was shortened is not over earlier: talks try the route, and nobody counts on it.
        """
        shortest_s, why = math.inf, "no resource is permitted"
        for resource in self.allowed(wanted):
            if resource.name in self._disabled:
                continue
            for route in routes:
                down = self._down(resource, route, wanted)
                if down is None:
                    return Outlook("good")
                if down.retry_after_s < shortest_s:
                    shortest_s, why = down.retry_after_s, f"{resource.name}: {down.why}"
        return Outlook("poor", max(1.0, shortest_s) if math.isfinite(shortest_s) else None, why)

    def set_enabled(self, name: str, enabled: bool) -> None:
        """Takes a resource out for new connections, or in again. Running ones go on."""
        self._disabled = self._disabled - {name} if enabled else self._disabled | {name}

    def give_up(self, session_id: str) -> None:
        """The running talk waits for no token any more, since it has ended or has got one."""
        self._quotas.give_up(session_id)

    def divide_quotas(self, replicas: int, *, is_fresh: bool = False) -> None:
        """Leaves this process its share of the quotas, of `replicas` that are live.

        `is_fresh` is for a process that has just started beside others, or after another one: the first minute's
        quota comes at its rate, since the tokens may have been used by others a moment ago.
        """
        self._quotas.divide(replicas, is_fresh=is_fresh)

    def stalled(self, for_s: float) -> None:
        """Our own loop stood still for `for_s` until now: failures of calls that ran meanwhile are nobody's."""
        if for_s > 0:
            self._stalled_until_s = self._clock() + _STALL_GRACE_S

    def snapshot(self) -> tuple[ResourceStatus, ...]:
        """The status of each resource now."""
        found = []
        for each in self.resources:
            health = self._health[each.name]
            resting = next((breaker for breaker in (health.failing, health.slow) if not breaker.is_closed), None)
            status = ResourceStatus(
                name=each.name,
                zone=each.zone,
                priority=each.priority,
                weight=each.weight,
                enabled=each.name not in self._disabled,
                health=health.condition,
                why=resting.why_open if resting else None,
                retry_in_s=round(resting.retry_in_s, 1) if resting else None,
                load=self._quotas.load(each.name),
                routes=tuple(self.route_status(name, route) for name, route in self._breakers if name == each.name),
            )
            found.append(status)
        return tuple(found)

    def _down(self, resource: Resource, route: str, wanted: Wanted) -> Refusal | None:
        """Why a talk by `route` can not be expected to come about; None where it can."""
        breakers = [
            self._health[resource.name].failing,
            *self.breakers(resource, route, agent_id=wanted.agent_id, model=wanted.model),
        ]
        if (pair := self._scoped.pairs.get((resource.name, wanted.agent_id))) is not None:
            breakers.append(pair)
        down = [
            (down_s, each.why_open)
            for each in breakers
            if (down_s := each.seems_down_s(_LAST_ROUTE_REST_S)) > 0 or not each.would_admit
        ]
        if down:
            longest_s, why = max(down)
            return Refusal(why, longest_s)
        wait_s = self._quotas.wait_s(resource.name, route, running=wanted.running)
        return Refusal("its quota is used up", wait_s) if wait_s > _SOON_S else None

    def _rests(self, resource: Resource, wanted: Wanted) -> bool:
        """Whether every route of the resource rests, of those that were ever asked."""
        routes = [route for name, route in self._breakers if name == resource.name]
        return bool(routes) and not any(
            self.would_admit(resource, route, agent_id=wanted.agent_id, model=wanted.model) for route in routes
        )

    def _is_behind(self, resource: Resource, session_id: str) -> bool:
        health = self._health[resource.name]
        if not health.slow.would_admit:
            return True
        share = health.recovered_share
        return share < 1 and uniform("recovering", resource.name, session_id) >= share

    def _age_ms(self, permit: PoolPermit) -> float:
        return (self._clock() - permit.began_s) * 1000

    def _note_time(self, permit: PoolPermit, asked_s: float | None) -> None:
        took_s = self._clock() - (permit.began_s if asked_s is None else asked_s)
        if took_s >= 0:  # else nobody was asked yet
            self.answer_times(permit.resource.name, permit.route).add(took_s * 1000)

    def _end_call(self, permit: PoolPermit) -> None:
        if self._has_quotas:
            self._quotas.answered(permit.resource.name, permit.route, permit.began_s)

    def _give_back(self, permit: PoolPermit) -> None:
        self._end_call(permit)
        permit.breaker.abandoned(permit.permit)
        for breaker, granted in permit.scoped:
            breaker.abandoned(granted)
        if permit.health is not None:
            self._health[permit.resource.name].failing.abandoned(permit.health)

    def _count_failure(
        self, permit: PoolPermit, granted: Permit, error: MintError, duration_ms: float | None, *, is_news: bool = False
    ) -> None:
        """Tells those whom the failure concerns, and gives the permits of all others back."""
        fault = fault_of(error)
        if fault is Fault.RESOURCE and self._stalled_until_s > (self._clock() if is_news else permit.began_s):
            fault = Fault.NOBODY
        health = self._health[permit.resource.name]
        is_agents = False
        if fault is Fault.NONE:
            health.lives(permit.health)
        elif fault is not Fault.NOBODY:
            news = health.failing.permit_for_news() if is_news else permit.health
            is_agents = health.has_failed(fault, error, news, permit.agent_id, permit.model)
        is_models = (isinstance(error, RateLimitedError) and error.is_of_tokens) or (
            error.code == "DeploymentNotFound" and permit.model != permit.resource.model
        )
        if is_agents:
            self._scoped.agents_failed(permit.resource.name, permit.route, permit.agent_id, error)
        if is_models:
            self._scoped.models_failed(permit.resource.name, permit.model, error)
        if is_agents or is_models or fault is Fault.NOBODY:
            permit.breaker.noted(error.outcome, error.status, duration_ms)
        else:
            permit.breaker.failed(granted, error, duration_ms)
        self._give_back(permit)


def _would_admit(breakers: Iterable[CircuitBreaker], *, early: bool) -> bool:
    return all(each.would_admit_early if early else each.would_admit for each in breakers)
