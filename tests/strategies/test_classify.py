"""The meaning of Azure's answers, as tables with the arithmetic beside each row."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import errors
from strategies.errors import (
    ApiVersionError,
    CredentialError,
    KeysDisabledError,
    MalformedError,
    MintError,
    MisconfiguredError,
    PermanentError,
    RateLimitedError,
    RejectedError,
    TimedOutError,
    TransientError,
)  # fmt: skip
from strategies.resource_health import Fault, fault_of
from strategies.upstream import MAX_LIFETIME_S, Answer, classify, read_minted, retry_after_s

NOW_S = 1_795_000_000.0


def answer(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, httpx.Headers(headers or {}), raw)


def nested(code: str, message: str = "Some text") -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def http_date(unix_s: float) -> str:
    return format_datetime(datetime.fromtimestamp(unix_s, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b"", RejectedError),
        (400, nested("BadRequest", "API version not supported"), ApiVersionError),
        (400, nested("UnsupportedApiVersion", "no"), ApiVersionError),
        (400, nested("BadRequest", "api-version query parameter is not allowed when using /v1 path"), ApiVersionError),
        (400, {"statusCode": 400, "message": "The api_version is unknown"}, ApiVersionError),
        (400, nested("OpperationNotSupported"), PermanentError),  # sic: Azure's own spelling
        (400, nested("OperationNotSupported"), PermanentError),
        (400, nested("invalid_value", "bad voice"), RejectedError),
        (401, {"statusCode": 401, "message": "Access denied due to invalid subscription key"}, MisconfiguredError),
        (401, nested("PermissionDenied"), MisconfiguredError),
        (403, nested("AuthenticationTypeDisabled"), KeysDisabledError),
        (403, b"<html>", MisconfiguredError),
        (404, nested("404", "Resource not found"), PermanentError),
        (404, nested("DeploymentNotFound"), PermanentError),
        (405, b"", PermanentError),
        (410, b"", PermanentError),
        (501, b"", PermanentError),
        (408, b"", TransientError),
        (409, b"", TransientError),
        (425, b"", TransientError),
        (429, nested("RateLimitReached"), RateLimitedError),
        (500, b"Internal error", TransientError),
        (502, b"<html>", TransientError),
        (503, nested("ServiceUnavailable"), TransientError),
        (504, b"", TransientError),
        (599, b"", TransientError),
        (301, b"", MalformedError),
        (307, b"", MalformedError),
        (304, b"", MalformedError),
        (202, b"", MalformedError),
        (204, b"", MalformedError),
        (100, b"", MalformedError),
        (402, b"", RejectedError),
        (413, b"", RejectedError),
        (415, b"", RejectedError),
        (422, b"", RejectedError),
        # A body that is no error of Azure's changes nothing.
        (500, [1], TransientError),
        (404, {"error": "text"}, PermanentError),
        (404, {"error": {"code": 404, "message": ["x"]}}, PermanentError),
        (400, b"[" * 100_000, RejectedError),
        (400, b"\xff\xfe", RejectedError),
    ],
)
def test_refusal_becomes_its_error(status: int, body: Any, kind: type[MintError]) -> None:
    error = classify(answer(status, body), now_s=NOW_S)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize("status", [200, 201])
def test_success_is_no_error(status: int) -> None:
    assert classify(answer(status, b"anything"), now_s=NOW_S) is None


def test_error_has_code_and_id_but_no_text() -> None:
    told = answer(500, nested("ServerError", "the secret text"), {"apim-request-id": "6f0c-1"})
    error = classify(told, now_s=NOW_S)
    assert error is not None
    assert (error.code, error.request_id) == ("ServerError", "6f0c-1")
    assert "secret text" not in f"{error!r} {error}"


@pytest.mark.parametrize("odd", ["two words", "x" * 65, "<script>", "", "a\nb"])
def test_odd_code_or_request_id_is_left_out(odd: str) -> None:
    told = Answer(500, {"apim-request-id": odd}, json.dumps(nested(odd)).encode())
    error = classify(told, now_s=NOW_S)
    assert error is not None
    assert (error.code, error.request_id) == (None, None)


@given(
    status=st.integers(100, 599), body=st.binary(max_size=200) | st.text().map(lambda text: json.dumps(text).encode())
)
def test_any_answer_is_classified(status: int, body: bytes) -> None:
    error = classify(answer(status, body), now_s=NOW_S)
    assert (error is None) == (status in {200, 201})


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"Retry-After": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),  # 250 ms
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),  # the finer one counts
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "-1", "retry-after": "9"}, 9.0),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after": http_date(NOW_S + 30)}, 30.0),  # a date, by our clock where Azure says no time
        ({"retry-after": http_date(NOW_S + 30), "date": http_date(NOW_S + 20)}, 10.0),  # by Azure's: 30 - 20
        ({"retry-after": http_date(NOW_S - 30)}, None),  # past
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Mon, 99 Foo 2026 99:99:99 GMT"}, None),
    ],
)
def test_retry_after_is_seconds_from_now(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(httpx.Headers(headers), now_s=NOW_S) == wait_s


@given(value=st.text(max_size=40), other=st.text(max_size=40))
def test_any_retry_after_is_sane_or_none(value: str, other: str) -> None:
    wait_s = retry_after_s({"retry-after": value, "date": other}, now_s=NOW_S)
    assert wait_s is None or 0 <= wait_s < float("inf")


@pytest.mark.parametrize(
    ("expires_at", "date_s", "left_s"),
    [
        (NOW_S + 60, None, 60),  # unix seconds, our clock
        (int(NOW_S) + 60, NOW_S, 60),
        (NOW_S + 60.5, None, 60.5),
        (int(NOW_S) + 60, NOW_S + 90, None),  # our clock is 90 s behind: by Azure's it is past (60 - 90)
        (int(NOW_S) + 150, NOW_S + 90, 60),  # 150 - 90
        (int(NOW_S) - 30, NOW_S - 90, 60),  # our clock is 90 s ahead: -30 + 90
        (datetime.fromtimestamp(NOW_S + 60, UTC).isoformat(), None, 60),  # ISO 8601, as the first version has it
        (datetime.fromtimestamp(NOW_S + 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), None, 60),
        (datetime.fromtimestamp(NOW_S + 60, UTC).strftime("%Y-%m-%dT%H:%M:%S"), None, 60),  # no zone: UTC
        (datetime.fromtimestamp(NOW_S + 60, UTC).strftime("%Y-%m-%dT%H:%M:%S.1234567Z"), None, 60.123456),
        (NOW_S + MAX_LIFETIME_S, None, MAX_LIFETIME_S),
        (NOW_S + MAX_LIFETIME_S + 1, None, None),  # more than a day
        (NOW_S, None, None),  # past: nothing is left
        (NOW_S - 1, None, None),
        (0, None, None),
        (-1, None, None),
        (10**30, None, None),
        (1e300, None, None),
        (True, None, None),
        (None, None, None),
        ("", None, None),
        ("tomorrow", None, None),
        (str(int(NOW_S) + 60), None, None),  # digits in a string are no date: nobody knows the unit
        ("9999-12-31T23:59:59+00:00", None, None),
        ("0001-01-01T00:00:00+14:00", None, None),
        ([NOW_S + 60], None, None),
        ({}, None, None),
    ],
)
def test_lifetime_is_reckoned_by_azures_clock(expires_at: Any, date_s: float | None, left_s: float | None) -> None:
    headers = {} if date_s is None else {"Date": http_date(date_s)}
    told = answer(200, {"value": "ek_x", "expires_at": expires_at}, headers)
    if left_s is None:
        with pytest.raises(MalformedError, match="expires_at"):
            read_minted(told, now_s=NOW_S, received_at_s=7.0)
        return
    minted = read_minted(told, now_s=NOW_S, received_at_s=7.0)
    assert minted.expires_in_s == pytest.approx(left_s, abs=0.01)
    assert minted.expires_at.utcoffset() is not None
    assert minted.received_at_s == 7.0
    assert minted.clock_skew_s == (None if date_s is None else NOW_S - date_s)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000])
def test_impossible_expiry_is_malformed(constant: str) -> None:
    with pytest.raises(MalformedError):
        read_minted(
            answer(200, f'{{"value": "ek_x", "expires_at": {constant}}}'.encode()), now_s=NOW_S, received_at_s=0
        )


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 23 Nov 2026 99:99:99 GMT"])
def test_unreadable_date_falls_back_to_our_clock(date: str) -> None:
    told = answer(200, {"value": "ek_x", "expires_at": NOW_S + 60}, {"Date": date})
    minted = read_minted(told, now_s=NOW_S, received_at_s=0)
    assert (minted.expires_in_s, minted.clock_skew_s) == (60, None)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "   ",
        42,
        True,
        [],
        {"token": "ek_x"},
        "ek x",
        "ek\nx",
        "ek\r\nSet-Cookie: a",
        "ek_é",
        "x" * 20_000,
        "ek\x7f",
    ],
)
def test_token_unfit_for_a_header_is_malformed(value: Any) -> None:
    with pytest.raises(MalformedError):
        read_minted(answer(200, {"value": value, "expires_at": NOW_S + 60}), now_s=NOW_S, received_at_s=0)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"value": "ek_tr', b"[]", b"null", b'"ek_x"', b"\xff", b"[" * 100_000]
)
def test_body_that_is_no_object_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        read_minted(answer(200, body), now_s=NOW_S, received_at_s=0)


@given(body=st.binary(max_size=300))
def test_any_bytes_are_read_or_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        read_minted(answer(200, body), now_s=NOW_S, received_at_s=0)


def test_repr_masks_the_minted_token() -> None:
    minted = read_minted(answer(200, {"value": "ek_hidden", "expires_at": NOW_S + 60}), now_s=NOW_S, received_at_s=0)
    assert minted.token.get_secret_value() == "ek_hidden"
    assert "ek_hidden" not in repr(minted)


def test_every_error_has_its_outcome() -> None:
    outcomes = {name: getattr(errors, name).outcome for name in errors.__all__}
    assert outcomes == {
        "MintError": "failed",
        "TransientError": "transient",
        "RateLimitedError": "rate_limited",
        "TimedOutError": "timeout",
        "CredentialError": "no_credential",
        "PermanentError": "permanent",
        "ApiVersionError": "permanent",
        "MisconfiguredError": "misconfigured",
        "KeysDisabledError": "misconfigured",
        "RejectedError": "rejected",
        "MalformedError": "malformed",
    }


@pytest.mark.parametrize(
    ("headers", "error", "of_tokens"),
    [
        ({}, {"code": "429", "message": "Requests to this operation have exceeded the call rate limit"}, False),
        ({}, {"code": "429", "message": "exceeded token rate limit of your current pricing tier"}, True),
        ({}, {"code": "insufficient_quota", "message": "You exceeded your current quota"}, True),
        ({"x-ratelimit-remaining-tokens": "0"}, {"code": "RateLimitReached"}, True),
        ({"x-ratelimit-remaining-tokens": "12"}, {"code": "RateLimitReached"}, False),
    ],
)
def test_429_names_tokens_or_requests(headers: dict[str, str], error: dict[str, str], of_tokens: bool) -> None:
    refused = classify(answer(429, {"error": error}, headers), now_s=NOW_S)
    assert isinstance(refused, RateLimitedError)
    assert refused.is_of_tokens is of_tokens


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (TransientError("refused"), Fault.RESOURCE),
        (TimedOutError("silence"), Fault.RESOURCE),
        (TransientError("503", status=503), Fault.SERVER),
        (TransientError("409", status=409), Fault.NONE),
        (RateLimitedError("429", status=429), Fault.NONE),
        (RateLimitedError("told in an event"), Fault.NONE),
        (PermanentError("501", status=501), Fault.NONE),
        (MisconfiguredError("401", status=401), Fault.NONE),
        (RejectedError("400", status=400), Fault.NONE),
        (MalformedError("HTML", status=200), Fault.NONE),
        (CredentialError("no Entra"), Fault.NOBODY),
        (MintError("an unexpected KeyError"), Fault.NOBODY),
    ],
)
def test_whom_an_error_blames(error: MintError, blamed: Fault) -> None:
    assert fault_of(error) is blamed
