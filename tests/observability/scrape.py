"""Reads `/metrics` as Prometheus does."""

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Scrape", "scrape"]


@dataclass(frozen=True, slots=True)
class Scrape:
    """One scrape: every sample by name and labels, and the name of every series that there is or may be."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]
    names: frozenset[str]

    def of(self, name: str, /, **labels: str) -> float:
        """The sample's value; 0 where there is none yet."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, /, **labels: str) -> float:
        """The sum over all samples that have these labels."""
        return sum(
            value for (sample, its), value in self.samples.items() if sample == name and its >= set(labels.items())
        )

    def label_values(self, name: str) -> set[str]:
        """Every value of every label of these samples."""
        return {value for sample, labels in self.samples if sample == name for _, value in labels}


_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}


async def scrape(client: httpx.AsyncClient, **headers: str) -> Scrape:
    """Scrapes the broker that `client` speaks to."""
    answer = await client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    families = list(text_string_to_metric_families(answer.text))
    return Scrape(
        {(sample.name, frozenset(sample.labels.items())): sample.value for f in families for sample in f.samples},
        frozenset(f"{f.name}{suffix}" for f in families for suffix in _SUFFIXES.get(f.type, ("",)))
        | {sample.name for f in families for sample in f.samples},
    )
