"""The tools' part of the agents' file: what is taken, what stops the start, and in which words."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from token_broker.resources import fault_lines
from token_broker.sessions.agent_tools import (
    FunctionTool,
    HttpRun,
    McpTool,
    Tool,
    builtin_declaration,
    tool_doubts,
    tool_faults,
)

FUNCTION = {"type": "function", "name": "order"}
MCP = {"type": "mcp", "server_label": "docs", "server_url": "https://mcp.example.com"}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tools: tuple[Tool, ...] = ()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    agents: dict[str, _Entry]


def read(text: str) -> tuple[FunctionTool | McpTool, ...]:
    """The tools of `[[agents.ann.tools]]`. Raises ValueError with the faults' lines."""
    document = tomllib.loads(text)
    try:
        return _File.model_validate(document).agents["ann"].tools
    except ValidationError as error:
        raise ValueError("\n".join(fault_lines(Path("agents.toml"), error, _File, document))) from None


def function(**fields: Any) -> FunctionTool:
    return FunctionTool.model_validate(FUNCTION | fields)


def test_whole_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_TOKEN", "Bearer crm-4711")
    monkeypatch.setenv("MCP_TOKEN", "mcp-4712")
    order, shown, docs = read("""
        [[agents.ann.tools]]
        type = "function"
        name = "order_status"
        description = "Looks an order up."
        parameters = { type = "object", properties = { number = { type = "string" } }, required = ["number"] }
        bind = { customer = "principal" }
        [agents.ann.tools.run]
        url = "https://crm.example.com/tools/order?code=query-4713"
        headers = { Authorization = "env:CRM_TOKEN" }
        timeout_s = 8
        idempotent = false
        max_output_bytes = 16384
        say = "One moment, I am looking it up."

        [[agents.ann.tools]]
        type = "function"
        name = "show_map"
        run = "client"
        timeout_s = 20

        [[agents.ann.tools]]
        type = "mcp"
        server_label = "docs"
        server_url = "https://mcp.example.com"
        authorization = "env:MCP_TOKEN"
        allowed_tools = ["search"]
        require_approval = "never"
    """)
    assert isinstance(order, FunctionTool)
    assert isinstance(order.run, HttpRun)
    assert order.run.headers["Authorization"].get_secret_value() == "Bearer crm-4711"
    assert isinstance(shown, FunctionTool)
    assert (shown.run, shown.timeout_s) == ("client", 20)
    assert shown.declared()["parameters"] == {"type": "object", "properties": {}}
    assert isinstance(docs, McpTool)
    assert docs.has_credential
    assert "authorization" not in docs.declared(with_secrets=False)
    assert docs.declared(with_secrets=True)["authorization"] == "mcp-4712"
    for canary in ("crm-4711", "mcp-4712", "query-4713"):
        assert canary not in repr((order, docs))
        assert any(canary in secret.get_secret_value() for tool in (order, docs) for secret in tool.secrets)
    assert FunctionTool.model_validate(order.model_dump()).declared() == order.declared()


RUN = 'run = { url = "https://x.example.com/" }'


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            'nmae = "b"',
            "agents.ann.tools.a.nmae: there is no such key; name is meant, perhaps; permitted are bind, desc",
        ),
        ('run = { ulr = "https://x" }', "run.ulr: there is no such key; url is meant, perhaps"),
        ('run = { ulr = "https://x" }', "run.url: field required"),
        ('run = "clint"', 'agents.ann.tools.a.run: should be "client", or a table'),
        ("run = 3", "agents.ann.tools.a.run: should be a table"),
        ("timeout_s = 0", "timeout_s: input should be greater than 0"),
        ('run = { url = "https://x/", max_output_bytes = 65537 }', "max_output_bytes: input should be less than or"),
        ('run = { url = "ftp://x/" }', "should be a URL such as"),
        ('run = { url = "https://ann:secret@x.example.com/" }', "must not carry a user or password"),
        ('run = { url = "https://x.example.com/#a" }', "must not have a fragment"),
        ('run = { url = "http://x.example.com/" }', "should begin with https://"),
        ('run = { url = "http://8.8.8.8/" }', "should begin with https://"),
        ('run = { url = "http://169.254.169.254/" }', "is link-local, or the address of a metadata service"),
        ('run = { url = "https://x:0/" }', "should be a URL such as"),
        ('run = { url = "" }', "should be a URL such as"),
        ('run = { url = "https://x/", headers = { "Host" = "y" } }', "Host is set by the broker itself"),
        ('run = { url = "https://x/", headers = { "Webhook-Id" = "y" } }', "Webhook-Id is set by the broker itself"),
        ('run = { url = "https://x/", headers = { "a b" = "y" } }', "'a b' is not the name of a header"),
        ('run = { url = "https://x/", headers = { "X-A" = "y", "x-a" = "z" } }', "stands there twice"),
        (
            r'run = { url = "https://x/", headers = { "X-A" = "secret\r\nX-B: 1" } }',
            "X-A: has characters that no header",
        ),
        ('run = { url = "https://x/", headers = { "X-A" = "env:NOT_SET_ANYWHERE" } }', "NOT_SET_ANYWHERE is unset"),
        ('run = { url = "https://x/", headers = { "X-A" = "env:" } }', "X-A: names no variable after env:"),
        ('parameters = { type = "array" }', 'parameters: should have type = "object"'),
        ("parameters = { properties = {} }", 'parameters: should have type = "object"'),
        ('parameters = { type = "object", properties = { a = { type = "strin" } } }', "is not a JSON Schema"),
        ('parameters = { type = "object", properties = { a = { pattern = "(" } } }', "is not a JSON Schema"),
        ('parameters = { type = "object", required = "a" }', "required should be a list"),
        ('parameters = { type = "object", properties = 3 }', "properties should be a table"),
        ('parameters = { type = "object", "$ref" = "https://x.example.com/schema" }', "is not a JSON Schema"),
        ('parameters = { type = "object", "$ref" = "file:///etc/passwd" }', "is not a JSON Schema"),
        ('parameters = { type = "object", default = 2026-01-01 }', "has a value that JSON has not"),
        ('parameters = { type = "object", default = nan }', "has a value that JSON has not"),
        ('bind = { customer = "email" }', "bind.customer: input should be 'principal', 'user_id' or 'session_id'"),
        ('description = ""', "description: string should have at least 1 character"),
    ],
)
def test_malformed_function(lines: str, told: str) -> None:
    with pytest.raises(ValueError, match=r"agents\.ann\.tools") as refused:
        read(f'[[agents.ann.tools]]\ntype = "function"\nname = "a"\n{lines}')
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)
    assert ".function" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('type = "function"\nname = "a b"', "agents.ann.tools.a b.name: string should match pattern"),
        (f'type = "function"\nname = "{"a" * 65}"', "name: string should match pattern"),
        ('type = "function"', "agents.ann.tools.1.name: field required"),
        ('name = "a"', "agents.ann.tools.a: has no 'type', which says what it is"),
        ('type = "functoin"\nname = "a"', "agents.ann.tools.a: input tag 'functoin' found using 'type' does not match"),
        ('type = "mcp"\nserver_label = "docs"', "server_url: field required"),
        (
            'type = "mcp"\nserver_label = "d"\nserver_url = "https://x/"\nurl = "y"',
            "tools.d.url: there is no such key; permitted are allowed",
        ),
        (
            'type = "mcp"\nserver_label = "d"\nserver_url = "https://x/"\nauthorization = "env:NOT_SET"',
            "NOT_SET is unset",
        ),
        (
            'type = "mcp"\nserver_label = "d"\nserver_url = "https://x/"\nrequire_approval = "sometimes"',
            "require_approval",
        ),
    ],
)
def test_malformed_tool(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=r"agents\.ann\.tools") as refused:
        read(f"[[agents.ann.tools]]\n{text}")
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://x.example.com/a?b=c", "http://localhost:8000/", "http://127.0.0.1/", "http://[::1]:9/", "http://crm/",
        "http://crm.default.svc.cluster.local/", "http://crm.internal/", "http://10.0.0.4:80/", "http://192.168.1.1/",
    ],
)  # fmt: skip
def test_url_is_taken(url: str) -> None:
    assert function(run={"url": url}).run == HttpRun(url=url)


def test_variable_of_the_env_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("TOOL_KEY_OF_A_FILE=from-the-file\n")
    monkeypatch.chdir(tmp_path)
    headers = {"X-Key": "env:TOOL_KEY_OF_A_FILE"}
    run = HttpRun.model_validate({"url": "https://x/", "headers": headers})
    assert run.headers["X-Key"].get_secret_value() == "from-the-file"


def test_names_are_unique() -> None:
    twice: list[FunctionTool | McpTool] = [
        function(),
        function(name="b"),
        function(),
        McpTool.model_validate(MCP),
        McpTool.model_validate(MCP),
    ]
    assert tool_faults(twice) == [
        "tools.order: the name stands there twice",
        "tools.docs: the server_label stands there twice",
    ]


@pytest.mark.parametrize("name", ["recall", "handoff", "end_talk"])
def test_built_in_name_is_reserved(name: str) -> None:
    assert tool_faults([function(name=name)]) == [f"tools.{name}: is the name of a built-in tool; choose another"]


def test_doubts_are_told() -> None:
    docs = McpTool.model_validate(MCP)
    quiet = McpTool.model_validate(MCP | {"require_approval": "never"})
    assert tool_doubts([function(run={"url": "https://x/"}), function(run="client"), quiet]) == []
    (nobody,) = tool_doubts([function()])
    assert nobody.startswith("tools.order: nobody runs it")
    (asks,) = tool_doubts([docs], voice_live_versions=["2026-04-10", "2026-07-15-preview"])
    assert "without require_approval" in asks
    (old,) = tool_doubts([quiet], voice_live_versions=["2026-07-15", "2025-10-01"])
    assert "no MCP in api-version 2025-10-01" in old


@pytest.mark.parametrize(("query", "is_key"), [("", False), ("?version=2", False), ("?code=canary-0123456789", True)])
def test_key_in_the_query_is_a_credential(query: str, is_key: bool) -> None:
    server = {"type": "mcp", "server_label": "docs", "server_url": f"https://mcp.example.com/{query}"}
    assert McpTool.model_validate(server).has_credential == is_key


def test_handoff_names_the_permitted() -> None:
    declared = builtin_declaration("handoff", agent_ids=["sage", "marcus"])
    assert declared["parameters"]["properties"]["agent_id"]["enum"] == ["marcus", "sage"]
    other = builtin_declaration("handoff", agent_ids=["ben"])
    assert other["parameters"]["properties"]["agent_id"]["enum"] == ["ben"]
    assert builtin_declaration("end_talk")["parameters"]["properties"] == {}
