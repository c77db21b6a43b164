"""The pages name both ports that WebRTC may use, and say that the WebSocket needs neither."""

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("deploy.md", ("UDP 3478 or TCP 3478", "TCP 443")),
        ("runbook.md", ("both UDP 3478 and TCP 3478", "One of them, outbound, is enough")),
        ("scaling.md", ("UDP 3478 (or at least TCP 3478)",)),
        ("clients.md", ("UDP and TCP 3478 are blocked",)),
    ],
)
def test_ice_over_tcp_is_named_beside_udp(page: str, words: tuple[str, ...]) -> None:
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert all(word in text for word in words)
