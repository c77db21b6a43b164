"""The faults that can be set while the simulator runs, and which of them a request or a talk meets.

A fault is `{"match": "<path prefix>", "fault": "<name>", "times": n|null, …}`; the first of the list that fits a
request and is not used up applies to it. `http_faults.py` and `socket_faults.py` carry them out. Quotas and the faults
of `talk_faults.py` apply besides.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, TypeVar, cast

from pydantic import AfterValidator, AliasChoices, Field, JsonValue, TypeAdapter, ValidationError

from token_broker.simulator.faults.call_faults import (
    CallOutlivesSocketFault,
    DataChannelFault,
    DataChannelIgnoredFault,
    DieAfterFault,
    IceNeverFault,
    LateControlFault,
    LateSidebandFault,
    ManySidebandsFault,
    NoPageRightsFault,
    NoVoiceLiveWebrtcFault,
    OfferSessionFault,
    StrictSdpFault,
    WebrtcOrderFault,
)
from token_broker.simulator.faults.fault_base import Armed, BaseFault, Protocol, Seconds
from token_broker.simulator.faults.quotas import Quota, QuotaFault
from token_broker.simulator.faults.talk_faults import (
    CutFault,
    FailedAnswersFault,
    IgnoreUpdateFault,
    LateMcpFault,
    LateUpdateFault,
    RefuseUpdateFault,
    SessionExpiresFault,
    SilenceFault,
    SlowAnswersFault,
    StrictHistoryFault,
    TextAnswersFault,
)
from token_broker.simulator.session_bodies.check import describe_all

MEGABYTE = 1_000_000
FIFTY_MEGABYTES = 50 * MEGABYTE
TWENTY_MEGABYTES = 20 * MEGABYTE

Stage = Literal["handshake", "created", "updated"]
"""Where a WebSocket stalls: before the handshake's answer, before `session.created`, before `session.updated`."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_SET_BY_SERVER = frozenset({"content-length", "transfer-encoding"})


def _sendable(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if name.lower() in _SET_BY_SERVER:
            raise ValueError(f"'{name}' is set by what is sent")
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"'{name}: {value}' can't be sent as a header")
    return headers


Headers = Annotated[dict[str, str], AfterValidator(_sendable)]


class _AnyFault(BaseFault):
    protocols = frozenset({"http", "websocket"})


class _SocketFault(BaseFault):
    protocols = frozenset({"websocket"})


class StatusFault(_AnyFault):
    """Answers with a status. Without `body` it is an Azure-shaped error; a string is sent as it is."""

    fault: Literal["status"]
    code: int = Field(default=500, ge=200, le=599)
    headers: Headers = Field(default_factory=dict)
    body: JsonValue = None


class RedirectFault(_AnyFault):
    """Answers with a redirect to `location`, an absolute or a relative URL."""

    fault: Literal["redirect"]
    location: Annotated[str, Field(min_length=1, pattern=_HEADER_VALUE.pattern + "$")]
    code: Literal[301, 302, 303, 307, 308] = 307


class HangFault(_AnyFault):
    """Accepts and never answers, until the client leaves or the simulator stops. `stage` is for WebSockets."""

    fault: Literal["hang"]
    stage: Stage = "handshake"


class SlowFault(_AnyFault):
    """Takes `seconds` over one part: before the answer starts, or to drip its headers or its body, byte by byte.

    On a WebSocket it waits so long at `stage`.
    """

    fault: Literal["slow"]
    seconds: Seconds = 5.0
    part: Literal["start", "headers", "body"] = "start"
    stage: Stage = "handshake"


class ResetFault(_AnyFault):
    """A TCP reset: before any answer, after the headers, or in the middle of the body.

    On a WebSocket it comes instead of the handshake's answer.
    """

    fault: Literal["reset"]
    at: Literal["start", "headers", "body"] = "start"


class RefuseFault(_AnyFault):
    """Nobody listens: connections are refused on every path, and one that is open is reset at its next request.

    That holds for the control routes too. Those of another resource of the process take the fault away, or it ends
    by itself after `seconds`.
    """

    fault: Literal["refuse"]
    seconds: Seconds | None = None


class MalformedJsonFault(BaseFault):
    """200 with a body that is no JSON."""

    fault: Literal["malformed_json"]
    form: Literal["truncated", "html", "text", "empty"] = "truncated"


class MissingValueFault(BaseFault):
    """A mint's answer whose `value` is no use."""

    fault: Literal["missing_value"]
    form: Literal["missing", "null", "empty", "blank", "number", "object"] = "missing"


class ExpiredFault(BaseFault):
    """A mint's answer that has expired already, and whose secret has."""

    fault: Literal["expired"]
    seconds_ago: Annotated[float, Field(gt=0)] = 60.0


class ExpiresAtFault(BaseFault):
    """A mint's answer with any `expires_at`; without `value` it has none."""

    fault: Literal["expires_at"]
    value: JsonValue = None


class HugeBodyFault(BaseFault):
    """200 with a body of so many bytes, streamed."""

    fault: Literal["huge_body"]
    bytes: int = Field(default=FIFTY_MEGABYTES, ge=1)


class DropAfterFault(_SocketFault):
    """The connection dies after `frames` of Azure's frames: reset, without a close frame, or closed with `code`."""

    fault: Literal["drop_after"]
    frames: int = Field(ge=0, validation_alias=AliasChoices("frames", "n"))
    how: Literal["reset", "eof", "close"] = "reset"
    code: int = Field(default=1011, ge=1000, le=4999)


class GarbageFault(_SocketFault):
    """After `frames` of Azure's frames, one that can't be read: no JSON, no text, no event, or no WebSocket frame."""

    fault: Literal["garbage"]
    form: Literal["text", "binary", "array", "untyped", "protocol"] = "text"
    frames: int = Field(default=1, ge=0)


class OversizedFrameFault(_SocketFault):
    """After `frames` of Azure's frames, a message of so many bytes, whole or in fragments."""

    fault: Literal["oversized_frame"]
    bytes: int = Field(default=TWENTY_MEGABYTES, ge=1)
    fragmented: bool = False
    frames: int = Field(default=1, ge=0)


class FloodFault(_SocketFault):
    """After `frames` of Azure's frames, audio deltas as fast as the socket takes them, `count` of them or for ever."""

    fault: Literal["flood"]
    count: int | None = Field(default=None, ge=1)
    bytes: int = Field(default=4800, ge=1, le=MEGABYTE)
    frames: int = Field(default=1, ge=0)


Fault = Annotated[
    StatusFault
    | RedirectFault
    | HangFault
    | SlowFault
    | ResetFault
    | RefuseFault
    | MalformedJsonFault
    | MissingValueFault
    | ExpiredFault
    | ExpiresAtFault
    | HugeBodyFault
    | DropAfterFault
    | GarbageFault
    | OversizedFrameFault
    | FloodFault
    | IceNeverFault
    | DieAfterFault
    | DataChannelFault
    | StrictSdpFault
    | LateSidebandFault
    | ManySidebandsFault
    | NoPageRightsFault
    | WebrtcOrderFault
    | DataChannelIgnoredFault
    | CallOutlivesSocketFault
    | NoVoiceLiveWebrtcFault
    | LateControlFault
    | OfferSessionFault
    | QuotaFault
    | CutFault
    | SilenceFault
    | RefuseUpdateFault
    | IgnoreUpdateFault
    | LateUpdateFault
    | StrictHistoryFault
    | TextAnswersFault
    | FailedAnswersFault
    | LateMcpFault
    | SlowAnswersFault
    | SessionExpiresFault,
    Field(discriminator="fault"),
]
_FAULTS: TypeAdapter[list[Fault]] = TypeAdapter(list[Fault])


class FaultsError(ValueError):
    """A list of faults that can't be set; `problems` names each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


def parse_faults(value: object) -> list[Fault]:
    """Reads a JSON list of faults.

    Raises:
        FaultsError: with every mistake in it named.

    """
    if isinstance(value, list):
        # A name may be written with hyphens.
        value = [
            {**entry, "fault": str(entry["fault"]).replace("-", "_")}
            if isinstance(entry, dict) and "fault" in entry
            else entry
            for entry in value
        ]
    try:
        return _FAULTS.validate_python(value)
    except ValidationError as error:
        raise FaultsError(describe_all(error, value)) from None


Kind = TypeVar("Kind", bound=BaseFault)


class FaultTable:
    """The faults now set, with what is left of each."""

    def __init__(self) -> None:
        self._armed: list[Armed] = []
        self._listeners: list[Callable[[], None]] = []

    def replace(self, faults: Sequence[Fault]) -> None:
        self._set([_arm(fault) for fault in faults])

    def add(self, fault: Fault) -> None:
        """Sets one more, ahead of the others."""
        # By identity, not by value: two equal faults are two, and each has its own count.
        self._set([_arm(fault), *self._armed])

    def remove(self, fault: Fault) -> None:
        self._set([armed for armed in self._armed if armed.fault is not fault])

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Calls `changed` whenever faults were set, in the thread that set them; gives what ends that."""
        self._listeners.append(changed)
        return lambda: self._listeners.remove(changed)

    def listed(self) -> list[dict[str, JsonValue]]:
        """As JSON, `times` being what is left."""
        return [armed.fault.model_dump(mode="json") | {"times": armed.left} for armed in self._armed]

    def take(self, protocol: Protocol, method: str, path: str, auth: str, body: str = "") -> Fault | None:
        """The fault that this request meets, if any; counts one use of it."""
        for armed in self._armed:
            fault = armed.fault
            if (
                not isinstance(armed, Quota)
                and protocol in fault.protocols
                and _fits(armed, method, path, auth)
                and (fault.contains is None or fault.contains in body)
            ):
                armed.use()
                return cast("Fault", fault)
        return None

    def over_quota(self, protocol: Protocol, method: str, path: str, auth: str) -> Quota | None:
        """The quota with the longest wait among those that this request is beyond. It counts in all that fit."""
        quotas = [armed for armed in self._armed if isinstance(armed, Quota) and _fits(armed, method, path, auth)]
        full = [quota for quota in quotas if not quota.admits(protocol)]
        return max(full, key=lambda quota: quota.wait_s, default=None)

    def token_quotas(self, path: str) -> list[Quota]:
        """Those that answers of a talk on this path use up."""
        quotas = [armed for armed in self._armed if isinstance(armed, Quota)]
        return [quota for quota in quotas if quota.fault.counts == "tokens" and path.startswith(quota.fault.match)]

    def of_kind(self, kind: type[Kind], path: str) -> Iterator[tuple[Armed, Kind]]:
        """The faults of this kind that a talk on that path, or the server itself, can meet."""
        # Over the list as it is now: a listener may change it meanwhile.
        for armed in self._armed:
            if isinstance(armed.fault, kind) and armed.left != 0 and path.startswith(armed.fault.match):
                yield armed, armed.fault

    def switched(self, kind: type[Kind], path: str) -> Kind | None:
        """The first fault of this kind that a talk on that path meets, if any; counts one use of it."""
        for armed, fault in self.of_kind(kind, path):
            armed.use()
            return fault
        return None

    def _set(self, armed: list[Armed]) -> None:
        self._armed = armed
        for changed in list(self._listeners):
            changed()


def _arm(fault: Fault) -> Armed:
    return Quota(fault) if isinstance(fault, QuotaFault) else Armed(fault)


def _fits(armed: Armed, method: str, path: str, auth: str) -> bool:
    fault = armed.fault
    return (
        armed.left != 0
        and path.startswith(fault.match)
        and fault.method in (None, method)
        and (fault.auth is None or auth.startswith(fault.auth))
    )
