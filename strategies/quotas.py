"""Azure's quotas, kept by us, so that a resource is left alone before it refuses.

A quota is a sliding window: a token that was taken comes back when the window has passed. A bucket that refills evenly
would let twice its quota through within the first window. Pure but for the times that were noted; callers bring the
time.
"""

from collections import deque
from dataclasses import dataclass, field

__all__ = ["CLAIM_GRACE_S", "Allowance", "Quotas", "Window", "allowances_of"]

# The share of a quota that new talks leave to running ones that have to move: 1 in 20.
_RESERVE = 20
# How long after the time it was told a waiting talk keeps its claim. It may be late, or have gone elsewhere.
CLAIM_GRACE_S = 2.0


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
        self._taken_s: deque[float] = deque()

    def divide(self, replicas: int) -> None:
        """Leaves this process a share, rounded down. Less than one token a window is one in a longer window."""
        self.limit = self._quota // replicas or 1
        self.length_s = self._quota_length_s * max(1.0, replicas / self._quota)

    def begin_used(self, now_s: float) -> None:
        """Takes all tokens, as if evenly over the last window: they come back one by one."""
        self._taken_s.extend(now_s - self.length_s * (1 - step / self.limit) for step in range(1, self.limit + 1))

    def used(self, now_s: float) -> int:
        """How many tokens are taken."""
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

    def claim(self, claimant: str, due_s: float) -> None:
        """The running talk comes back at `due_s`. One that claims again keeps its place."""
        self._claims[claimant] = due_s + CLAIM_GRACE_S

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

    def divide(self, replicas: int) -> None:
        """Leaves this process its share, of `replicas`."""
        for window in self.windows:
            window.divide(replicas)

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
