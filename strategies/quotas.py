"""Azure's quotas, kept by us, so that a resource is left alone before it refuses.

A quota is a sliding window: a token that was taken comes back when the window has passed. A bucket that refills evenly
would let twice its quota through within the first window. The window counts from the call's answer, since the call may
reach Azure at any time until then: two calls a second apart may arrive closer. Pure but for the times that were noted;
callers bring the time.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Allowance", "KnownQuotas", "Quotas", "Window", "allowances_of"]

# The routes that mint, which share a resource's quota of mints.
_MINT_ROUTES = frozenset({"ga", "direct_deployment", "project", "unified"})

# The share of a quota that new talks leave to running ones that have to move: 1 in 20.
_RESERVE = 20
# How long after the time it was told a waiting talk keeps its claim. It may be late, or have gone elsewhere.
_CLAIM_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Quotas:
    """What Azure is known to allow one resource, for all replicas together; 0 is unknown."""

    voice_live_per_minute: int = 0
    voice_live_per_second: int = 0
    mints_per_minute: int = 0


class Window:
    """At most `limit` tokens in any `length_s`, of which this process has its share."""

    def __init__(self, limit: int, length_s: float) -> None:
        self._quota = limit
        self._quota_length_s = length_s
        self.limit = limit
        self.length_s = length_s
        self._grown: tuple[int, float, float] | None = None  # a larger limit, its length, and from when it holds
        self._taken_s: deque[float] = deque()

    def divide(self, replicas: int, now_s: float) -> None:
        """Leaves this process a share, rounded down. Less than one token a window is one in a longer window.

        A share that grows does so a window later: whoever had it until now may have used it up a moment ago.
        """
        replicas = max(1, replicas)
        share = self._quota // replicas or 1, self._quota_length_s * max(1.0, replicas / self._quota)
        if share[0] / share[1] > self.limit / self.length_s:
            self._grown = (*share, now_s + self.length_s)
        else:
            (self.limit, self.length_s), self._grown = share, None

    def begin_used(self, now_s: float) -> None:
        """Takes all tokens, as if evenly over the last window: they come back one by one."""
        taken_s = [now_s - self.length_s * (1 - (step + 0.5) / self.limit) for step in range(self.limit)]
        self._taken_s = deque(sorted([*self._taken_s, *taken_s]))

    def used(self, now_s: float) -> int:
        """How many tokens are taken."""
        if self._grown is not None and now_s >= self._grown[2]:
            (self.limit, self.length_s, _), self._grown = self._grown, None
        while self._taken_s and self._taken_s[0] <= now_s - self.length_s:
            self._taken_s.popleft()
        return len(self._taken_s)

    def wait_s(self, position: int, now_s: float) -> float:
        """Seconds until the token at `position` is there, where 1 is the next one; 0 where it is there now."""
        index = self.used(now_s) + position - 1 - self.limit
        if index < 0:
            return 0.0
        if index >= len(self._taken_s):  # that token is first taken by somebody who waits further ahead
            return self.wait_s(position - self.limit, now_s) + self.length_s
        return self._taken_s[index] + self.length_s - now_s

    def take(self, now_s: float) -> None:
        """Takes a token, whether there is one or not."""
        self._taken_s.append(now_s)

    def answered(self, taken_s: float, now_s: float) -> None:
        """The call that took its token at `taken_s` is over."""
        with contextlib.suppress(ValueError):  # the window has passed
            self._taken_s.remove(taken_s)
            self._taken_s.append(now_s)


@dataclass(slots=True)
class Allowance:
    """One quota over its windows. A token is there where each window has one.

    A running talk that is refused may leave a claim: new talks do not take the tokens that waiting talks were told of,
    and each waiting talk is told of another one.
    """

    windows: tuple[Window, ...]
    _claims: dict[str, float] = field(default_factory=dict)  # who waits, in order, and until when each claim holds

    def take(self, now_s: float, *, running: bool = False, claimant: str = "") -> float:
        """Takes a token and returns 0, or returns the seconds to wait for one. `claimant` names a running talk."""
        wait_s = self.wait_s(now_s, running=running, claimant=claimant)
        if wait_s == 0:
            for window in self.windows:
                window.take(now_s)
            self._claims.pop(claimant, None)
        return wait_s

    def answered(self, taken_s: float, now_s: float) -> None:
        """The call that took its token at `taken_s` is over."""
        for window in self.windows:
            window.answered(taken_s, now_s)

    def claim(self, claimant: str, due_s: float) -> None:
        """The running talk comes back at `due_s`. One that claims again keeps its place."""
        self._claims[claimant] = due_s + _CLAIM_GRACE_S

    def wait_s(self, now_s: float, *, running: bool = False, claimant: str = "") -> float:
        """Seconds until `take` gives a token."""
        for waiting in [name for name, until_s in self._claims.items() if until_s < now_s]:
            del self._claims[waiting]
        if running:
            ahead = next((place for place, name in enumerate(self._claims) if name == claimant), len(self._claims))
            return max(window.wait_s(1 + ahead, now_s) for window in self.windows)
        reserve = len(self._claims)
        return max(window.wait_s(1 + max(reserve, window.limit // _RESERVE), now_s) for window in self.windows)

    def release(self, claimant: str) -> None:
        """The claimant waits no longer."""
        self._claims.pop(claimant, None)

    def divide(self, replicas: int, now_s: float) -> None:
        """Leaves this process its share, of `replicas`."""
        for window in self.windows:
            window.divide(replicas, now_s)

    def begin_used(self, now_s: float) -> None:
        """Begins as if all had been used evenly until now."""
        for window in self.windows:
            window.begin_used(now_s)

    def load(self, now_s: float) -> float:
        """The share of the quota that is used, from 0 to 1."""
        return max(min(1.0, window.used(now_s) / window.limit) for window in self.windows)


def allowances_of(known: Quotas) -> dict[str, Allowance]:
    """The quotas that are known, by what they limit: `voice_live` and `mints`."""
    windows = {
        "voice_live": [(known.voice_live_per_minute, 60.0), (known.voice_live_per_second, 1.0)],
        "mints": [(known.mints_per_minute, 60.0)],
    }
    found = {name: tuple(Window(*each) for each in some if each[0] > 0) for name, some in windows.items()}
    return {name: Allowance(some) for name, some in found.items() if some}


class KnownQuotas:
    """The allowances of all resources, by name, and the one queue in which each running talk waits for a token."""

    def __init__(self, known: Mapping[str, Quotas], *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._of = {name: allowances_of(quotas) for name, quotas in known.items()}
        self._claims: dict[str, tuple[Allowance, float]] = {}  # where running talks wait, and until when

    def __bool__(self) -> bool:
        """Whether any quota is known."""
        return any(self._of.values())

    def take(self, resource: str, route: str, now_s: float, *, session_id: str, running: bool) -> float:
        """Takes a token for a call by `route` and returns 0, or returns the seconds to wait for one."""
        if (allowance := self._allowance(resource, route)) is None:
            return 0.0
        wait_s = allowance.take(now_s, running=running, claimant=session_id)
        if running and session_id:
            if wait_s == 0:
                self.give_up(session_id)
            else:
                self._claim(allowance, session_id, now_s, now_s + wait_s)
        return wait_s

    def take_more(self, resource: str, route: str) -> None:
        """Takes a token for a request that was made already."""
        if (allowance := self._allowance(resource, route)) is not None:
            for window in allowance.windows:
                window.take(self._clock())

    def answered(self, resource: str, route: str, taken_s: float) -> None:
        """The call by `route` that took its token at `taken_s` is over."""
        if (allowance := self._allowance(resource, route)) is not None:
            allowance.answered(taken_s, self._clock())

    def wait_s(self, resource: str, route: str, *, session_id: str = "", running: bool = False) -> float:
        """Seconds until `take` gives a token."""
        allowance = self._allowance(resource, route)
        return 0.0 if allowance is None else allowance.wait_s(self._clock(), running=running, claimant=session_id)

    def give_up(self, session_id: str) -> None:
        """The running talk waits for no token any more."""
        if (kept := self._claims.pop(session_id, None)) is not None:
            kept[0].release(session_id)

    def divide(self, replicas: int, *, is_fresh: bool) -> None:
        """Leaves this process its share, of `replicas`. A fresh one begins as if all had been used until now."""
        for allowances in self._of.values():
            for allowance in allowances.values():
                allowance.divide(replicas, self._clock())
                if is_fresh:
                    allowance.begin_used(self._clock())

    def load(self, resource: str) -> dict[str, float]:
        """The used share of each quota of the resource, from 0 to 1."""
        return {name: round(each.load(self._clock()), 3) for name, each in self._of[resource].items()}

    def _allowance(self, resource: str, route: str) -> Allowance | None:
        if route.startswith("voice_live"):
            return self._of[resource].get("voice_live")
        return self._of[resource].get("mints") if route in _MINT_ROUTES else None

    def _claim(self, allowance: Allowance, session_id: str, now_s: float, due_s: float) -> None:
        """The talk waits where it is served first."""
        kept = self._claims.get(session_id)
        if kept is not None and kept[0] is not allowance:
            if now_s - _CLAIM_GRACE_S <= kept[1] <= due_s:
                return
            kept[0].release(session_id)
        allowance.claim(session_id, due_s)
        self._claims[session_id] = (allowance, due_s)
        for waiting, (_, until_s) in list(self._claims.items()):
            if until_s + _CLAIM_GRACE_S < now_s:
                del self._claims[waiting]
