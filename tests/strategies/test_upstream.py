"""One mint over HTTP: limited in time and size, and every failure is one of our errors."""

import asyncio
import itertools
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import httpx_aiohttp.transport as adapter
import pytest
import respx
from pydantic import SecretStr

from strategies.credentials import AccessToken, Credentials, EntraTokens
from strategies.errors import CredentialError, MalformedError, MintError, RejectedError, TimedOutError, TransientError
from strategies.upstream import MAX_ANSWER_BYTES, Upstream
from tests.strategies.fakes import FLAT_BODY, GA_BODY, KEY, NOW_S, key_credentials, minted, upstream_over

URL = "https://x.openai.azure.com/openai/v1/realtime/client_secrets"


class Transport(httpx.AsyncBaseTransport):
    """Fails, or answers with a stream, as it is told."""

    def __init__(self, *, error: BaseException | None = None, stream: AsyncIterator[bytes] | None = None) -> None:
        self.error = error
        self.stream = stream
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.error is not None:
            raise self.error
        return httpx.Response(200, stream=_Stream(self))


class _Stream(httpx.AsyncByteStream):
    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self.transport.stream is not None
        async for chunk in self.transport.stream:
            yield chunk

    async def aclose(self) -> None:
        self.transport.closed = True


async def mint(transport: httpx.AsyncBaseTransport, timeout_s: float = 1) -> Any:
    return await Upstream(transport, key_credentials(), clock=lambda: NOW_S).mint(URL, {"a": 1}, timeout_s=timeout_s)


async def test_json_is_sent_and_answer_read(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(URL).mock(minted())
    answer = await upstream_over(respx_mock).mint(URL, {"instructions": "Grüß Gott ☂"}, timeout_s=1)
    assert answer.token.get_secret_value() == "ek_minted"
    assert json.loads(route.calls.last.request.content) == {"instructions": "Grüß Gott ☂"}


async def test_answer_is_read_up_to_its_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield b"x" * 65_536

    transport = Transport(stream=endless())
    with pytest.raises(MalformedError, match="larger than"):
        await mint(transport)
    assert sent <= MAX_ANSWER_BYTES + 65_536
    assert transport.closed


async def test_endless_body_times_out_and_is_closed() -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    transport = Transport(stream=drip())
    with pytest.raises(TimedOutError):
        await mint(transport, timeout_s=0.1)
    assert transport.closed


async def test_cancellation_is_no_timeout() -> None:
    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    transport = Transport(stream=silent())
    asking = asyncio.create_task(mint(transport, timeout_s=10))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert transport.closed


def _subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(_subclasses(below) for below in kind.__subclasses__()))


ALL_TRANSPORT_ERRORS = sorted(
    {*_subclasses(httpx.TransportError), *_subclasses(aiohttp.ClientError), *adapter.AIOHTTP_EXC_MAP,
     OSError, ConnectionResetError, ssl.SSLError, ssl.SSLCertVerificationError, UnicodeError, ValueError, RuntimeError,
     AssertionError, TimeoutError},
    key=lambda kind: f"{kind.__module__}.{kind.__qualname__}",
)  # fmt: skip


@pytest.mark.parametrize("kind", ALL_TRANSPORT_ERRORS, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
async def test_transport_errors_are_mapped_unquoted(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    error.args = (f"failed with api-key: {KEY}",)
    with pytest.raises(TransientError) as raised:
        await mint(Transport(error=error))
    assert KEY not in f"{raised.value} {raised.value!r}"
    assert raised.value.__suppress_context__, "a traceback would quote the driver's text"


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        (["ConnectError", "ClientConnectorDNSError", "gaierror"], "can't be looked up"),
        (["ConnectError", "ClientConnectorCertificateError", "SSLCertVerificationError"], "TLS"),
        (["ConnectError", "ClientConnectorError", "ConnectionRefusedError"], "refused"),
        (["ConnectTimeout", "ServerDisconnectedError"], "broke off"),
        (["ReadError", "ClientPayloadError"], "broke off"),
        (["ConnectTimeout", "ClientOSError", "ConnectionResetError"], "broke off"),
        (["ConnectTimeout", "ClientConnectorError", "OSError"], "OSError"),
    ],
)
async def test_failed_connection_names_its_cause(chain: list[str], says: str) -> None:
    errors = [type(name, (Exception,), {})() for name in chain]
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    with pytest.raises(TransientError, match=says):
        await mint(Transport(error=errors[0]))


@pytest.mark.parametrize("value", [KEY, f"ek_{KEY}", f"{KEY}x"])
async def test_own_credential_is_no_token(value: str, respx_mock: respx.MockRouter) -> None:
    respx_mock.post(URL).mock(minted(value))
    with pytest.raises(MalformedError) as raised:
        await upstream_over(respx_mock).mint(URL, {}, timeout_s=1)
    assert KEY not in str(raised.value)


async def test_own_credential_is_no_error_code(respx_mock: respx.MockRouter) -> None:
    respx_mock.post(URL).respond(401, json={"error": {"code": KEY}}, headers={"apim-request-id": KEY})
    with pytest.raises(MintError) as raised:
        await upstream_over(respx_mock).mint(URL, {}, timeout_s=1)
    assert (raised.value.code, raised.value.request_id) == (None, None)


async def test_hanging_credential_is_named_as_cause(respx_mock: respx.MockRouter) -> None:
    class Hanging:
        async def fetch(self) -> AccessToken:
            await asyncio.Event().wait()
            raise AssertionError

        async def aclose(self) -> None:
            pass

    entra = EntraTokens(Hanging(), timeout_s=10)
    upstream = upstream_over(respx_mock, Credentials(key=None, entra=entra))
    with pytest.raises(CredentialError):
        await upstream.mint(URL, {}, timeout_s=0.05)
    await entra.aclose()
    assert not respx_mock.calls


async def test_reprs_mask_the_credential() -> None:
    credentials = Credentials(key=SecretStr(KEY), entra=None)
    upstream = Upstream(Transport(), credentials)
    authorization = await credentials.current(timeout_s=1)
    assert KEY not in f"{credentials!r} {upstream!r} {authorization!r} {vars(upstream)!r} {vars(credentials)!r}"


def refused(**error: Any) -> httpx.Response:
    return httpx.Response(400, json={"error": {"code": "invalid_value", "message": "Invalid.", **error}})


@pytest.mark.parametrize(
    ("body", "error", "left_out"),
    [
        (GA_BODY, {"param": "session.audio.output.voice"}, "session.audio.output.voice"),
        (GA_BODY, {"message": "Unknown parameter: 'session.audio.input.turn_detection.type'."},
         "session.audio.input.turn_detection"),
        (FLAT_BODY, {"param": "input_audio_transcription.model"}, "session.input_audio_transcription"),
    ],
)  # fmt: skip
async def test_refused_field_is_left_out(
    body: dict[str, Any], error: dict[str, Any], left_out: str, respx_mock: respx.MockRouter
) -> None:
    route = respx_mock.post(URL).mock(side_effect=[refused(**error), minted()])
    answer = await upstream_over(respx_mock).mint(URL, body, timeout_s=1)
    assert answer.left_out == (left_out,)
    whole, rest = (json.loads(call.request.content) for call in route.calls)
    assert whole == body
    assert left_out.rpartition(".")[2] not in json.dumps(rest)
    assert rest.get("session", rest)["instructions"] == "Be brief."


@pytest.mark.parametrize(
    "param",
    [None, "session", "session.instructions", "session.model", "session.type", "expires_after.seconds", "x" * 999],
)
async def test_mint_without_that_is_none(param: str | None, respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(URL).mock(return_value=refused(param=param))
    with pytest.raises(RejectedError):
        await upstream_over(respx_mock).mint(URL, GA_BODY, timeout_s=1)
    assert route.call_count == 1


async def test_second_refusal_counts(respx_mock: respx.MockRouter) -> None:
    again = refused(param="session.audio.input.turn_detection")
    route = respx_mock.post(URL).mock(side_effect=[refused(param="session.audio.output.voice"), again])
    with pytest.raises(RejectedError):
        await upstream_over(respx_mock).mint(URL, GA_BODY, timeout_s=1)
    assert route.call_count == 2
