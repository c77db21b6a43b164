"""Generated forgeries over sockets (tokens, offers, frames): each is refused, and none causes a 500."""

import asyncio
import base64
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol

from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.offers import OFFER
from token_broker.security.tokens import CALL_TYPE, SESSION_TYPE, TICKET_TYPE, Owner, TokenSigner
from token_broker.simulator import RunningSimulator, run_in_thread

KEY, OTHER_KEY = "k" * 40, "x" * 40
SESSION = "session-of-the-fuzzing"
WAIT_S = 20

FUZZ = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
FEWER = settings(FUZZ, max_examples=25)


class Loop:
    """A broker with a simulated Azure, driven from synchronous tests."""

    def __init__(self, broker: RunningBroker, azure: RunningSimulator, runner: asyncio.Runner) -> None:
        self.broker = broker
        self.azure = azure
        self.signer = TokenSigner([SecretStr(KEY)])
        self.run = runner.run
        self.failures: list[str] = []
        runner.get_loop().set_exception_handler(lambda _loop, context: self.failures.append(str(context)))

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.run(self.broker.client.request(method, path, **options))

    def ticket(self) -> str:
        return self.signer.ticket(Owner(SESSION, "anonymous", 1), agent_id="elena", ttl_s=180)

    def session_token(self, session_id: str = SESSION) -> str:
        return self.signer.session_token(Owner(session_id, "anonymous", 1), ttl_s=3600)

    def call_id(self, session_id: str = SESSION) -> str:
        return self.signer.call_token(session_id=session_id, call_id="rtc_1", endpoint=self.azure.base_url, ttl_s=3600)

    def socket(self, ticket: str) -> connect:
        url = f"{self.broker.base_url.replace('http', 'ws')}/api/v1/voice/voicelive/{SESSION}"
        return connect(
            url,
            subprotocols=[Subprotocol("realtime"), Subprotocol(f"ticket.{ticket}")],
            compression=None,
            proxy=None,
            max_size=None,
        )


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as directory, run_in_thread() as azure:
        stack = contextlib.AsyncExitStack()
        chosen = make_settings(Path(directory), azure.base_url, signing_keys=KEY)
        yield Loop(runner.run(stack.enter_async_context(run_broker(chosen))), azure, runner)
        runner.run(stack.aclose())


@pytest.fixture(autouse=True)
def _nothing_crashes(loop: Loop, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No exception reached uvicorn, the event loop or the broker's last handler. Azure's refusals are warnings."""
    loop.failures.clear()
    with structlog.testing.capture_logs() as logged:
        yield
    assert [entry for entry in logged if entry["log_level"] == "error"] == []
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []
    assert loop.failures == []


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _decoded(token: str) -> list[bytes]:
    """What the three parts say: two texts may say the same, since base64 leaves bits over."""
    return [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in token.split(".")]


def _says_the_same(text: str, good: str) -> bool:
    try:
        return _decoded(text) == _decoded(good)
    except ValueError:
        return False


CLAIMS: dict[str, Any] = {
    "jti": "j", "sid": SESSION, "agt": "elena", "sub": "anonymous", "epo": 1, "uid": None, "tlk": "t",
    "cal": "rtc_1", "hst": "http://127.0.0.1:1", "iat": 1, "exp": 4_000_000_000,
}  # fmt: skip
letters = st.sampled_from("ABCXYZabcxyz019-_.")  # what a subprotocol, a header and a path may all carry
claims = st.fixed_dictionaries(
    CLAIMS | {name: st.just(value) | st.none() | st.integers() | st.text(max_size=9) for name, value in CLAIMS.items()}
)
headers = st.fixed_dictionaries(
    {
        "typ": st.sampled_from([TICKET_TYPE, SESSION_TYPE, CALL_TYPE, "JWT", "", None]),
        "alg": st.sampled_from(["none", "None", "HS256", "HS384", "RS256", "ES256", "", None, 7]),
    },
    optional={"kid": st.text(max_size=9), "jwk": st.just({"kty": "oct", "k": "eA"}), "crit": st.just(["b64"])},
)


@st.composite
def forgeries(draw: st.DrawFn, make_good: Callable[[], str], make_others: Callable[[], list[str]]) -> str:
    """Anything but a good token: one with letters changed, parts of several, of other keys, of no key, or mere text."""
    good = make_good()
    match draw(st.integers(0, 5)):
        case 0:
            at, letter = draw(st.integers(0, len(good) - 1)), draw(letters)
            forged = good[:at] + letter + good[at + 1 :]
        case 1:
            forged = good[: draw(st.integers(0, len(good) - 1))]
        case 2:
            pool = [good.split("."), *(other.split(".") for other in make_others())]
            forged = ".".join(draw(st.sampled_from(pool))[place] for place in range(3))
        case 3:
            forged = jwt.encode(draw(claims), OTHER_KEY, "HS256", headers={"typ": draw(headers)["typ"] or "JWT"})
        case 4:
            signature = draw(st.sampled_from(["", good.split(".")[2], "AAAA"]))
            forged = f"{_encoded(draw(headers))}.{_encoded(draw(claims))}.{signature}"
        case _:
            forged = draw(st.text(letters, max_size=300))
    return "forged" if not forged or _says_the_same(forged, good) else forged


signer = TokenSigner([SecretStr(KEY)])
OWNER = Owner(SESSION, "anonymous", 1)
tickets = forgeries(
    lambda: signer.ticket(OWNER, agent_id="elena", ttl_s=180),
    lambda: [signer.session_token(OWNER, ttl_s=3600), signer.ticket(OWNER, agent_id="elena", ttl_s=-3600)],
)
session_tokens = forgeries(
    lambda: signer.session_token(OWNER, ttl_s=3600),
    lambda: [
        signer.ticket(OWNER, agent_id="elena", ttl_s=180),
        signer.session_token(Owner("another-session-of-theirs", "anonymous", 1), ttl_s=180),
        signer.session_token(OWNER, ttl_s=-90_000),
    ],
)
call_ids = forgeries(
    lambda: signer.call_token(session_id=SESSION, call_id="rtc_1", endpoint="http://127.0.0.1:1", ttl_s=3600),
    lambda: [
        signer.session_token(OWNER, ttl_s=3600),
        signer.call_token(session_id="another-session-of-theirs", call_id="rtc_2", endpoint="http://x", ttl_s=3600),
    ],
)


async def _admission(socket: connect) -> int | str:
    """The first event's type, the code that the newcomer is closed with, or the status that refuses the handshake."""
    try:
        async with socket as opened, asyncio.timeout(WAIT_S):
            first = await opened.recv()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 0
    except InvalidStatus as refused:
        return refused.response.status_code
    return str(json.loads(first)["type"])


def test_unforged_tokens_are_accepted(loop: Loop) -> None:
    """Without this test, the others would pass for a broker that refuses everything."""
    assert loop.run(_admission(loop.socket(loop.ticket()))) == "broker.ready"
    mine = {"Authorization": f"Bearer {loop.session_token()}"}
    assert loop.ask("POST", "/conversation/turn", headers=mine, json=TURN).status_code == 200
    assert loop.ask("DELETE", f"/realtime/calls/{loop.call_id()}", headers=mine).status_code in {204, 502}


TURN = {"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "hello"}


@FUZZ
@given(ticket=tickets)
def test_forged_ticket_opens_no_talk(loop: Loop, ticket: str) -> None:
    assert loop.run(_admission(loop.socket(ticket))) in {4401, 400}


@FUZZ
@given(token=session_tokens)
def test_forged_session_token_opens_nothing(loop: Loop, token: str) -> None:
    bearer = {"Authorization": f"Bearer {token}"}
    turns = f"/api/v1/memory/sessions/{SESSION}/turns"
    offer = {**bearer, "Content-Type": "application/sdp"}
    resume = {"X-Session-Token": token}
    for answer in (
        loop.ask("POST", "/conversation/turn", headers=bearer, json=TURN),
        loop.ask("POST", f"/realtime/calls?session_id={SESSION}", headers=offer, content=OFFER),
        loop.ask("DELETE", f"/realtime/calls/{loop.call_id()}?session_id={SESSION}", headers=bearer),
        loop.ask("GET", turns, headers=bearer),
        loop.ask("DELETE", turns, headers=bearer),
        loop.ask("POST", "/realtime/token", headers=resume, json={"session_id": SESSION}),
    ):
        assert answer.status_code in {401, 403}
        assert answer.json()["code"]


def requests_but_warm_up(loop: Loop) -> int:
    """The start sends one HEAD request, which opens the first connection, whenever it comes to it."""
    return sum(request.method != "HEAD" for request in loop.azure.requests)


@FUZZ
@given(call_id=call_ids)
def test_forged_call_id_ends_no_call(loop: Loop, call_id: str) -> None:
    mine = {"Authorization": f"Bearer {loop.session_token()}"}
    asked = requests_but_warm_up(loop)
    assert loop.ask("DELETE", f"/realtime/calls/{call_id}", headers=mine).status_code == 404
    assert requests_but_warm_up(loop) == asked


@st.composite
def bent_offers(draw: st.DrawFn) -> bytes:
    """A good offer with lines lost, doubled, swapped or written over; or any bytes."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=400))
    lines = OFFER.encode().split(b"\r\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        lines[at : at + 1] = draw(
            st.sampled_from([[], [lines[at]] * 2, [lines[at][::-1]], [b"a=" + b"x" * 999]])
            | st.binary(max_size=40).map(lambda line: [line])
        )
        lines = lines or [b""]
    return b"\r\n".join(lines)


@FEWER
@given(offer=bent_offers())
@example(offer=b"v=0\r\nm=audio 99999999 x x\r\n")
@example(offer=b"v=0\nm=audio 9 UDP/TLS/RTP/SAVPF 111")
def test_bent_offer_causes_no_500(loop: Loop, offer: bytes) -> None:
    mine = {"Authorization": f"Bearer {loop.session_token()}", "Content-Type": "application/sdp"}
    answer = loop.ask("POST", "/realtime/calls", headers=mine, content=offer)
    assert answer.status_code in {201, 400, 502}
    if answer.status_code != 201:
        assert answer.json()["code"] in {"bad_sdp", "azure_refused"}


# --- frames

FORGED = "FORGED-INSTRUCTIONS"
# What a client that breaks the rules, or Azure's, may be closed with; never 1011, which is a crash's.
CLOSED_WITH = {1002, 1003, 1007, 1009, 4400, 4502}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
bent_sessions = st.fixed_dictionaries(
    {},
    optional={
        "instructions": st.just(FORGED),
        "voice": st.just(FORGED) | st.just({"name": FORGED}),
        "model": st.just(FORGED),
        "tools": st.just([{"type": "function", "name": FORGED}]),
        "audio": st.just({"output": {"voice": FORGED}}),
        "modalities": json_values,
        "temperature": json_values,
    },
)
bent_items = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call_output"]) | json_values, "role": st.just("system")},
    optional={"id": json_values, "content": st.just([{"type": "input_text", "text": FORGED}])},
)
bent_events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["session.update", "response.create", "response.cancel", "conversation.item.create",
             "conversation.item.truncate", "input_audio_buffer.append", "input_audio_buffer.clear",
             "broker.agent.switch", "broker.ready", "session.created", "error", ""]
        ) | json_values,
    },
    optional={
        "event_id": json_values,
        "session": bent_sessions | json_values,
        "response": bent_sessions | json_values,
        "item": bent_items | json_values,
        "audio": st.sampled_from(["AAAA", "====", "\u00e9"]) | json_values,
        "agent_id": st.sampled_from(["nobody", "", None]) | json_values,
    },
)  # fmt: skip
messages = (
    bent_events.map(json.dumps)
    | bent_events.map(lambda event: json.dumps(event, ensure_ascii=False))
    | json_values.map(json.dumps)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
    | st.binary(max_size=60)
)


async def _last_word(socket: ClientConnection) -> int:
    """0 where the talk goes on and answers, else the code that it is closed with."""
    async with asyncio.timeout(WAIT_S):
        try:
            await socket.send(json.dumps({"type": "broker.agent.switch", "agent_id": "the-last-word"}))
            while json.loads(await socket.recv()).get("code") != "unknown_agent":
                pass
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 0
    return 0


@FEWER
@given(sent=st.lists(messages, min_size=1, max_size=8))
@example(sent=['{"type":"session.update","\\u0073ession":{"instructions":"%s"}}' % FORGED])  # noqa: UP031
@example(sent=['{"type":"x","type":"session.update","session":{"instructions":"%s"}}' % FORGED])  # noqa: UP031
@example(sent=["[" * 100_000])
def test_any_messages_forge_nothing_at_azure(loop: Loop, sent: list[str | bytes]) -> None:
    async def talk() -> int:
        async with loop.socket(loop.ticket()) as socket:
            await socket.recv()
            with contextlib.suppress(ConnectionClosed):
                for message in sent:
                    await socket.send(message)
            return await _last_word(socket)

    assert loop.run(talk()) in {0, *CLOSED_WITH}
    assert FORGED not in json.dumps([request.to_json() for request in loop.azure.requests[-3:]])


def _frame(opcode: Opcode, payload: bytes, *, fin: bool, mask: bool) -> bytes:
    """The frame as it is asked for, a fragmented ping among them, which a library would refuse to write."""
    written = Frame(opcode, payload).serialize(mask=mask)
    return written if fin else bytes([written[0] & 0x7F]) + written[1:]


raw_frames = st.builds(
    lambda opcode, payload, fin, mask: _frame(opcode, payload, fin=fin, mask=mask),
    st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG]),
    st.binary(max_size=90) | bent_events.map(lambda event: json.dumps(event).encode()[:120]),
    st.booleans(),
    st.booleans(),
)


@FEWER
@given(sent=st.lists(raw_frames | st.binary(min_size=1, max_size=40), min_size=1, max_size=6))
@example(sent=[b"\x81\xff" + b"\xff" * 12])  # a length of nearly 2**64
@example(sent=[b"\xc1\x80\x00\x00\x00\x00"])  # compressed, which was not agreed upon
def test_any_frame_bytes_leave_the_broker_up(loop: Loop, sent: list[bytes]) -> None:
    async def talk() -> str:
        async with loop.socket(loop.ticket()) as socket:
            await socket.recv()
            for data in sent:
                socket.transport.write(data)
            socket.transport.abort()
        return await _admission(loop.socket(loop.ticket()))  # type: ignore[return-value]

    assert loop.run(talk()) == "broker.ready"
    loop.run(_no_talk_is_left(loop.broker))


async def _no_talk_is_left(broker: RunningBroker) -> None:
    async with asyncio.timeout(WAIT_S):
        while broker.relay.active:  # noqa: ASYNC110  # what is seen is the point
            await asyncio.sleep(0.01)


@FUZZ
@given(
    offered=st.lists(st.binary(max_size=60).filter(lambda value: not set(value) & {10, 13}), max_size=3),
    key=st.binary(max_size=30).filter(lambda value: not set(value) & {10, 13}),
)
def test_any_handshake_gets_an_answer(loop: Loop, offered: list[bytes], key: bytes) -> None:
    async def shake() -> int:
        host, _, port = loop.broker.base_url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = [b"Sec-WebSocket-Protocol: " + value for value in offered]
        head = [
            b"GET /api/v1/voice/voicelive/%b HTTP/1.1" % SESSION.encode(), b"Host: broker", b"Connection: Upgrade",
            b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + key, *lines,
        ]  # fmt: skip
        writer.write(b"\r\n".join(head) + b"\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            status = int((await reader.readline()).split()[1])
        writer.transport.abort()
        return status

    assert loop.run(shake()) in {101, 400}
