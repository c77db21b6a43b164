"""Azure resources as the pool sees them: what each is, who may use it, and in which order a talk prefers them.

Pure: no clock and no state. The order depends on names, priorities and weights alone, never on the order of the file.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from strategies.endpoint import Target
from strategies.quotas import Quotas

__all__ = ["Quotas", "Resource", "Wanted", "by_preference", "is_allowed", "uniform"]

_UNKNOWN = Quotas()
_HASH_BYTES = 8
_HASHES = float(256**_HASH_BYTES)


@dataclass(frozen=True, slots=True)
class Resource:
    """One Azure resource. `model` and `transcription_model` are the names of its deployments.

    Of several, those of the lowest `priority` are asked first, each for a share of the talks by `weight`; a weight of 0
    is for when no other resource is left.
    """

    name: str  # [a-z0-9-]{1,32}
    target: Target
    model: str
    model_family: str  # gpt-realtime, gpt-realtime-2, gpt-live or other
    transcription_model: str
    priority: int = 1
    weight: int = 1
    zone: str = ""  # a free label for data residency
    quotas: Quotas = _UNKNOWN
    voice_live_version: str = ""  # Voice Live's api-version; empty where it isn't known


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who asks. `zones` and `resources` restrict which resources may be used; empty is no restriction.

    `resources` are patterns as `fnmatch` takes them. `running` is a talk that has to move: it comes before new ones.
    `model` is the deployment that the agent wants, where it is another than the resource's.
    """

    session_id: str
    agent_id: str
    zones: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    running: bool = False
    model: str = ""


def is_allowed(resource: Resource, wanted: Wanted) -> bool:
    """Whether residency lets `wanted` use the resource, healthy or not."""
    if wanted.zones and resource.zone not in wanted.zones:
        return False
    return not wanted.resources or any(fnmatchcase(resource.name, pattern) for pattern in wanted.resources)


def by_preference(resources: Iterable[Resource], session_id: str) -> tuple[Resource, ...]:
    """All of `resources` as this session prefers them: the lowest priority first, and weight 0 after all others.

    Among equal priorities a weighted rendezvous hash decides. Each resource's score depends on its own name and the
    session's id alone, so that without one resource only the sessions that preferred it go elsewhere.
    """
    return tuple(
        sorted(
            resources,
            # The logarithm makes the share of first places exactly proportional to the weights.
            key=lambda each: (
                each.weight == 0,
                each.priority,
                math.log(uniform(each.name, session_id)) / -(each.weight or 1),
                each.name,
            ),
        )
    )


def uniform(*parts: str) -> float:
    """A number in (0, 1) that is always the same for the same `parts`, and spread evenly over all others."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=_HASH_BYTES).digest()
    return (int.from_bytes(digest) + 0.5) / _HASHES
