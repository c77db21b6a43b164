"""The watchdog of a talk: one periodic check of everything that may take too long, instead of a timer for each wait."""

from dataclasses import dataclass

from token_broker.relay.azure.socket import AzureSocket
from token_broker.server.close_codes import CLIENT_STALLED, DONE, UPSTREAM_FAILED, Ending
from token_broker.settings import Settings

__all__ = ["Snapshot", "Watchdog", "tick_s"]

_LONGEST_TICK_S = 1.0
_BEFORE_EXPIRY_S = 2.0  # the broker ends the talk a little before Azure does, so that the client is told why
_ANNOUNCED_S = 60.0
_SHORTEST_TICK_S = 0.01  # for limits that tests shorten


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A talk at one moment. `sending`, `azure_full`: a frame waits to be accepted, by the client or by Azure.

    `pings` are the client's. `answering`: an answer is being made, or played. `expires_s` is the time, of the loop's
    clock, at which Azure ends the session; None where Azure has not said it.
    """

    frames_from_client: int
    frames_to_client: int
    pings: int
    answering: bool
    expires_s: float | None
    sending: bool
    azure_full: bool
    azure: AzureSocket


class Watchdog:
    """Compares each snapshot with the ones before. Times are of the event loop's clock."""

    def __init__(self, settings: Settings, now_s: float) -> None:
        self._settings = settings
        self._began_s = now_s
        self._pinged_s = now_s
        self._heard_s = now_s  # the last sign of life
        self._signs = (0, 0)
        self._announced: float | None = None
        self._to_client = _StallTimer(now_s)
        self._to_azure = _StallTimer(now_s)

    def overdue(self, now_s: float, snapshot: Snapshot | None) -> Ending | None:
        """Why the talk must end now, or None; also pings Azure. `snapshot` is None while no upstream is connected."""
        settings = self._settings
        if now_s - self._began_s >= settings.max_talk_s:
            return Ending(DONE, "the talk has reached its longest time: ask for a new plan", "talk_too_long")
        if snapshot is None:
            return None
        if snapshot.expires_s is not None and now_s >= snapshot.expires_s - _BEFORE_EXPIRY_S:
            return Ending(DONE, "Azure's session has reached its longest time: ask for a new plan", "session_expired")
        signs = (snapshot.frames_from_client, snapshot.pings)
        if signs != self._signs or snapshot.answering:
            self._signs, self._heard_s = signs, now_s
        if now_s - self._heard_s >= settings.idle_timeout_s:
            return Ending(DONE, "nothing was heard from the client for long: ask for a new plan", "idle_timeout")
        # A client is stalled only while a frame waits for it: a silent Azure is not its fault.
        waiting = snapshot.frames_to_client if snapshot.sending else None
        if self._to_client.still_s(waiting, now_s) >= settings.client_write_timeout_s:
            return Ending(CLIENT_STALLED, "the client does not read")
        waiting = snapshot.frames_from_client if snapshot.azure_full else None
        if self._to_azure.still_s(waiting, now_s) >= settings.client_write_timeout_s:
            return Ending(UPSTREAM_FAILED, "Azure takes no more data: ask for a new plan")
        if now_s - self._pinged_s >= settings.ping_interval_s:
            self._pinged_s = now_s
            if not snapshot.azure.ping():
                return Ending(UPSTREAM_FAILED, "Azure fell silent: ask for a new plan")
        return None

    def to_announce_s(self, now_s: float, expires_s: float | None) -> float | None:
        """How long Azure's session still lives, once for each session, a minute before its end."""
        if expires_s is None or expires_s == self._announced or now_s < expires_s - _ANNOUNCED_S:
            return None
        self._announced = expires_s
        return max(0.0, expires_s - now_s)


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
