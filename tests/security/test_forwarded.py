"""Who asks behind proxies: tables of what was sent and believed, and a fuzz that a stranger's word never is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_broker.web.requests import ResolvedClient, address_key, asked_host, client_of, public_base, websocket_url

NOBODY: tuple[str, ...] = ()
ONE_HOP = ("1",)
TWO_HOPS = ("2",)
INSIDE = ("10.0.0.0/8", "fd00::/8")


def scope(
    *headers: tuple[str, str], peer: str | None = "10.0.0.1", scheme: str = "http", host: str | None = "broker.test"
) -> dict[str, Any]:
    sent = [*headers, *([("host", host)] if host is not None else [])]
    return {
        "type": "websocket" if scheme.startswith("ws") else "http",
        "scheme": scheme,
        "client": (peer, 4711) if peer else None,
        "server": ("127.0.0.1", 8080),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent],
    }


def xff(*lines: str) -> list[tuple[str, str]]:
    return [("X-Forwarded-For", line) for line in lines]


@pytest.mark.parametrize(
    ("lines", "trusted", "peer", "address"),
    [
        (["203.0.113.9"], NOBODY, "10.0.0.1", "10.0.0.1"),  # nothing is believed by default
        (["203.0.113.9"], ONE_HOP, "10.0.0.1", "203.0.113.9"),
        (["6.6.6.6, 203.0.113.9"], ONE_HOP, "10.0.0.1", "203.0.113.9"),  # the left part is the caller's own claim
        (["6.6.6.6", "203.0.113.9"], ONE_HOP, "10.0.0.1", "203.0.113.9"),  # several lines are one list
        (["6.6.6.6, 203.0.113.9, 10.0.0.2"], TWO_HOPS, "10.0.0.1", "203.0.113.9"),
        (["203.0.113.9"], TWO_HOPS, "10.0.0.1", "203.0.113.9"),  # shorter than promised: as far as it goes
        ([], ONE_HOP, "10.0.0.1", "10.0.0.1"),
        (["garbage"], ONE_HOP, "10.0.0.1", "10.0.0.1"),
        (["203.0.113.9"], INSIDE, "10.0.0.1", "203.0.113.9"),
        (["203.0.113.9"], INSIDE, "192.0.2.1", "192.0.2.1"),  # the peer itself is a stranger
        (["6.6.6.6, 203.0.113.9, 10.9.9.9"], INSIDE, "10.0.0.1", "203.0.113.9"),
        (["10.1.1.1, 10.2.2.2"], INSIDE, "10.0.0.1", "10.1.1.1"),  # all inside: the leftmost
        (["203.0.113.9, unknown"], INSIDE, "10.0.0.1", "10.0.0.1"),  # never past what can't be read
        (["203.0.113.9:5123"], ONE_HOP, "10.0.0.1", "203.0.113.9"),  # Application Gateway adds the port
        (["[2001:db8::7]:5123"], ONE_HOP, "10.0.0.1", "2001:db8::7"),
        (["[2001:db8::7]"], ONE_HOP, "10.0.0.1", "2001:db8::7"),
        (["2001:DB8::7"], ONE_HOP, "10.0.0.1", "2001:db8::7"),
        (["203.0.113.9"], INSIDE, "::ffff:10.0.0.1", "203.0.113.9"),  # a dual-stack socket's way to write IPv4
        (["203.0.113.9"], INSIDE, "fd00::1", "203.0.113.9"),
        (["203.0.113.9"], ONE_HOP, None, "203.0.113.9"),  # a unix socket has no peer
        (["203.0.113.9"], NOBODY, None, "unknown"),
    ],
)
def test_client_is_first_untrusted_address(
    lines: list[str], trusted: tuple[str, ...], peer: str | None, address: str
) -> None:
    assert client_of(scope(*xff(*lines), peer=peer), trusted).address == address


@pytest.mark.parametrize(
    ("headers", "trusted", "scheme", "host"),
    [
        ([("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "v.example")], NOBODY, "http", "broker.test"),
        ([("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "V.Example")], ONE_HOP, "https", "v.example"),
        ([("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "v.example:443")], ONE_HOP, "https", "v.example"),
        ([("X-Forwarded-Proto", "http, https")], ONE_HOP, "https", "broker.test"),  # the left one was sent to the proxy
        ([("X-Forwarded-Proto", "http"), ("X-Forwarded-Proto", "https")], ONE_HOP, "https", "broker.test"),
        ([("X-Forwarded-Proto", "wss")], ONE_HOP, "https", "broker.test"),
        ([("X-Forwarded-Proto", "javascript")], ONE_HOP, "http", "broker.test"),
        ([("X-Forwarded-Host", "a.example/../b")], ONE_HOP, "http", "broker.test"),
        ([("X-Forwarded-Host", "evil.example, v.example")], ONE_HOP, "http", "v.example"),
        ([("X-Forwarded-Host", "[::1]:8443")], ONE_HOP, "http", "[::1]:8443"),
        ([("X-Forwarded-Host", "v.example:99999")], ONE_HOP, "http", "broker.test"),
    ],
)
def test_scheme_and_host_from_trusted_proxy_only(
    headers: list[tuple[str, str]], trusted: tuple[str, ...], scheme: str, host: str
) -> None:
    client = client_of(scope(*headers), trusted)
    assert (client.scheme, client.host) == (scheme, host)


def test_a_websocket_is_read_as_http_is() -> None:
    sent = [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https")]
    plain = client_of(scope(*sent), ONE_HOP)
    assert (
        client_of(scope(*sent, scheme="ws"), ONE_HOP) == plain == ResolvedClient("203.0.113.9", "https", "broker.test")
    )
    assert client_of(scope(scheme="wss"), NOBODY).scheme == "https"


@pytest.mark.parametrize(
    ("hosts", "host"),
    [
        ([], "127.0.0.1:8080"),
        (["a.test", "b.test"], "127.0.0.1:8080"),
        (["a b"], "127.0.0.1:8080"),
        (["user@a.test"], "127.0.0.1:8080"),
        (["a.test:80"], "a.test"),
        (["a.test:08080"], "a.test:8080"),
        (["[::1]:8080"], "[::1]:8080"),
        (["[2001:DB8:0:0::1]"], "[2001:db8::1]"),
        (["A.test."], "a.test"),
        (["a.test.:8080"], "a.test:8080"),
        (["[12]"], "127.0.0.1:8080"),
    ],
)
def test_unusable_host_yields_own_address(hosts: list[str], host: str) -> None:
    asked = scope(*[("Host", value) for value in hosts], host=None)
    assert client_of(asked, NOBODY).host == host
    nobody_can_say = bool(hosts) and host == "127.0.0.1:8080"
    assert asked_host(asked, NOBODY) == (None if nobody_can_say else host)


@given(
    lines=st.lists(st.text(alphabet=st.characters(max_codepoint=255), max_size=60), max_size=5),
    trusted=st.sampled_from([NOBODY, ONE_HOP, TWO_HOPS, INSIDE]),
)
def test_any_forwarded_header_from_stranger_ignored(lines: list[str], trusted: tuple[str, ...]) -> None:
    names = ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"]
    headers = [(name, line) for line in lines for name in names]
    found = client_of(scope(*headers), trusted)
    assert found.scheme in {"http", "https"}
    assert found.host
    from_a_stranger = client_of(scope(*headers, peer="192.0.2.1"), INSIDE)
    assert from_a_stranger == ResolvedClient("192.0.2.1", "http", "broker.test")


def test_plan_base_is_public_url_else_request() -> None:
    assert public_base(scope(scheme="ws"), None, NOBODY) == "http://broker.test"
    assert public_base(scope(), "https://voice.example/base/", NOBODY) == "https://voice.example/base"


def test_websocket_urls_keep_their_security() -> None:
    assert websocket_url("https://voice.example") == "wss://voice.example"
    assert websocket_url("http://127.0.0.1:8080") == "ws://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("unknown", "unknown"),
    ],
)
def test_limit_key_is_address_or_ipv6_64(address: str, key: str) -> None:
    assert address_key(address) == key
