"""The tables of docs/scaling.md: the second is what the first gives, and the arithmetic is right."""

import dataclasses

import pytest

from benchmarks.scaling import DOCUMENT, Constants, Size, rewritten
from tests.infra.bicep import INFRA, read_parameters

ROUND = Constants(
    talk_minutes=10,
    proxied_share=0.5,
    turns_per_minute=6,
    proxied_messages_per_s=100,
    proxied_kbyte_per_s=50,
    mint_cpu_us=1000,
    relayed_message_cpu_us=10,
    replica_memory_mb=100,
    talk_memory_kb=1000,
    durable_turns_per_s=1000,
    cpu_target=0.5,
    talks_per_replica=1000,
    voice_live_connections_per_minute=60,
)


def test_sizes_follow_from_the_constants() -> None:
    text = DOCUMENT.read_text()
    assert rewritten(text) == text


def test_page_agrees_with_the_bicep() -> None:
    constants = Constants.read(DOCUMENT.read_text())
    production = read_parameters(INFRA / "parameters" / "production.broker.bicepparam")
    assert constants.talks_per_replica == production["talksPerReplica"]
    rule = f"value: '{round(constants.cpu_target * 100)}'"
    assert rule in (INFRA / "modules" / "backend-aca.bicep").read_text()


def test_arithmetic_by_hand() -> None:
    size = Size.of(60_000, ROUND)
    assert size.new_talks_per_s == 100  # 60,000 talks of 600 s
    assert size.mint_cores == pytest.approx(0.1)  # 100 a second, 1 ms each
    assert size.proxied_talks == 30_000
    assert size.relay_cores == pytest.approx(30)  # 30,000 talks x 100 messages x 10 µs
    assert size.replicas == 61  # 30.1 cores at half use
    assert size.memory_gb == pytest.approx(36.1)  # 61 x 0.1 GB and 30,000 x 1 MB
    assert size.proxied_gbit_per_s == pytest.approx(12)  # 30,000 x 50 kB x 8
    assert size.turns_per_s == 6000
    assert size.databases == 6
    assert size.voice_resources == 50  # 3,000 proxied newcomers a minute, 60 each


def test_cheap_talks_are_limited_by_sockets() -> None:
    cheap = dataclasses.replace(ROUND, relayed_message_cpu_us=0.01)
    assert Size.of(60_000, cheap).replicas == 30  # 30,000 proxied talks, 1,000 a replica
    assert Size.of(1, cheap).replicas == 2


def test_missing_constant_is_named() -> None:
    text = DOCUMENT.read_text().replace("| `talk_minutes` |", "| talk minutes |")
    with pytest.raises(KeyError, match="talk_minutes"):
        Constants.read(text)
