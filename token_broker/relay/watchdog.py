"""The watchdog of a talk: one periodic check of everything that may take too long, instead of a timer for each wait."""

from dataclasses import dataclass

from token_broker.relay.azure.socket import AzureSocket
from token_broker.server.close_codes import CLIENT_STALLED, DONE, UPSTREAM_FAILED, Ending
from token_broker.settings import Settings

__all__ = ["Snapshot", "Watchdog", "tick_s"]

_LONGEST_TICK_S = 1.0
_SHORTEST_TICK_S = 0.01  # for limits that tests shorten


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A talk at one moment. `sending`, `azure_full`: a frame waits to be accepted, by the client or by Azure."""

    frames_from_client: int
    frames_to_client: int
    sending: bool
    azure_full: bool
    azure: AzureSocket


class Watchdog:
    """Compares each snapshot with the ones before. Times are of the event loop's clock."""

    def __init__(self, settings: Settings, now_s: float) -> None:
        self._settings = settings
        self._began_s = now_s
        self._pinged_s = now_s
        self._client = _StallTimer(now_s)
        self._to_client = _StallTimer(now_s)
        self._to_azure = _StallTimer(now_s)

    def overdue(self, now_s: float, snapshot: Snapshot | None) -> Ending | None:
        """Why the talk must end now, or None; also pings Azure. `snapshot` is None while no upstream is connected."""
        settings = self._settings
        if now_s - self._began_s >= settings.max_talk_s:
            return Ending(DONE, "the talk has reached its longest time: ask for a new plan")
        if snapshot is None:
            return None
        if self._client.still_s(snapshot.frames_from_client, now_s) >= settings.idle_timeout_s:
            return Ending(DONE, "nothing was heard from the client for long: ask for a new plan")
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
