"""The watchdog of a talk: one periodic check of everything that may take too long, instead of a timer for each wait."""

from dataclasses import dataclass

from token_broker.relay.azure.socket import AzureSocket
from token_broker.server.close_codes import CLIENT_STALLED, DONE, Ending
from token_broker.settings import Settings

__all__ = ["BUDGET_USED", "Snapshot", "SoftEnd", "Watchdog", "tick_s"]

BUDGET_USED = Ending(DONE, "the budget of today is used up", "budget_used", ends_talk=True, outcome="budget")
_LONGEST_TICK_S = 1.0
_STALL_S = 3.0
_PONG_S = 5.0  # an answer to a ping takes milliseconds
_SHORTEST_TICK_S = 0.01  # for limits that tests shorten


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A talk at one moment. `sending`, `azure_full`: a frame waits to be accepted, by the client or by Azure.

    `pings` are the client's. `answering`: an answer is being made, or played.
    """

    frames_from_client: int
    frames_to_client: int
    pings: int
    answering: bool
    sending: bool
    azure_full: bool
    azure: AzureSocket


class SoftEnd:
    """The end of what its budget permits a talk, in some seconds. Nothing is due before `begin`."""

    def __init__(self) -> None:
        self._left_s: float | None = None
        self._ends_s: float | None = None
        self._plays_last = False

    def begin(self, left_s: float, when_quiet: bool, now_s: float | None = None) -> None:
        """It comes with the end of what is being played, and in `left_s` at the latest, from now or from the next look.

        `when_quiet`: at once where nothing is.
        """
        self._left_s, self._plays_last = left_s, when_quiet
        self._ends_s = None if now_s is None else now_s + left_s

    def is_due(self, now_s: float, answering: bool | None) -> bool:
        """Whether the talk is to end now. `answering`: an answer is being made, or played; None is unknown."""
        if self._left_s is None:
            return False
        if self._ends_s is None:
            self._ends_s = now_s + self._left_s
        if answering:
            self._plays_last = True
        elif answering is not None and self._plays_last:
            return True
        return now_s >= self._ends_s


class Watchdog:
    """Compares each snapshot with the ones before. Times are of the event loop's clock.

    `longest_s` bounds the talk further, which is `age_s` old already; `idle_s` is another bound of its silence.
    """

    def __init__(
        self,
        settings: Settings,
        now_s: float,
        *,
        longest_s: float | None = None,
        age_s: float = 0.0,
        idle_s: float | None = None,
    ) -> None:
        self._settings = settings
        self._idle_s = settings.idle_timeout_s if idle_s is None else idle_s
        self._longest_s = settings.max_talk_s if longest_s is None else min(settings.max_talk_s, longest_s - age_s)
        self._budget = SoftEnd()
        self._began_s = now_s
        self._pinged_s = now_s
        self._looked_s = now_s
        self._heard_s = now_s  # the last sign of life
        self._signs = (0, 0)
        self._to_client = _StallTimer(now_s)
        self._to_azure = _StallTimer(now_s)

    def overdue(self, now_s: float, snapshot: Snapshot | None) -> Ending | None:
        """Why the talk must end now, or None. `snapshot` is None while no upstream is connected."""
        settings = self._settings
        if now_s - self._began_s >= self._longest_s:
            why = "the talk has reached its longest time: ask for a new plan"
            return Ending(DONE, why, "talk_too_long", ends_talk=True, outcome="longest_time")
        if self._budget.is_due(now_s, None if snapshot is None else snapshot.answering):
            return BUDGET_USED
        if snapshot is None:
            return None
        signs = (snapshot.frames_from_client, snapshot.pings)
        if signs != self._signs or snapshot.answering:
            self._signs, self._heard_s = signs, now_s
        if now_s - self._heard_s >= self._idle_s:
            why = "nothing was heard from the client for long: ask for a new plan"
            return Ending(DONE, why, "idle_timeout", ends_talk=True, outcome="idle")
        # A client is stalled only while a frame waits for it: a silent Azure is not its fault.
        waiting = snapshot.frames_to_client if snapshot.sending else None
        if self._to_client.still_s(waiting, now_s) >= settings.client_write_timeout_s:
            return Ending(CLIENT_STALLED, "the client does not read")
        return None

    def end_softly(self, left_s: float, when_quiet: bool) -> None:
        """The budget is used up: the talk ends with what is being played, and in `left_s` at the latest.

        `when_quiet`: at once where nothing is.
        """
        self._budget.begin(left_s, when_quiet)

    def azure_is_dead(self, now_s: float, snapshot: Snapshot) -> bool:
        """Whether Azure's side accepts no data, or leaves a ping unanswered; also pings Azure."""
        waiting = snapshot.frames_from_client if snapshot.azure_full else None
        if self._to_azure.still_s(waiting, now_s) >= self._settings.client_write_timeout_s:
            return True
        stalled, self._looked_s = now_s - self._looked_s > _STALL_S, now_s
        if stalled:  # our own loop stood still: a pong that has come is not read yet
            self._pinged_s = now_s
            return False
        # The next ping is due when the last one has to be answered.
        if now_s - self._pinged_s < min(self._settings.ping_interval_s, _PONG_S):
            return False
        self._pinged_s = now_s
        return not snapshot.azure.ping()


def tick_s(settings: Settings) -> float:
    """The interval between checks: a tenth of the shortest limit, a second at most."""
    shortest = min(
        settings.idle_timeout_s, settings.client_write_timeout_s, settings.ping_interval_s, settings.max_talk_s
    )
    return max(_SHORTEST_TICK_S, min(_LONGEST_TICK_S, shortest / 10))


class _StallTimer:
    """How long a count has not moved. None is not a count, and never still."""

    def __init__(self, now_s: float) -> None:
        self._count: int | None = None
        self._since_s = now_s

    def still_s(self, count: int | None, now_s: float) -> float:
        if count is None or count != self._count:
            self._count = count
            self._since_s = now_s
        return now_s - self._since_s
