"""The resources' file: each fault is one line, no line has a key, and the variables say what the file leaves out."""

from pathlib import Path
from typing import Protocol

import pytest
from pydantic import SecretStr

from strategies.endpoint import EndpointKind
from token_broker.azure import build_credentials
from token_broker.observability.logging import Redactor, own_secrets
from token_broker.settings import Settings, SettingsError, doubts

KEY = "a-key-of-forty-characters-that-is-secret"
TWO = """
[[resources]]
name = "eastus2"
endpoint = "https://x-eus2.services.ai.azure.com/"
key_env = "AZURE_KEY_EASTUS2"
project = "talks"
zone = "us"
weight = 3
voice_live_per_minute = 30

[[resources]]
name = "sweden"
endpoint = "https://x-swc.openai.azure.com"
api_version = "2026-04-10"
model = "talker"
model_family = "gpt-realtime-2"
transcription_model = "transcribe"
priority = 2
zone = "eu"
"""


class Load(Protocol):
    def __call__(self, text: str, **variables: str) -> Settings: ...


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    def load(text: str, **variables: str) -> Settings:
        path = tmp_path / "resources.toml"
        path.write_text(text)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Settings.load(_env_file=None, resources_file=path)

    return load


def test_each_resource_has_its_variables(load: Load) -> None:
    settings = load(TWO, AZURE_KEY_EASTUS2=KEY, AZURE_VOICELIVE_MODEL="gpt-realtime-1.5")
    first, second = settings.resources
    assert (first.name, first.entry.weight, first.entry.zone) == ("eastus2", 3, "us")
    assert first.target.base == "https://x-eus2.services.ai.azure.com"
    assert first.target.openai_base == "https://x-eus2.openai.azure.com"
    assert (first.target.project, second.target.project) == ("talks", None)
    assert (first.settings.model, first.settings.key) == ("gpt-realtime-1.5", SecretStr(KEY))
    assert first.settings.transcription_model == settings.transcription_model
    assert (first.settings.uses_key, second.settings.uses_key, second.settings.uses_entra) == (True, False, True)
    assert second.target.kind is EndpointKind.DIRECT
    assert second.settings.upstreams == ("openai_realtime",)
    assert (second.settings.model, second.settings.transcription_model) == ("talker", "transcribe")
    assert (second.settings.api_version, second.entry.priority) == ("2026-04-10", 2)
    assert settings.target == first.target


def test_one_resource_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_VOICELIVE_ENDPOINT", "https://x.services.ai.azure.com")
    settings = Settings.load(_env_file=None)
    (only,) = settings.resources
    assert (only.name, only.settings, only.entry.priority, only.entry.weight) == ("default", settings, 1, 1)
    monkeypatch.delenv("AZURE_VOICELIVE_ENDPOINT")
    assert Settings.load(_env_file=None).resources == ()


def test_empty_optional_texts_are_left_out(load: Load) -> None:
    text = '[[resources]]\nname = "a"\nendpoint = "https://x.services.ai.azure.com"\n'
    (resource,) = load(f'\ufeff{text}openai_endpoint = ""\nproject = ""\n').resources  # editors write a byte order mark
    assert (resource.target.openai_base, resource.target.project) == ("https://x.openai.azure.com", None)


NAMED = 'name = "a"\nendpoint = "https://x.openai.azure.com"\n'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "wieght = 3",
            "resources.a.wieght: there is no such key; weight is meant, perhaps; permitted are api_version,",
        ),
        ("weight = -1", "resources.a.weight: "),
        ('priority = "1"', "resources.a.priority: "),
        ('zone = "e u"', "resources.a.zone: "),
        ('kind = "both"', "resources.a.kind: "),
        ('model = ""', "resources.a.model: "),
        ('model_family = "gpt-4o"', "resources.a.model_family: "),
        ('api_version = "latest"', "resources.a.api_version: "),
        ('openai_endpoint = "http://x.openai.azure.com"', "resources.a.openai_endpoint: is plain http"),
        ('key_env = "NO_SUCH_KEY"', "resources.a.key_env: NO_SUCH_KEY is unset"),
        ('key_env = "A_QUOTED_KEY"', "resources.a.key_env: A_QUOTED_KEY is in quotes"),
        ('key_env = "A_KEY_OF_TWO_WORDS"', "resources.a.key_env: A_KEY_OF_TWO_WORDS has blanks"),
        ('auth = "key"', "resources.a.key_env: missing"),
        (f"[[resources]]\n{NAMED}", "resources.a: the name stands there twice"),
        ('[[resources]]\nname = "b"', "resources.b.endpoint: field required"),
        ('[[resources]]\nname = "East US"\nendpoint = "https://y.openai.azure.com"', "resources.East US.name: "),
    ],
)
def test_each_fault_is_one_line(load: Load, lines: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(f"[[resources]]\n{NAMED}{lines}\n", A_QUOTED_KEY=f'"{KEY}"', A_KEY_OF_TWO_WORDS=f"{KEY} {KEY}")
    (line,) = refused.value.lines
    assert line.startswith("BROKER_RESOURCES_FILE: ")
    assert said in line
    assert "secret" not in line


def test_key_in_place_of_its_name_is_not_told(load: Load) -> None:
    key = "c0ffee" * 14
    with pytest.raises(SettingsError, match=r"resources\.a\.key_env: looks like a key itself") as refused:
        load(f'[[resources]]\n{NAMED}key_env = "{key}"\n')
    assert key not in str(refused.value)


@pytest.mark.parametrize("text", ["", "resources = []", "[[resources", "resources = 3", "[resource]\nx = 1"])
def test_useless_file_stops_the_start(load: Load, text: str) -> None:
    with pytest.raises(SettingsError, match="BROKER_RESOURCES_FILE: "):
        load(text)


def test_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read: No such file"):
        Settings.load(_env_file=None, resources_file=tmp_path / "none.toml")


def test_all_faults_show_at_once(load: Load) -> None:
    with pytest.raises(SettingsError) as refused:
        load(f"[[resources]]\n{NAMED}weight = -1\n[[resources]]\n", PORT="eighty")
    assert [line.partition(":")[0] for line in refused.value.lines] == [*["BROKER_RESOURCES_FILE"] * 3, "PORT"]


def test_open_host_needs_explicit_auth(load: Load) -> None:
    with pytest.raises(SettingsError, match="BROKER_AUTH: unset"):
        load(TWO, AZURE_KEY_EASTUS2=KEY, HOST="0.0.0.0")


def test_keys_are_secrets_everywhere(load: Load) -> None:
    settings = load(TWO, AZURE_KEY_EASTUS2=KEY)
    shown = f"{settings!r} {settings.resources!r} {settings.model_dump()} {settings.resources[0].settings.model_dump()}"
    assert KEY not in shown
    assert Redactor(own_secrets(settings))(f"Azure says {KEY}") == "Azure says [redacted]"


def test_unused_variables_are_told(load: Load) -> None:
    settings = load(TWO, AZURE_KEY_EASTUS2=KEY, AZURE_VOICELIVE_KEY=KEY)
    assert [line.partition(":")[0] for line in doubts(settings)] == ["AZURE_VOICELIVE_KEY"]


def test_one_endpoint_under_two_names_is_told(load: Load) -> None:
    twice = TWO.replace("https://x-swc.openai.azure.com", "https://X-EUS2.services.ai.azure.com")
    (line,) = doubts(load(twice, AZURE_KEY_EASTUS2=KEY))
    assert "eastus2, sweden have one endpoint" in line


def test_password_in_an_endpoint_names_the_right_key(load: Load) -> None:
    with pytest.raises(SettingsError) as told:
        load(TWO.replace("https://x-swc", "https://ann:word@x-swc"), AZURE_KEY_EASTUS2=KEY)
    assert "the variable that key_env names" in str(told.value)
    assert "AZURE_VOICELIVE_KEY" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("check AZURE_VOICELIVE_ENDPOINT, and more", "check resources.sweden.endpoint, and more"),
        ("its kind (AZURE_VOICELIVE_ENDPOINT_KIND)", "its kind (resources.sweden.kind)"),
        ("set AZURE_VOICELIVE_AUTH=entra, and", 'set resources.sweden.auth = "entra", and'),
        ("unset AZURE_VOICELIVE_KEY", "unset resources.sweden.key_env"),
        ("AZURE_CLIENT_ID names it", "AZURE_CLIENT_ID names it"),
    ],
)
def test_advice_names_keys_of_the_file(load: Load, text: str, told: str) -> None:
    assert load(TWO, AZURE_KEY_EASTUS2=KEY).resources[1].as_configured(text) == told


def test_advice_without_a_file_names_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_VOICELIVE_ENDPOINT", "https://x.openai.azure.com")
    (only,) = Settings.load(_env_file=None).resources
    assert only.as_configured("set AZURE_VOICELIVE_AUTH=entra") == "set AZURE_VOICELIVE_AUTH=entra"


def test_key_may_stand_in_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"BROKER_RESOURCES_FILE=two.toml\nAZURE_KEY_EASTUS2='{KEY}'\n")
    (tmp_path / "two.toml").write_text(TWO)
    assert Settings.load().resources[0].settings.key == SecretStr(KEY)


def test_entra_tokens_are_shared(load: Load) -> None:
    clouds = {
        "one": "https://one.services.ai.azure.com",
        "two": "https://two.services.ai.azure.com",
        "three": "https://three.services.ai.azure.us",
    }
    text = "".join(f'[[resources]]\nname = "{name}"\nendpoint = "{url}"\n' for name, url in clouds.items())
    credentials = build_credentials(load(text))
    one, two, three = (credentials[name]._entra for name in clouds)
    assert one is two  # one identity, one cloud, one scope: one fetch at a time for both
    assert three is not one
