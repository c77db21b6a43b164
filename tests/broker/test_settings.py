"""Settings: each wrong value is one line that names its variable, and no line carries a secret."""

import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.agents import write_agents
from token_broker.sessions.agents import AgentsFileError, load_agents
from token_broker.settings import Settings, SettingsError, doubts, unknown_variables

ROOT = Path(__file__).parents[2]
LONG = "k" * 32
WEBHOOK_SECRET = f"whsec_{'a' * 43}="


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings.load(_env_file=None)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PORT": "eighty"}, "PORT"),
        ({"PORT": "70000"}, "PORT"),
        ({"AZURE_VOICELIVE_ENDPOINT": "x.openai.azure.com"}, "AZURE_VOICELIVE_ENDPOINT"),
        ({"AZURE_VOICELIVE_ENDPOINT": "http://x.openai.azure.com"}, "AZURE_VOICELIVE_ENDPOINT"),
        ({"AZURE_VOICELIVE_ENDPOINT": "https://x.openai.azure.com/openai/v1"}, "AZURE_VOICELIVE_ENDPOINT"),
        ({"AZURE_OPENAI_ENDPOINT": "nothing"}, "AZURE_OPENAI_ENDPOINT"),
        ({"BROKER_PUBLIC_URL": "voice.example.com"}, "BROKER_PUBLIC_URL"),
        ({"BROKER_PUBLIC_URL": "https://sprech-bücher.example"}, "BROKER_PUBLIC_URL"),  # browsers send xn--…
        ({"BROKER_PUBLIC_URL": "https://*.example.com"}, "BROKER_PUBLIC_URL"),
        ({"ZEP_API_URL": "zep"}, "ZEP_API_URL"),
        ({"BROKER_MEMORY_SINKS": "zep"}, "ZEP_API_KEY"),
        ({"BROKER_MEMORY_SINKS": "redis"}, "BROKER_MEMORY_SINKS"),
        ({"BROKER_MEMORY_SINKS": "zep,zep", "ZEP_API_KEY": "secret-of-zep"}, "BROKER_MEMORY_SINKS"),
        ({"BROKER_MEMORY_SINKS": "zep,zep_cloud", "ZEP_API_KEY": "secret-of-zep"}, "BROKER_MEMORY_SINKS"),
        ({"BROKER_MEMORY_SINKS": "http", "BROKER_MEMORY_HTTP_SECRET": WEBHOOK_SECRET}, "BROKER_MEMORY_HTTP_URL"),
        ({"BROKER_MEMORY_SINKS": "http", "BROKER_MEMORY_HTTP_URL": "https://x.example"}, "BROKER_MEMORY_HTTP_SECRET"),
        ({"BROKER_MEMORY_HTTP_SECRET": "whsec_c2hvcnQtc2VjcmV0"}, "BROKER_MEMORY_HTTP_SECRET"),
        ({"BROKER_MEMORY_HTTP_SECRET": "a-long-secret-that-is-no-base64-of-anything"}, "BROKER_MEMORY_HTTP_SECRET"),
        ({"BROKER_MEMORY_HTTP_URL": "http://memory.example.com/?secret=1"}, "BROKER_MEMORY_HTTP_URL"),
        ({"BROKER_MEMORY_HTTP_URL": "https://ann:secret@memory.example.com/"}, "BROKER_MEMORY_HTTP_URL"),
        ({"BROKER_MEMORY_HTTP_URL": "memory.example.com/secret"}, "BROKER_MEMORY_HTTP_URL"),
        ({"AZURE_VOICELIVE_KEY": "two words-secret"}, "AZURE_VOICELIVE_KEY"),
        ({"AZURE_VOICELIVE_KEY": "schlüssel-secret"}, "AZURE_VOICELIVE_KEY"),
        ({"AZURE_VOICELIVE_AUTH": "key"}, "AZURE_VOICELIVE_KEY"),
        ({"AZURE_VOICELIVE_AUTH": "password"}, "AZURE_VOICELIVE_AUTH"),
        ({"AZURE_VOICELIVE_API_VERSION": "latest"}, "AZURE_VOICELIVE_API_VERSION"),
        ({"AZURE_VOICELIVE_ENDPOINT_KIND": "both"}, "AZURE_VOICELIVE_ENDPOINT_KIND"),
        ({"AZURE_VOICELIVE_PROJECT_NAME": "a/b"}, "AZURE_VOICELIVE_PROJECT_NAME"),
        ({"BROKER_TOKEN_STRATEGIES": "ga,magic"}, "BROKER_TOKEN_STRATEGIES"),
        ({"BROKER_TOKEN_STRATEGIES": "ga,ga"}, "BROKER_TOKEN_STRATEGIES"),
        ({"BROKER_TOKEN_STRATEGIES": ","}, "BROKER_TOKEN_STRATEGIES"),
        ({"BROKER_PROXY_UPSTREAMS": "voice_live,voice_live"}, "BROKER_PROXY_UPSTREAMS"),
        ({"BROKER_TOKEN_BUDGET_S": "0"}, "BROKER_TOKEN_BUDGET_S"),
        ({"BROKER_TOKEN_BUDGET_S": "nan"}, "BROKER_TOKEN_BUDGET_S"),
        ({"BROKER_TOKEN_BUDGET_S": "inf"}, "BROKER_TOKEN_BUDGET_S"),
        ({"BROKER_ATTEMPT_TIMEOUT_S": "-1"}, "BROKER_ATTEMPT_TIMEOUT_S"),
        ({"BROKER_RETRY_ATTEMPTS": "0"}, "BROKER_RETRY_ATTEMPTS"),
        ({"BROKER_TOKEN_TTL_S": "9"}, "BROKER_TOKEN_TTL_S"),
        ({"BROKER_HEDGE_AFTER_MS": "soon"}, "BROKER_HEDGE_AFTER_MS"),
        ({"BROKER_HEDGE_AFTER_MS": "-1"}, "BROKER_HEDGE_AFTER_MS"),
        ({"BROKER_HEDGE_AFTER_MS": "nan"}, "BROKER_HEDGE_AFTER_MS"),
        ({"BROKER_TOKEN_TTL_S": "7201"}, "BROKER_TOKEN_TTL_S"),
        ({"BROKER_DATABASE_URL": "mysql://user:secret@host/db"}, "BROKER_DATABASE_URL"),
        ({"BROKER_DATABASE_URL": "postgresql+asyncpg://host/db"}, "BROKER_SIGNING_KEY"),
        ({"BROKER_SIGNING_KEY": "short-secret"}, "BROKER_SIGNING_KEY"),
        ({"BROKER_SIGNING_KEY": f"{LONG},short-secret"}, "BROKER_SIGNING_KEY"),
        ({"BROKER_AUTH": "basic"}, "BROKER_AUTH"),
        ({"BROKER_AUTH": "entra", "BROKER_ENTRA_AUDIENCE": "api://x"}, "BROKER_ENTRA_TENANT_ID"),
        ({"BROKER_AUTH": "entra", "BROKER_ENTRA_TENANT_ID": "0" * 8}, "BROKER_ENTRA_AUDIENCE"),
        ({"BROKER_TRUSTED_PROXIES": "10.0.0.0/99"}, "BROKER_TRUSTED_PROXIES"),
        ({"BROKER_TRUSTED_PROXIES": "1" * 5_000}, "BROKER_TRUSTED_PROXIES"),
        ({"BROKER_TRUSTED_PROXIES": "10.0.0.0/8,gateway"}, "BROKER_TRUSTED_PROXIES"),
        ({"BROKER_ALLOWED_ORIGINS": "app.example.com"}, "BROKER_ALLOWED_ORIGINS"),
        ({"BROKER_DIRECT_WEBSOCKET": "yes"}, "BROKER_DIRECT_WEBSOCKET"),
        ({"BROKER_WEBRTC_FILTER": "true"}, "BROKER_WEBRTC_FILTER"),
        ({"BROKER_RATE_LIMIT_PER_MINUTE": "-1"}, "BROKER_RATE_LIMIT_PER_MINUTE"),
        ({"BROKER_RETENTION_DAYS": "-1"}, "BROKER_RETENTION_DAYS"),
        ({"BROKER_LOG_LEVEL": "loud"}, "BROKER_LOG_LEVEL"),
        ({"BROKER_MAX_BODY_BYTES": "1"}, "BROKER_MAX_BODY_BYTES"),
        ({"HOST": "0.0.0.0", "AZURE_VOICELIVE_ENDPOINT": "https://x.openai.azure.com"}, "BROKER_AUTH"),
    ],
)
def test_wrong_value_is_one_line(variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:
        load(monkeypatch, **variables)
    assert [line.partition(":")[0] for line in refused.value.lines] == [named]
    assert all("\n" not in line and len(line) > len(named) + 12 for line in refused.value.lines)
    assert "secret" not in str(refused.value).replace("shared_secret", "")


def test_every_fault_has_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:
        load(monkeypatch, PORT="eighty", BROKER_AUTH="basic", BROKER_TOKEN_TTL_S="1")
    assert {line.partition(":")[0] for line in refused.value.lines} == {"PORT", "BROKER_AUTH", "BROKER_TOKEN_TTL_S"}


def test_all_faults_show_in_one_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError) as refused:
        load(
            monkeypatch,
            PORT="eighty",
            AZURE_VOICELIVE_ENDPOINT="x.openai.azure.com",
            AZURE_VOICELIVE_AUTH="key",
            BROKER_DATABASE_URL="postgresql+asyncpg://host/db",
        )
    assert [line.partition(":")[0] for line in refused.value.lines] == [
        "AZURE_VOICELIVE_ENDPOINT", "AZURE_VOICELIVE_KEY", "BROKER_SIGNING_KEY", "PORT",
    ]  # fmt: skip


def test_wrong_value_causes_no_second_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:  # BROKER_AUTH unset would be a fault here
        load(monkeypatch, BROKER_AUTH="basic", HOST="0.0.0.0", AZURE_VOICELIVE_ENDPOINT="https://x.openai.azure.com")
    assert [line.partition(":")[0] for line in refused.value.lines] == ["BROKER_AUTH"]
    assert "unset" not in str(refused.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"HOST": "0.0.0.0", "AZURE_VOICELIVE_ENDPOINT": "https://x.openai.azure.com", "BROKER_AUTH": "none"},
        {"HOST": "0.0.0.0", "AZURE_VOICELIVE_ENDPOINT": "http://127.0.0.1:9100"},
        {"HOST": "0.0.0.0"},
        {"HOST": "127.0.0.1", "AZURE_VOICELIVE_ENDPOINT": "https://x.openai.azure.com"},
        {"HOST": "::1", "AZURE_VOICELIVE_ENDPOINT": "https://x.openai.azure.com"},
    ],
)
def test_open_host_needs_explicit_auth(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, **variables)


def test_defaults_are_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch)
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8080, "gpt-realtime")
    assert settings.token_strategies == (
        "ga",
        "direct_deployment",
        "project",
        "unified",
        "voice_live_webrtc",
        "websocket_proxy",
    )
    assert (settings.token_budget_s, settings.attempt_timeout_s, settings.retry_attempts) == (6, 2.5, 2)
    assert (settings.token_ttl_s, settings.api_version) == (60, "2025-10-01")
    assert (settings.azure_scope, settings.transcription_model) == (
        "https://ai.azure.com/.default",
        "gpt-4o-mini-transcribe",
    )
    assert (settings.proxy_upstreams, settings.proxy_connect_timeout_s) == (("voice_live", "openai_realtime"), 5)
    assert settings.database_url.get_secret_value() == "sqlite+aiosqlite:///var/token-broker.db"
    assert (settings.direct_websocket, settings.webrtc_filter, settings.drain_s) == ("off", "on", 25)
    assert (settings.rate_limit_per_minute, settings.max_sessions_per_principal, settings.max_sessions) == (
        60,
        10,
        1000,
    )
    assert settings.retention_days == 0


@pytest.mark.parametrize(("value", "delay_ms"), [("auto", "auto"), ("0", 0), ("800", 800)])
def test_hedge_delay(value: str, delay_ms: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, BROKER_HEDGE_AFTER_MS=value).hedge_after_ms == delay_ms


def test_values_may_have_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        BROKER_TOKEN_STRATEGIES=" unified , websocket_proxy ",
        BROKER_SIGNING_KEY=f"{LONG}, {LONG[::-1]}x",
        AZURE_VOICELIVE_KEY="",
        BROKER_TOKEN_BUDGET_S="2.5",
        AZURE_VOICELIVE_ENDPOINT="https://X.services.ai.azure.com/",
    )
    assert settings.token_strategies == ("unified", "websocket_proxy")
    assert [key.get_secret_value() for key in settings.signing_keys] == [LONG, f"{LONG[::-1]}x"]
    assert settings.key is None
    assert settings.token_budget_s == 2.5
    assert settings.target is not None
    assert settings.target.openai_base == "https://x.openai.azure.com"


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_VOICELIVE_ENDPOINT", "https://x.openai.azure.com")
    monkeypatch.setenv("AZURE_VOICELIVE_KEY", "from-the-environment")
    settings = Settings.load(_env_file=None, endpoint="http://127.0.0.1:1", key="from-the-call", azure_auth="key")
    assert settings.endpoint == "http://127.0.0.1:1"
    assert settings.key == SecretStr("from-the-call")


def test_environment_overrides_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=8081\nAZURE_VOICELIVE_MODEL=from-the-file\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "8082")
    settings = Settings.load()
    assert (settings.port, settings.model) == (8082, "from-the-file")


def test_settings_are_frozen_and_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        AZURE_VOICELIVE_KEY="canary-key-1",
        BROKER_SIGNING_KEY="canary-signing-key-0123456789abcdef",
        ZEP_API_KEY="canary-zep",
        BROKER_METRICS_TOKEN="canary-metrics",
        BROKER_DATABASE_URL="postgresql+asyncpg://user:canary-password@host/db",
        SIMULATOR_KEY="canary-simulator",
        BROKER_OUTBOUND_PROXY="http://user:canary-proxy@proxy.example:3128",
        HTTPS_PROXY="http://user:canary-proxy@proxy.example:3128",
    )
    assert "canary" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "canary" not in f"{settings.proxy!r} {settings.proxy}"
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


# --- values in quotes


def quoted(value: str) -> str:
    return f'"{value}"'


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AZURE_VOICELIVE_KEY", '"secret-0123456789"'),  # as `docker --env-file` passes it on
        ("AZURE_VOICELIVE_KEY", "'secret-0123456789'"),
        ("AZURE_VOICELIVE_ENDPOINT", '"https://x.openai.azure.com"'),
        ("BROKER_SIGNING_KEY", f'"{LONG}"'),
        ("BROKER_ALLOWED_ORIGINS", '"https://app.example.com,https://b.example.com"'),
        ("AZURE_VOICELIVE_MODEL", '"gpt-realtime"'),
        ("PORT", '"8080"'),
        ("BROKER_LOG_LEVEL", " 'info' "),
        ("BROKER_METRICS_TOKEN", '""'),
        ("AZURE_CLIENT_SECRET", '"secret"'),  # azure-identity reads it, and not the broker
        ("https_proxy", '"http://proxy:3128"'),
    ],
)
def test_value_in_quotes_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:
        load(monkeypatch, **{name: value})
    (line,) = refused.value.lines
    assert line.startswith(f"{name.upper()}: is in quotes")
    assert "secret" not in line


def test_every_quoted_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    aliases = {str(field.alias) for field in Settings.model_fields.values()}
    with pytest.raises(SettingsError) as refused:
        load(monkeypatch, **{alias: quoted("8") for alias in aliases})
    assert {line.partition(":")[0] for line in refused.value.lines} == aliases


def test_quotes_of_a_dotenv_file_are_none(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AZURE_VOICELIVE_MODEL=\"gpt-realtime\"\nBROKER_LOG_LEVEL='debug'\n")
    settings = Settings.load(_env_file=tmp_path / ".env")
    assert (settings.model, settings.log_level) == ("gpt-realtime", "debug")


@pytest.mark.parametrize("value", ['o"clock', "it's", '"', "5'11\""])
def test_quote_within_a_value_is_taken(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, AZURE_VOICELIVE_MODEL=value).model == value


# --- clouds


@pytest.mark.parametrize(
    ("endpoint", "scope", "authority"),
    [
        ("https://x.openai.azure.com", "https://ai.azure.com/.default", "https://login.microsoftonline.com"),
        (
            "https://x.openai.azure.us",
            "https://cognitiveservices.azure.us/.default",
            "https://login.microsoftonline.us",
        ),
        ("https://x.services.ai.azure.us", "https://ai.azure.us/.default", "https://login.microsoftonline.us"),
        (
            "https://x.cognitiveservices.azure.us",
            "https://cognitiveservices.azure.us/.default",
            "https://login.microsoftonline.us",
        ),
        (
            "https://x.openai.azure.cn",
            "https://cognitiveservices.azure.cn/.default",
            "https://login.partner.microsoftonline.cn",
        ),
        (
            "https://x.services.ai.azure.cn",
            "https://cognitiveservices.azure.cn/.default",
            "https://login.partner.microsoftonline.cn",
        ),
        ("https://gateway.example.com", "https://ai.azure.com/.default", "https://login.microsoftonline.com"),
        ("https://azure.us.example.com", "https://ai.azure.com/.default", "https://login.microsoftonline.com"),
    ],
)
def test_entra_follows_the_cloud(endpoint: str, scope: str, authority: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, AZURE_VOICELIVE_ENDPOINT=endpoint)
    assert (settings.azure_scope, settings.azure_authority) == (scope, authority)
    assert settings.callers_authority == authority


def test_gateways_cloud_is_its_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        AZURE_VOICELIVE_ENDPOINT="https://gateway.example.com",
        AZURE_OPENAI_ENDPOINT="https://x.openai.azure.us",
    )
    assert settings.azure_authority == "https://login.microsoftonline.us"


def test_given_scope_and_authority_win(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        AZURE_VOICELIVE_ENDPOINT="https://x.openai.azure.us",
        AZURE_VOICELIVE_ENTRA_SCOPE="https://other.example/.default",
        AZURE_AUTHORITY_HOST="login.example.com",  # azure-identity takes it without a scheme, too
        BROKER_ENTRA_AUTHORITY="https://login.microsoftonline.com/",
    )
    assert settings.azure_scope == "https://other.example/.default"
    assert settings.azure_authority == "https://login.example.com"
    assert settings.callers_authority == "https://login.microsoftonline.com"


# --- the outbound proxy


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, "http://proxy.example:3128"),
        ({"https_proxy": "http://proxy.example:3128"}, "http://proxy.example:3128"),
        ({"https_proxy": "http://small.example:1", "HTTPS_PROXY": "http://big.example:1"}, "http://small.example:1"),
        ({"BROKER_OUTBOUND_PROXY": "http://own.example:8080", "HTTPS_PROXY": "http://x:1"}, "http://own.example:8080"),
        ({"BROKER_OUTBOUND_PROXY": "off", "HTTPS_PROXY": "http://proxy.example:3128"}, None),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, None),  # for plain http, which only loopback is asked by
    ],
)
def test_proxy_is_read(variables: dict[str, str], url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **variables)
    assert (settings.proxy.url if settings.proxy else None) == url


def test_no_proxy_is_read_in_small_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, HTTPS_PROXY="proxy.example:3128", no_proxy="zep.internal, 10.0.0.0/8")
    assert settings.proxy is not None
    assert not settings.proxy.serves("https://zep.internal/")
    assert settings.proxy.serves("https://x.openai.azure.com/")


@pytest.mark.parametrize("name", ["BROKER_OUTBOUND_PROXY", "HTTPS_PROXY"])
@pytest.mark.parametrize(
    "value",
    [
        "socks5://proxy:1080",
        "https://user:canary-pw@proxy:443",
        "http://",
        "http://user:canary-pw@proxy:99999",
        "ftp://p",
    ],
)
def test_unusable_proxy_is_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:
        load(monkeypatch, **{name: value})
    (line,) = refused.value.lines
    assert line.startswith(f"{name}: ")
    assert "canary" not in line


def test_misspelt_variables_are_found() -> None:
    lines = unknown_variables(
        {"BROKER_TOKEN_BUGDET_S": "1", "BROKER_AUTH": "none", "PATH": "/", "AZURE_VOICELIVE_KEYS": "x"}
    )
    assert len(lines) == 2
    assert "AZURE_VOICELIVE_KEY is meant" in lines[0]
    assert "BROKER_TOKEN_BUDGET_S is meant" in lines[1]


@pytest.mark.parametrize(
    ("version", "voice_live", "cautioned"),
    [
        ("2025-10-01", "2025-10-01", False),
        ("2026-07-15", "2026-07-15", False),
        ("2024-10-01-preview", "2025-10-01", True),
        ("2025-09-30", "2025-10-01", True),
    ],
)
def test_voice_live_gets_a_version_it_has(
    version: str, voice_live: str, cautioned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(monkeypatch, AZURE_VOICELIVE_API_VERSION=version)
    assert settings.voice_live_api_version == voice_live
    assert [line.partition(":")[0] for line in doubts(settings)] == ["AZURE_VOICELIVE_API_VERSION"] * cautioned


# --- .env.example


def test_env_example_is_up_to_date() -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "_env_example.py"))["render"]
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == render(), "run scripts/env-example"


def test_env_example_lists_every_default(tmp_path: Path) -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    variables = dict(line[1:].split("=", 1) for line in lines if line.startswith("#") and "=" in line.partition(" ")[0])
    assert variables.keys() == {field.alias for field in Settings.model_fields.values()}
    env = tmp_path / ".env"
    env.write_text("\n".join(f"{name}={value}" for name, value in variables.items()), encoding="utf-8")
    assert Settings(_env_file=env) == Settings(_env_file=None)


# --- the agents' file


AGENTS = """
default = "a"
[agents.a]
name = "A"
voices = { ga = "marin", preview = "en-US-GuyNeural" }
instructions = "Be A."
tools = [{ type = "function", name = "f" }]
[agents.b]
name = "B"
inherits = "a"
instructions = "Be B."
[agents.c]
name = "C"
inherits = "b"
tools = []
"""


def written(tmp_path: Path, text: str) -> Path:
    return write_agents(tmp_path, text)


def test_agent_inherits_missing_fields(tmp_path: Path) -> None:
    registry = load_agents(written(tmp_path, AGENTS))
    a, b, c = registry.values()
    assert (registry.default, list(registry)) == ("a", ["a", "b", "c"])
    assert (b.voices, b.instructions, b.tools) == (a.voices, "Be B.", a.tools)
    assert (c.voices, c.instructions, c.tools) == (a.voices, "Be B.", ())


def test_agent_inherits_its_resources(tmp_path: Path) -> None:
    said = 'zones = ["eu"]\nresources = ["swe*"]\nmodel = "talker"\nmodel_family = "gpt-realtime-2"\n'
    text = AGENTS.replace('instructions = "Be A."', f'instructions = "Be A."\n{said}')
    a, b, c = load_agents(written(tmp_path, f'{text}\nmodel = "other"\nzones = ["us"]')).values()
    assert (a.zones, a.resources, a.model, a.model_family) == (("eu",), ("swe*",), "talker", "gpt-realtime-2")
    assert (b.zones, b.resources, b.model, b.model_family) == (a.zones, a.resources, a.model, a.model_family)
    assert (c.zones, c.resources, c.model, c.model_family) == (("us",), a.resources, "other", None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default = ", "is not TOML"),
        ("", "default"),
        ('default = "a"', "agents"),
        ('default = "a"\n[agents]', "agents"),
        (AGENTS.replace('default = "a"', 'default = "z"'), "there is no agent 'z'"),
        (AGENTS.replace('inherits = "a"', 'inherits = "z"'), "'z' is unknown"),
        (AGENTS.replace('inherits = "a"', 'inherits = "c"'), "a circle"),
        (AGENTS.replace('inherits = "a"', 'inherits = "b"'), "a circle"),
        (AGENTS.replace('instructions = "Be A."', ""), "has no instructions"),
        (AGENTS.replace('voices = { ga = "marin", preview = "en-US-GuyNeural" }', ""), "has no voices"),
        (AGENTS.replace('ga = "marin", ', ""), "agents.a.voices.ga"),
        (AGENTS.replace('name = "B"', 'nmae = "B"'), "agents.b.nmae: there is no such key; name is meant, perhaps"),
        (AGENTS.replace('ga = "marin"', 'ga = "marin", beta = "x"'), "permitted are ga, live, preview"),
        (f"{AGENTS}\nzones = []", "agents.c.zones"),
        (f'{AGENTS}\nzones = "eu"', "agents.c.zones"),
        (f'{AGENTS}\nmodel_family = "gpt-4o"', "agents.c.model_family"),
        (AGENTS.replace("[agents.b]", "[agents.B]"), "agents"),
        (AGENTS.replace('"Be A."', '"  "'), "agents.a.instructions"),
        (AGENTS.replace('"Be A."', f'"{"x" * 40_000}"'), "agents.a.instructions"),
    ],
)
def test_agents_file_fault_names_its_place(text: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(AgentsFileError) as refused:
        load_agents(path)
    assert says in str(refused.value)
    assert all(line.startswith(str(path)) for line in str(refused.value).splitlines())


def test_unreadable_agents_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AgentsFileError, match="can't be read"):
        load_agents(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(AgentsFileError, match="is not TOML"):
        load_agents(tmp_path / "binary.toml")


def test_three_agents_are_built_in() -> None:
    registry = load_agents()
    assert (registry.default, list(registry)) == ("elena", ["elena", "marcus", "sage"])
    elena, marcus, sage = registry.values()
    assert elena.voices["preview"] == "en-US-Ava:DragonHDLatestNeural"
    assert marcus.voices["preview"] == "en-US-GuyNeural"
    assert sage.voices == elena.voices
    file: dict[str, Any] = tomllib.loads(
        (ROOT / "token_broker" / "sessions" / "agents.toml").read_text(encoding="utf-8")
    )
    assert file["agents"]["sage"]["inherits"] == "elena"
    assert len({agent.instructions for agent in registry.values()}) == 3


@pytest.mark.parametrize(
    ("variables", "sinks"),
    [
        ({}, ()),
        ({"ZEP_API_KEY": "z"}, ("zep",)),
        ({"ZEP_API_KEY": "z", "BROKER_MEMORY_SINKS": ""}, ()),
        ({"ZEP_API_KEY": "z", "BROKER_MEMORY_SINKS": " "}, ()),
        ({"ZEP_API_KEY": "z", "BROKER_MEMORY_SINKS": "zep_cloud"}, ("zep_cloud",)),
        (
            {
                "ZEP_API_KEY": "z",
                "BROKER_MEMORY_SINKS": "http, zep_cloud",
                "BROKER_MEMORY_HTTP_URL": "http://memory:8000/events?tenant=1",
                "BROKER_MEMORY_HTTP_SECRET": f"{WEBHOOK_SECRET} {WEBHOOK_SECRET}",
            },
            ("http", "zep_cloud"),
        ),
    ],
)
def test_sinks_of_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sinks: tuple[str, ...]) -> None:
    assert load(monkeypatch, **variables).sinks == sinks


@pytest.mark.parametrize(("line", "sinks"), [("BROKER_MEMORY_SINKS=", ()), ("BROKER_MEMORY_SINKS=zep", ("zep",))])
def test_sinks_of_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, sinks: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"ZEP_API_KEY=z\n{line}\n")
    assert Settings.load().sinks == sinks
    monkeypatch.setenv("BROKER_MEMORY_SINKS", "")
    assert Settings.load().sinks == ()
