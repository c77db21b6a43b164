"""The arithmetic of docs/scaling.md: reads its table of constants, works out its table of sizes, and puts that back.

    python -m benchmarks.scaling          writes the table of sizes anew
    python -m benchmarks.scaling --check  only says whether it is what the constants give; exit code 1 if not

So whoever measures again changes one number in the document and runs this.
"""
# ruff: noqa: RUF001  # the sign of multiplication is meant

import argparse
import dataclasses
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- sizes: written by python -m benchmarks.scaling -->", "<!-- end of sizes -->"
TALKS = (1_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Constants:
    """The first table's numbers, by the names they have there."""

    talk_minutes: float
    proxied_share: float
    turns_per_minute: float
    proxied_messages_per_s: float
    proxied_kbyte_per_s: float
    mint_cpu_us: float
    relayed_message_cpu_us: float
    replica_memory_mb: float
    talk_memory_kb: float
    durable_turns_per_s: float
    cpu_target: float
    talks_per_replica: float
    voice_live_connections_per_minute: float

    @classmethod
    def read(cls, text: str) -> "Constants":
        """From the rows `| `name` | number | …`. Raises `KeyError` where one is missing."""
        rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.,]+) \|", text, flags=re.MULTILINE))
        return cls(**{field.name: float(rows[field.name].replace(",", "")) for field in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Size:
    """What so many talks at once need."""

    talks: int
    new_talks_per_s: float
    mint_cores: float
    proxied_talks: float
    relay_cores: float
    replicas: int
    memory_gb: float
    proxied_gbit_per_s: float
    turns_per_s: float
    databases: int
    voice_resources: int

    @classmethod
    def of(cls, talks: int, c: Constants) -> "Size":
        new_talks_per_s = talks / (c.talk_minutes * 60)
        mint_cores = new_talks_per_s * c.mint_cpu_us / 1e6
        proxied = talks * c.proxied_share
        relay_cores = proxied * c.proxied_messages_per_s * c.relayed_message_cpu_us / 1e6
        by_cpu = (mint_cores + relay_cores) / c.cpu_target
        replicas = max(2, math.ceil(by_cpu), math.ceil(proxied / c.talks_per_replica))
        turns_per_s = talks * c.turns_per_minute / 60
        return cls(
            talks=talks,
            new_talks_per_s=new_talks_per_s,
            mint_cores=mint_cores,
            proxied_talks=proxied,
            relay_cores=relay_cores,
            replicas=replicas,
            memory_gb=(replicas * c.replica_memory_mb + proxied * c.talk_memory_kb / 1000) / 1000,
            proxied_gbit_per_s=proxied * c.proxied_kbyte_per_s * 8 / 1e6,
            turns_per_s=turns_per_s,
            databases=math.ceil(turns_per_s / c.durable_turns_per_s),
            voice_resources=math.ceil(new_talks_per_s * 60 * c.proxied_share / c.voice_live_connections_per_minute),
        )


ROWS = (
    ("new talks a second", "new_talks_per_s", "talks ÷ (`talk_minutes` × 60)"),
    ("cores that mint", "mint_cores", "new talks × `mint_cpu_us`"),
    ("proxied talks", "proxied_talks", "talks × `proxied_share`"),
    ("cores that relay", "relay_cores", "proxied × `proxied_messages_per_s` × `relayed_message_cpu_us`"),
    (
        "replicas of one core",
        "replicas",
        "the greater of cores ÷ `cpu_target` and proxied ÷ `talks_per_replica`; at least 2",
    ),
    ("memory of all, GB", "memory_gb", "replicas × `replica_memory_mb` + proxied × `talk_memory_kb`"),
    ("relayed each way, Gbit/s", "proxied_gbit_per_s", "proxied × `proxied_kbyte_per_s`"),
    ("turns a second", "turns_per_s", "talks × `turns_per_minute` ÷ 60"),
    ("PostgreSQL primaries", "databases", "turns ÷ `durable_turns_per_s`"),
    ("Voice Live resources", "voice_resources", "proxied new talks a minute ÷ `voice_live_connections_per_minute`"),
)


def number(value: float) -> str:
    """Two figures are all that such arithmetic is good for; what is counted is whole."""
    if isinstance(value, int) or value >= 100:
        return f"{round(value):,}"
    return f"{value:.2g}"


def table(constants: Constants) -> str:
    """The table of sizes, as Markdown."""
    sizes = [Size.of(talks, constants) for talks in TALKS]
    lines = [
        "| at once | " + " | ".join(f"{size.talks:,} talks" for size in sizes) + " | from |",
        "|---|" + "---:|" * len(sizes) + "---|",
    ]
    for title, field, formula in ROWS:
        cells = " | ".join(number(getattr(size, field)) for size in sizes)
        lines.append(f"| {title} | {cells} | {formula} |")
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """The document with its table of sizes as its constants give it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"the document has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table(Constants.read(text))}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is stale")
    given = parser.parse_args()
    text = DOCUMENT.read_text()
    fresh = rewritten(text)
    if given.check:
        sys.exit(fresh != text)
    DOCUMENT.write_text(fresh)
    print(table(Constants.read(text)))


if __name__ == "__main__":
    main()
