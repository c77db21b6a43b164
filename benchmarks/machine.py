"""How much of this machine's CPU was really there: on a shared host, figures of time mean little without it."""

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["StolenTime"]

_STEAL = 7  # its place among the columns of `cpu` in /proc/stat


def _now() -> tuple[int, int]:
    """Stolen ticks, and all."""
    try:
        columns = [int(column) for column in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    except OSError:
        return 0, 0
    return columns[_STEAL], sum(columns[: _STEAL + 1])


@dataclass(slots=True)
class StolenTime:
    """The share of CPU that the hypervisor gave to others, since this was made; 0 where nobody tells."""

    _began: tuple[int, int] = field(default_factory=_now)

    @property
    def share(self) -> float:
        stolen, all_of_it = (now - before for now, before in zip(_now(), self._began, strict=True))
        return stolen / all_of_it if all_of_it else 0.0

    def tell(self) -> None:
        print(f"The host took {self.share:.0%} of this machine's CPU for others meanwhile.\n")
