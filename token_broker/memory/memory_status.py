"""The memory's status, for `/status` and `/metrics`."""

from dataclasses import dataclass
from typing import Literal

from token_broker.settings import SinkName

__all__ = ["MemoryStatus", "SinkStatus", "StoreState"]

StoreState = Literal["opening", "open", "away"]


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """A sink. `queued`, `oldest_age_s`, `dead` and `pending_erasures` are the store's, over all replicas.

    `used`: it is among BROKER_MEMORY_SINKS. `rests_for_s`: how long it is left alone, since it failed or asked for it.
    """

    sink: SinkName
    used: bool
    queued: int
    oldest_age_s: float
    dead: int
    pending_erasures: int
    delivered: int
    delivery_failures: int
    delivery_limit: int
    lost_leases: int
    dropped_notices: int
    rests_for_s: float
    last_delivery_failure: str | None


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """A snapshot. Counts are this process's since it began; what all sinks have is summed up beside `sinks`.

    `queued`, `oldest_age_s`, `dead` and `pending_erasures` are the store's, over all replicas, as of `outbox_age_s` ago
    (None: never read yet); `blocked` as of `blocklist_age_s` ago. `full_sessions` and `short_of_disk` are turns that
    were refused for it. `disk_free_bytes` is None where the disk is not ours, or cannot be looked at.
    """

    store: StoreState
    store_reason: str | None
    sinks: list[SinkStatus]  # none: the store is the memory
    queued: int
    oldest_age_s: float
    dead: int
    pending_erasures: int
    outbox_age_s: float | None
    stored: int
    duplicates: int
    foreign: int
    full_sessions: int
    disk_is_short: bool
    disk_free_bytes: int | None
    short_of_disk: int
    refused: int
    commits: int
    failed_commits: int
    waiting: int
    buffered: int
    overflowed: int
    delivered: int
    delivery_failures: int
    tickets_spent_locally: int
    sessions_unanswered: int
    blocked: int
    blocklist_age_s: float | None
    blocklist_unread: int
    recalls: int
    recalls_late: int
    recalls_failed: int
    recalls_repeated: int
