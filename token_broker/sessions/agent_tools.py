"""The tools of an agent, as the agents' file has them: functions that the broker or the page runs, and MCP servers.

Everything is checked when the file is read, so that a tool that can't work stops the start. `declared` is what Azure's
session gets; nothing else of a tool ever leaves the broker.
"""

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import httpx
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

from strategies.endpoint import is_loopback
from token_broker.hooks.addresses import is_forbidden_host
from token_broker.resources import variable

if TYPE_CHECKING:
    import jsonschema_rs

__all__ = [
    "BUILTIN_NAMES",
    "BUILTIN_PARAMETERS",
    "BoundValue",
    "BuiltinName",
    "FunctionTool",
    "HookUrl",
    "HttpRun",
    "McpTool",
    "Tool",
    "builtin_declaration",
    "compiled_schema",
    "delegate_of",
    "tool_doubts",
    "tool_faults",
]

BuiltinName = Literal["recall", "handoff", "end_talk"]
BUILTIN_NAMES: tuple[BuiltinName, ...] = ("recall", "handoff", "end_talk")
BoundValue = Literal["principal", "user_id", "session_id"]

MAX_OUTPUT_BYTES = 65_536
_MAX_PARAMETERS_BYTES = 32_768
_BACKTRACKS = 10_000  # of a `pattern`: the model's text must not keep the event loop
_MCP_FIRST_VERSION = "2026-04-10"  # of Voice Live: docs/azure.md
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_MAX_HEADER_VALUE = 8_192
_MIN_KEY_CHARS = 16
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]{0,127})")
# These are the broker's own, or would change how the request is framed.
_OWN_HEADERS = frozenset({
    "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
    "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "user-agent", "webhook-id", "webhook-signature", "webhook-timestamp",
})  # fmt: skip
_CLOSED_NETWORKS = (".internal", ".local", ".localhost", ".svc", ".svc.cluster.local")


def _hook_url(value: object) -> object:
    """Checks the URL of a hook. No message repeats it: its query may be a secret."""
    if not isinstance(value, str):
        return value
    try:
        url = httpx.URL(value)
        port = url.port
    except (httpx.InvalidURL, ValueError, TypeError):
        raise ValueError("is not a URL") from None
    if url.scheme not in {"http", "https"} or not url.host or port == 0 or value != value.strip():
        raise ValueError("should be a URL such as https://crm.example.com/tools/order")
    if url.userinfo:
        raise ValueError("must not carry a user or password; put them into a header, as env:NAME")
    if url.fragment:
        raise ValueError("must not have a fragment")
    if is_forbidden_host(url.host):
        raise ValueError("is link-local, or the address of a metadata service, which is never called")
    name = url.host.rstrip(".").lower()
    try:
        is_closed_network = ipaddress.ip_address(name).is_private
    except ValueError:
        is_closed_network = is_loopback(name) or "." not in name or name.endswith(_CLOSED_NETWORKS)
    if url.scheme == "http" and not is_closed_network:
        raise ValueError(
            "should begin with https://; plain http is for loopback, private addresses, and names of a closed network "
            "(without a dot, or ending in .internal, .local or .svc)"
        )
    return value


def _secret(value: object) -> object:
    """`env:NAME` becomes that variable's value. Any other text is taken as it is."""
    if not isinstance(value, str):
        return value
    if not value.startswith("env:"):
        text = value
    elif (named := _VARIABLE.fullmatch(value)) is None:
        raise ValueError("names no variable after env:")
    elif (found := variable(named[1])) is None:
        raise ValueError(f"{named[1]} is unset; it has to hold the value")
    else:
        text = found
    if len(text) > _MAX_HEADER_VALUE or not _HEADER_VALUE.fullmatch(text):
        which = f"{value[4:]} " if value.startswith("env:") else ""
        raise ValueError(f"{which}has characters that no header can carry, blanks at an end, or is empty")
    return SecretStr(text)


def _header_names(value: object) -> object:
    if isinstance(value, Mapping):
        lowered = [str(name).lower() for name in value]
        for name, low in zip(value, lowered, strict=True):
            if not _HEADER_NAME.fullmatch(str(name)):
                raise ValueError(f"{str(name)[:64]!r} is not the name of a header")
            if low in _OWN_HEADERS:
                raise ValueError(f"{name} is set by the broker itself")
            if lowered.count(low) > 1:
                raise ValueError(f"{name} stands there twice")
    return value


HookUrl = Annotated[str, BeforeValidator(_hook_url), StringConstraints(min_length=1, max_length=2_048)]
"""The URL of a server of the operator's: https, or http within a closed network. Keep it out of logs: `repr=False`."""

_Secret = Annotated[SecretStr, BeforeValidator(_secret)]
_Headers = Annotated[Mapping[str, _Secret], BeforeValidator(_header_names), Field(max_length=32)]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8_192)]
_ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Seconds = Annotated[float, Field(gt=0, le=120, allow_inf_nan=False)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class HttpRun(_Checked):
    """A tool that the broker runs with one POST. `timeout_s` is the time for all of it, repetitions included."""

    url: HookUrl = Field(repr=False)
    headers: _Headers = Field({}, repr=False)
    timeout_s: _Seconds = 8
    idempotent: bool = False
    max_output_bytes: int = Field(16_384, ge=1, le=MAX_OUTPUT_BYTES)
    say: _Text | None = None


_Run = Annotated[
    Annotated[HttpRun, Tag("http")] | Annotated[Literal["client"], Tag("client")],
    Discriminator(lambda value: "client" if isinstance(value, str) else "http"),
]


class FunctionTool(_Checked):
    """A function that the model may call. `run` None: nobody answers it, which the start warns of.

    `bind` has the parameters that the broker fills in: the model neither sees nor says them. `timeout_s` is how long
    the page may take where `run` is "client".
    """

    type: Literal["function"]
    name: _ToolName
    description: _Text | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    bind: Mapping[Annotated[str, StringConstraints(min_length=1, max_length=64)], BoundValue] = Field({}, max_length=16)
    run: _Run | None = None
    timeout_s: _Seconds = 20

    @field_validator("parameters")
    @classmethod
    def _is_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        """A JSON Schema (Draft 2020-12) of an object, without references to other documents."""
        if value.get("type") != "object":
            raise ValueError('should have type = "object"')
        for keyword, kind in (("properties", dict), ("required", list)):
            if not isinstance(value.get(keyword, kind()), kind):
                raise ValueError(f"{keyword} should be {'a table' if kind is dict else 'a list'}")  # noqa: TRY004
        try:
            size = len(json.dumps(value, allow_nan=False).encode())
        except (TypeError, ValueError, RecursionError):  # TOML has times, inf and nan; JSON has none of them
            raise ValueError("has a value that JSON has not") from None
        if size > _MAX_PARAMETERS_BYTES:
            raise ValueError(f"is larger than {_MAX_PARAMETERS_BYTES} bytes as JSON")
        compiled_schema(value)
        return value

    @field_validator("run", mode="before")
    @classmethod
    def _says_who(cls, value: object) -> object:
        if isinstance(value, str) and value != "client":
            raise ValueError('should be "client", or a table with the url that the broker calls')
        return value

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        compiled_schema(self.model_parameters)
        return self

    @cached_property
    def model_parameters(self) -> dict[str, Any]:
        """`parameters` as the model sees them: without the bound ones."""
        if not self.bind:
            return self.parameters
        seen = dict(self.parameters)
        seen["properties"] = {
            name: schema for name, schema in seen.get("properties", {}).items() if name not in self.bind
        }
        if "required" in seen:
            seen["required"] = [name for name in seen["required"] if name not in self.bind]
        return seen

    @cached_property
    def validator(self) -> "jsonschema_rs.Draft202012Validator":
        """Checks what the model sends; made once."""
        return compiled_schema(self.model_parameters)

    def declared(self) -> dict[str, Any]:
        """The tool as Azure's session gets it."""
        told = {"type": "function", "name": self.name, "description": self.description}
        return {name: value for name, value in told.items() if value is not None} | {
            "parameters": self.model_parameters
        }

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """What must stay out of logs: its headers, and the query of its URL."""
        if not isinstance(self.run, HttpRun):
            return ()
        return (*self.run.headers.values(), *_query_secrets(self.run.url))


class McpTool(_Checked):
    """An MCP server that Azure itself asks. Without `require_approval` Azure asks the user each time."""

    type: Literal["mcp"]
    server_label: _ToolName
    server_url: HookUrl = Field(repr=False)
    server_description: _Text | None = None
    authorization: _Secret | None = Field(None, repr=False)
    headers: _Headers = Field({}, repr=False)
    allowed_tools: tuple[Annotated[str, StringConstraints(min_length=1, max_length=128)], ...] | None = Field(
        None, max_length=128
    )
    require_approval: Literal["always", "never"] | dict[Literal["always", "never"], Any] | None = None

    @property
    def has_credential(self) -> bool:
        """Whether Azure's session has to carry a secret: such a session is shown to no page."""
        return self.authorization is not None or bool(self.headers or _keys_of(self.server_url))

    def declared(self, *, with_secrets: bool) -> dict[str, Any]:
        """The entry as Azure's session gets it; `with_secrets` only on a way that the broker alone sees."""
        told: dict[str, Any] = {
            "type": "mcp",
            "server_label": self.server_label,
            "server_url": self.server_url,
            "server_description": self.server_description,
            "allowed_tools": None if self.allowed_tools is None else list(self.allowed_tools),
            "require_approval": self.require_approval,
        }
        if with_secrets and self.authorization is not None:
            told["authorization"] = self.authorization.get_secret_value()
        if with_secrets and self.headers:
            told["headers"] = {name: value.get_secret_value() for name, value in self.headers.items()}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """What must stay out of logs."""
        own = () if self.authorization is None else (self.authorization,)
        return (*own, *self.headers.values(), *_query_secrets(self.server_url))


Tool = Annotated[FunctionTool | McpTool, Field(discriminator="type")]
"""An entry of `[[agents.x.tools]]`."""

BUILTIN_PARAMETERS: Mapping[BuiltinName, tuple[str, dict[str, Any]]] = {
    "recall": (
        "Searches what is known of this user from this talk and former ones. Use it when they refer to such a thing.",
        {
            "type": "object",
            "properties": {
                "query": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 500,
                    "description": "Words to look for, in the user's language.",
                }
            },
            "required": ["query"],
            "additionalProperties": False,
        },
    ),
    "handoff": (
        "Hands the talk over to another agent, where that one is better suited or the user asks for it.",
        {
            "type": "object",
            "properties": {
                "agent_id": {"type": "string", "description": "The agent who takes over."},
                "message": {
                    "type": "string",
                    "maxLength": 1000,
                    "description": "One line for that agent: what the user wants.",
                },
            },
            "required": ["agent_id"],
            "additionalProperties": False,
        },
    ),
    "end_talk": (
        "Ends the talk. Say goodbye first, and call it only when the user wants to end.",
        {"type": "object", "properties": {}, "additionalProperties": False},
    ),
}
"""Description and parameters of the tools that every agent may have."""


def builtin_declaration(name: BuiltinName, *, agent_ids: Iterable[str] = ()) -> dict[str, Any]:
    """A built-in tool as Azure's session gets it; `agent_ids` are those that `handoff` may name."""
    description, parameters = BUILTIN_PARAMETERS[name]
    if name == "handoff":
        properties = dict(parameters["properties"])
        properties["agent_id"] = properties["agent_id"] | {"enum": sorted(agent_ids)}
        parameters = parameters | {"properties": properties}
    return {"type": "function", "name": name, "description": description, "parameters": parameters}


def compiled_schema(schema: dict[str, Any]) -> "jsonschema_rs.Draft202012Validator":
    """The validator of a JSON Schema, Draft 2020-12. Raises ValueError; nothing is ever fetched for a `$ref`."""
    import jsonschema_rs

    def refuse(_uri: str) -> Any:
        raise ValueError("a reference to another document is not followed")

    options = jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
    try:
        return jsonschema_rs.Draft202012Validator(schema, retriever=refuse, pattern_options=options)
    except jsonschema_rs.ValidationError as error:
        raise ValueError(f"is not a JSON Schema: {error.message[:200]}") from None
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise ValueError("is not a JSON Schema: it is nested too deeply, or refers to what is not there") from None


def tool_faults(tools: Iterable[FunctionTool | McpTool], builtin_tools: Iterable[str] = ()) -> list[str]:
    """A line for each name that two tools of one agent share."""
    tools, builtin = tuple(tools), frozenset(builtin_tools)
    names = [tool.name for tool in tools if isinstance(tool, FunctionTool)]
    labels = [tool.server_label for tool in tools if isinstance(tool, McpTool)]
    faults = [f"tools.{name}: the name stands there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    faults += [
        f"tools.{label}: the server_label stands there twice"
        for label in sorted({label for label in labels if labels.count(label) > 1})
    ]
    reserved = sorted({name for name in names if name in BUILTIN_NAMES or name in builtin})
    return faults + [f"tools.{name}: is the name of a built-in tool; choose another" for name in reserved]


def delegate_of(tools: Iterable[Tool]) -> tuple[str, str] | None:
    """The tool that takes a task in words, and its argument for them; None unless exactly one tool can.

    GPT-Live delegates a task without saying which: a tool that needs one text can take it.
    """
    found = []
    for tool in tools:
        if not isinstance(tool, FunctionTool) or not isinstance(tool.run, HttpRun):
            continue
        properties, required = tool.parameters.get("properties", {}), tool.parameters.get("required", [])
        free = [name for name in required if name not in tool.bind]
        about = properties.get(free[0]) if len(free) == 1 else None
        if isinstance(about, Mapping) and about.get("type") == "string":
            found.append((tool.name, str(free[0])))
    return found[0] if len(found) == 1 else None


def tool_doubts(tools: Iterable[FunctionTool | McpTool], *, voice_live_versions: Iterable[str] = ()) -> list[str]:
    """A line for each tool that is taken, but may not do what was meant.

    `voice_live_versions` are the api-versions that the agent's resources are asked with on Voice Live.
    """
    lines = []
    old = sorted(
        version for version in set(voice_live_versions) if version.removesuffix("-preview") < _MCP_FIRST_VERSION
    )
    for tool in tools:
        if isinstance(tool, FunctionTool) and tool.run is None:
            lines.append(f'tools.{tool.name}: nobody runs it: give it run = {{ url = … }} or run = "client"')
        if isinstance(tool, McpTool) and tool.require_approval is None:
            lines.append(
                f"tools.{tool.server_label}: without require_approval Azure asks the user before each call, and a page "
                "has to answer within 60 s"
            )
        if isinstance(tool, McpTool) and old:
            lines.append(
                f"tools.{tool.server_label}: Voice Live has no MCP in api-version {old[0]}; set "
                f"AZURE_VOICELIVE_API_VERSION to {_MCP_FIRST_VERSION} or later"
            )
    return lines


def _query_secrets(url: str) -> tuple[SecretStr, ...]:
    """The query of a URL, whole, and its values that may be keys: a short word may stand in any log line."""
    query = httpx.URL(url).query.decode("ascii", "replace")
    return tuple(map(SecretStr, (query, *_keys_of(url)))) if query else ()


def _keys_of(url: str) -> list[str]:
    """The values in the query of a URL that may be keys."""
    return [value for _, value in httpx.URL(url).params.multi_items() if len(value) >= _MIN_KEY_CHARS]
