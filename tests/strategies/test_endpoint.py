"""Endpoints: what each host is, what is derived from it, and what is refused."""

import pytest

from strategies.endpoint import EndpointError, EndpointKind, Target, is_loopback, parse_endpoint, parse_target

DIRECT, UNIFIED = EndpointKind.DIRECT, EndpointKind.UNIFIED


@pytest.mark.parametrize(
    ("endpoint", "kind", "base", "openai_base"),
    [
        # One resource has three hosts that share its name: GA mints on the first.
        ("https://x.openai.azure.com", DIRECT, "https://x.openai.azure.com", "https://x.openai.azure.com"),
        ("https://x.openai.azure.com/", DIRECT, "https://x.openai.azure.com", "https://x.openai.azure.com"),
        ("https://x.openai.azure.com///", DIRECT, "https://x.openai.azure.com", "https://x.openai.azure.com"),
        ("https://X.OpenAI.Azure.com", DIRECT, "https://x.openai.azure.com", "https://x.openai.azure.com"),
        ("https://x.services.ai.azure.com", UNIFIED, "https://x.services.ai.azure.com", "https://x.openai.azure.com"),
        ("https://x.openai.azure.us", DIRECT, "https://x.openai.azure.us", "https://x.openai.azure.us"),
        ("https://x.openai.azure.cn", DIRECT, "https://x.openai.azure.cn", "https://x.openai.azure.cn"),
        ("https://x.services.ai.azure.cn", UNIFIED, "https://x.services.ai.azure.cn", "https://x.openai.azure.cn"),
        ("https://a-b.services.ai.azure.us/", UNIFIED, "https://a-b.services.ai.azure.us", "https://a-b.openai.azure.us"),
        # GA's routes work on this host too, and nothing says that the name has the sibling: nothing is derived.
        (
            "https://x.cognitiveservices.azure.com",
            UNIFIED,
            "https://x.cognitiveservices.azure.com",
            "https://x.cognitiveservices.azure.com",
        ),
        ("https://gateway.example.com/azure", UNIFIED, "https://gateway.example.com/azure", "https://gateway.example.com/azure"),
        ("http://127.0.0.1:9100", UNIFIED, "http://127.0.0.1:9100", "http://127.0.0.1:9100"),
        ("http://[::1]:9100/", UNIFIED, "http://[::1]:9100", "http://[::1]:9100"),
        ("http://localhost", UNIFIED, "http://localhost", "http://localhost"),
        (" https://x.openai.azure.com ", DIRECT, "https://x.openai.azure.com", "https://x.openai.azure.com"),
        # Looks like Azure's, is none: an unknown host.
        ("https://x.openai.azure.com.evil.example", UNIFIED, "https://x.openai.azure.com.evil.example", "https://x.openai.azure.com.evil.example"),
    ],
)  # fmt: skip
def test_endpoint_tells_kind_and_sibling(endpoint: str, kind: EndpointKind, base: str, openai_base: str) -> None:
    assert parse_target(endpoint) == Target(base=base, kind=kind, openai_base=openai_base)


def test_explicit_kind_overrides_the_host() -> None:
    target = parse_target("https://voice.example.com", kind=DIRECT)
    assert (target.kind, target.unified_base, target.openai_base) == (DIRECT, None, "https://voice.example.com")
    assert parse_target("https://x.openai.azure.com", kind=UNIFIED).unified_base == "https://x.openai.azure.com"


def test_given_openai_endpoint_wins() -> None:
    target = parse_target("https://x.services.ai.azure.com", openai_endpoint="https://y.openai.azure.com/", project="p")
    assert (target.openai_base, target.unified_base, target.project) == (
        "https://y.openai.azure.com", "https://x.services.ai.azure.com", "p",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("", "is not an http(s) URL"),
        ("x.openai.azure.com", "is not an http(s) URL"),
        ("https://", "is not an http(s) URL"),
        ("ftp://x.openai.azure.com", "is not an http(s) URL"),
        ("https://x.openai.azure.com/a b", "is not an http(s) URL"),
        ("https://x.openai.azure.com:port", "is not a URL"),
        ("https://x.openai.azure.com:99999", "is not a URL"),
        ("https://[::1", "is not a URL"),
        ("http://x.openai.azure.com", "plain http"),
        ("http://10.0.0.1", "plain http"),
        ("https://user:secret-word@x.openai.azure.com", "must not carry a user"),
        ("https://x.openai.azure.com?api-key=secret-word", "query"),
        ("https://x.openai.azure.com/#secret-word", "fragment"),
        ("https://x.openai.azure.com/openai/v1", "API's path"),
        ("https://x.services.ai.azure.com/api/projects/p", "API's path"),
        ("https://x.services.ai.azure.com/voice-live/realtime", "API's path"),
    ],
)
def test_invalid_endpoint_is_refused_unquoted(endpoint: str, says: str) -> None:
    with pytest.raises(EndpointError) as refused:
        parse_endpoint(endpoint)
    assert says in str(refused.value)
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.255.1.2", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("localhost.example.com", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_hosts(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
