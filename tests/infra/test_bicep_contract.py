"""The Bicep against the broker: the container's environment is evaluated and given to the settings."""

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from strategies.models import model_table
from tests.infra.bicep import INFRA, STAGES, Declaration, Template, at, evaluate, properties, read_parameters
from token_broker.settings import Settings

BACKEND = Template(INFRA / "modules" / "backend-aca.bicep")
VAULT = Template(INFRA / "modules" / "vault.bicep")
VOICE = Template(INFRA / "modules" / "voice.bicep")
BROKER = Template(INFRA / "broker.bicep")
MAIN = Template(INFRA / "main.bicep")

KUBERNETES_GRACE_S = 10
PLATFORM_GRACE_LIMIT_S = 600
TENANT = "11111111-2222-3333-4444-555555555555"

SECRET_VALUES = {
    "voicelive-api-key": "0123456789abcdef0123456789abcdef",
    "voicelive-api-key-2": "fedcba9876543210fedcba9876543210",
    "broker-database-url": "postgresql+asyncpg://id-x@psql-x.postgres.database.azure.com:5432/token_broker?ssl=verify-full",
    "broker-signing-key": "k" * 64,
    "broker-metrics-token": "m" * 48,
    "zep-api-key": "z" * 32,
}
# A Container App leaves by its virtual network, so the templates have no parameter for a proxy.
PROXY_VARIABLES = {"BROKER_OUTBOUND_PROXY", "HTTPS_PROXY"}
# They mount no agents' file either: who mounts one, with hooks in it, adds its secret as docs/tools.md says.
# The same of who has a receiver for the sink `http`: docs/memory.md.
HOOK_VARIABLES = {"BROKER_TOOLS_SECRET", "BROKER_MEMORY_HTTP_SECRET"}
SECRET_VARIABLES = (
    {
        field.alias
        for field in Settings.model_fields.values()
        if field.alias and "SecretStr" in str(field.annotation) and not field.alias.startswith("SIMULATOR_")
    }
    - PROXY_VARIABLES
    - HOOK_VARIABLES
)


def scope(**given: Any) -> dict[str, Any]:
    """The names of backend-aca.bicep when broker.bicep is deployed with these parameters."""
    outer = BROKER.scope(
        {"image": "r/b:1", "environmentName": "voice-x", "brokerAuth": "none", "entraTenantId": TENANT, **given}
    )
    passed = properties(properties(BROKER.modules["backend"].body)["params"])
    return BACKEND.scope({name: evaluate(node, outer) for name, node in passed.items()})


def environment(**given: Any) -> dict[str, str]:
    """The container's variables, secrets and what only Azure knows made up."""
    variables: dict[str, str] = {}
    for item in scope(**given)["env"]:
        value = SECRET_VALUES[item["secretRef"]] if "secretRef" in item else str(item["value"])
        variables[item["name"]] = value.replace("<", "").replace(">", "")
    return variables


def settings(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    """The broker's settings in that environment and no other. Raises `SettingsError`."""
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings.load(_env_file=None)


def evaluate_default(template: Template, name: str) -> Any:
    """The default of a parameter."""
    value = template.parameters[name].value
    assert value is not None
    return evaluate(value, {})


def made_up(template: Template, **given: Any) -> dict[str, Any]:
    """The template's names with a value for each parameter: as given, else the first that is allowed, or `x`."""
    return template.scope({name: (item.allowed or ["x"])[0] for name, item in template.parameters.items()} | given)


def of_type(template: Template, kind: str) -> list[Declaration]:
    return [item for item in template.resources.values() if item.label.partition("@")[0] == kind and not item.existing]


@pytest.mark.parametrize("stage", STAGES)
def test_broker_starts_in_each_stage(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = read_parameters(INFRA / "parameters" / f"{stage}.broker.bicepparam")
    loaded = settings(monkeypatch, environment(**given))
    assert loaded.auth == given["brokerAuth"]
    assert loaded.target is not None
    assert loaded.drain_s == given["drainSeconds"]


@pytest.mark.parametrize(
    ("auth", "voice", "memory"),
    list(itertools.product(["none", "easyauth", "entra"], ["key", "entra"], ["local", "zep", "zep_cloud"])),
)
def test_broker_starts_with_every_choice(auth: str, voice: str, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(
        brokerAuth=auth, voiceAuthentication=voice, memory=memory, entraAudience="api://x", projectName="talk"
    )
    loaded = settings(monkeypatch, variables)
    assert loaded.auth == auth
    assert loaded.uses_key == (voice == "key")
    assert loaded.uses_entra
    assert loaded.sinks == (() if memory == "local" else (memory,))
    assert loaded.project_name == "talk"
    assert loaded.host == "0.0.0.0"


def test_every_variable_is_read_by_the_broker() -> None:
    known = {field.alias for field in Settings.model_fields.values()} | {"PGSSLROOTCERT"}
    assert environment(memory="zep").keys() <= known


def test_voice_live_variables_are_set() -> None:
    assert {name for name in environment() if name.startswith("AZURE_VOICELIVE_")} >= {
        "AZURE_VOICELIVE_ENDPOINT",
        "AZURE_VOICELIVE_KEY",
        "AZURE_VOICELIVE_MODEL",
        "AZURE_VOICELIVE_PROJECT_NAME",
        "AZURE_VOICELIVE_API_VERSION",
    }
    assert not environment()["AZURE_VOICELIVE_ENDPOINT"].endswith("/")


def test_secrets_are_key_vault_references() -> None:
    names = scope(memory="zep")
    assert {item["name"] for item in names["env"] if "secretRef" in item} == SECRET_VARIABLES
    assert all(not ("value" in item and "secretRef" in item) for item in names["env"])
    for secret in names["secrets"]:
        assert secret.keys() == {"name", "keyVaultUrl", "identity"}
        assert secret["keyVaultUrl"] == f"<vault.properties.vaultUri>secrets/{secret['name']}"
        assert secret["identity"] == "identity.id"
    assert {item["secretRef"] for item in names["env"] if "secretRef" in item} == {s["name"] for s in names["secrets"]}


def test_vault_holds_every_secret() -> None:
    held = {evaluate(at(item.body, "name"), {}) for item in of_type(VAULT, "Microsoft.KeyVault/vaults/secrets")}
    used = {secret["name"] for secret in scope(memory="zep", secondVoice="shared")["secrets"]}
    assert held == used - {"resources-file"}


def test_entra_alone_disables_keys() -> None:
    names = scope(voiceAuthentication="entra")
    assert "voicelive-api-key" not in {secret["name"] for secret in names["secrets"]}
    main = MAIN.scope({"environmentName": "x", "location": "x", "voiceAuthentication": "entra"})
    assert evaluate(at(MAIN.modules["voice"].body, "params", "disableLocalAuth"), main) is True
    assert evaluate(at(MAIN.modules["vault"].body, "params", "storeVoiceKey"), main) is False
    assert VAULT.resources["voiceKeySecret"].condition is not None


SECOND = {"secondVoice": "standby", "secondVoiceLocation": "swedencentral"}


def resources_file(**given: Any) -> dict[str, dict[str, Any]]:
    """The tables of BROKER_RESOURCES_FILE, by their names."""
    (text,) = [secret["value"] for secret in scope(**given)["secrets"] if secret["name"] == "resources-file"]
    return {table["name"]: table for table in tomllib.loads(text)["resources"]}


@pytest.mark.parametrize("voice", ["key", "entra"])
@pytest.mark.parametrize("project", ["", "talk"])
def test_broker_starts_with_two_resources(
    voice: str, project: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {"voiceAuthentication": voice, "projectName": project, "voiceLivePerMinute": 30, **SECOND}
    variables = environment(**given)
    path = tmp_path / "resources.toml"
    (text,) = [secret["value"] for secret in scope(**given)["secrets"] if secret["name"] == "resources-file"]
    path.write_text(text.replace("<", "").replace(">", "").replace("uniqueString(resourceGroup.id)", "x"))
    for name in ("AZURE_KEY_VOICE", "AZURE_KEY_VOICE2"):
        monkeypatch.setenv(name, variables.pop(name, ""))
    loaded = settings(monkeypatch, variables | {"BROKER_RESOURCES_FILE": str(path)})
    first, second = loaded.resources
    assert [first.name, second.name] == ["eastus2", "swedencentral"]
    assert [first.entry.zone, second.entry.zone] == ["us", "eu"]
    assert [first.entry.priority, second.entry.priority] == [1, 2]
    assert [first.settings.uses_key, second.settings.uses_key] == [voice == "key"] * 2
    assert [first.settings.uses_entra, second.settings.uses_entra] == [True, True]
    assert [each.settings.project_name for each in (first, second)] == [project or None] * 2
    assert first.settings.key != second.settings.key or voice == "entra"
    assert first.target != second.target
    assert {each.entry.voice_live_per_minute for each in (first, second)} == {30}


def test_pool_is_off_without_second_resource() -> None:
    assert "BROKER_RESOURCES_FILE" not in environment()
    made = evaluate(at(BACKEND.resources["broker"].body, "properties", "template"), scope())
    assert [volume["name"] for volume in made["volumes"]] == ["state"]
    assert not {"resources-file", "voicelive-api-key-2"} & {secret["name"] for secret in scope()["secrets"]}
    assert evaluate_default(MAIN, "secondVoice") == evaluate_default(BROKER, "secondVoice") == "none"


def test_resources_file_is_mounted_at_its_path() -> None:
    names = scope(**SECOND)
    made = evaluate(at(BACKEND.resources["broker"].body, "properties", "template"), names)
    (container,) = made["containers"]
    mounts = {mount["volumeName"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (volume,) = [volume for volume in made["volumes"] if volume["name"] == "resources"]
    (item,) = volume["secrets"]
    assert (volume["storageType"], item["secretRef"]) == ("Secret", "resources-file")
    path = {item["name"]: item.get("value") for item in names["env"]}["BROKER_RESOURCES_FILE"]
    assert path == f"{mounts['resources']}/{item['path']}"
    assert mounts["state"] == "/var/lib/token-broker"


def test_changed_resources_make_a_new_revision() -> None:
    """The text is in its file's name: a secret's change alone leaves running replicas with the former file."""
    paths = {environment(**SECOND, voiceLivePerMinute=rate)["BROKER_RESOURCES_FILE"] for rate in (0, 30)}
    assert len(paths) == 2


def test_every_region_has_a_zone() -> None:
    assert scope()["zones"].keys() == set(BROKER.parameters["voiceLocation"].allowed)


def test_shared_resources_have_one_priority() -> None:
    made = resources_file(secondVoice="shared", secondVoiceLocation="centralus")
    assert {name: table.get("priority", 1) for name, table in made.items()} == {"eastus2": 1, "centralus": 1}


def test_two_resources_in_one_region_differ() -> None:
    made = resources_file(secondVoice="shared", secondVoiceLocation="eastus2")
    assert list(made) == ["eastus2", "eastus2-2"]
    assert len({table["endpoint"] for table in made.values()}) == 2


def test_resources_made_elsewhere_are_added() -> None:
    more = '[[resources]]\nname = "own"\nendpoint = "https://own.services.ai.azure.com"\n'
    assert list(resources_file(moreResources=more)) == ["eastus2", "own"]
    assert list(resources_file(moreResources=more, **SECOND)) == ["eastus2", "swedencentral", "own"]


def test_keys_stay_out_of_the_resources_file() -> None:
    names = scope(**SECOND)
    held = {item["name"]: item["secretRef"] for item in names["env"] if item["name"].startswith("AZURE_KEY_")}
    assert held == {"AZURE_KEY_VOICE": "voicelive-api-key", "AZURE_KEY_VOICE2": "voicelive-api-key-2"}
    assert {table["key_env"] for table in resources_file(**SECOND).values()} == held.keys()
    assert [key for key in environment(voiceAuthentication="entra", **SECOND) if "_KEY_" in key] == []


def test_second_account_is_where_the_file_says() -> None:
    passed = at(MAIN.modules["otherVoice"].body, "params")
    names = VOICE.scope({"nameSuffix": evaluate(at(passed, "nameSuffix"), {})})
    made = evaluate(at(VOICE.resources["account"].body, "name"), names)
    assert resources_file(**SECOND)["swedencentral"]["endpoint"] == f"https://{made}.services.ai.azure.com"


def test_second_resource_is_as_the_first() -> None:
    """The same deployments and the same rules for keys; only name and region differ."""
    given = MAIN.scope({"environmentName": "x", "location": "x", "voiceLocation": "eastus2", **SECOND})
    first, second = (
        {name: evaluate(node, given) for name, node in properties(at(MAIN.modules[module].body, "params")).items()}
        for module in ("voice", "otherVoice")
    )
    assert {name for name in first if first[name] != second[name]} == {"nameSuffix", "location"}
    assert second["location"] == "swedencentral"
    condition = MAIN.modules["otherVoice"].condition
    assert condition is not None
    assert [evaluate(condition, given | {"secondVoice": choice}) for choice in ("none", "standby", "shared")] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(("other", "stored"), [("", False), ("voice2-x", True)])
def test_second_key_is_stored_if_there_is_one(other: str, stored: bool) -> None:
    for with_keys in (True, False):
        names = VAULT.scope(
            dict.fromkeys(VAULT.parameters, "x") | {"otherVoiceAccountName": other, "storeVoiceKey": with_keys}
        )
        value = at(VAULT.resources["otherVoiceKeySecret"].body, "properties", "value")
        kept = evaluate(value, names | {"voiceKey": "key1"})
        assert kept == ("otherVoiceAccount.listKeys().key1" if stored and with_keys else "")


@pytest.mark.parametrize("auth", ["none", "easyauth", "entra"])
def test_platform_authentication_follows_auth(auth: str) -> None:
    names = scope(brokerAuth=auth, easyAuthClientId="client")
    (config,) = of_type(BACKEND, "Microsoft.App/containerApps/authConfigs")
    made = evaluate(at(config.body, "properties"), names)
    variables = {item["name"]: item.get("value") for item in names["env"]}
    assert variables["BROKER_AUTH"] == auth
    assert made["platform"]["enabled"] == (auth == "easyauth")
    assert bool(made["identityProviders"]) == (auth == "easyauth")
    assert made["globalValidation"]["unauthenticatedClientAction"] == "AllowAnonymous"
    assert evaluate(at(config.body, "name"), {}) == "current"
    assert config.condition is None


def ingress(**given: Any) -> dict[str, Any]:
    made: dict[str, Any] = evaluate(
        at(BACKEND.resources["broker"].body, "properties", "configuration", "ingress"), scope(**given)
    )
    return made


@pytest.mark.parametrize("auth", ["none", "easyauth", "entra"])
@pytest.mark.parametrize(
    ("addresses", "ranges"),
    [
        ("", []),
        ("  ", []),
        ("203.0.113.9/32", ["203.0.113.9/32"]),
        ("203.0.113.9/32, 198.51.100.0/24", ["203.0.113.9/32", "198.51.100.0/24"]),
        ("0.0.0.0/0", ["0.0.0.0/0"]),
        ("203.0.113.9/32,0.0.0.0/0", ["203.0.113.9/32", "0.0.0.0/0"]),
    ],
)
def test_open_broker_needs_addresses(addresses: str, ranges: list[str], auth: str) -> None:
    made = ingress(brokerAuth=auth, allowedAddresses=addresses)
    assert [rule["ipAddressRange"] for rule in made["ipSecurityRestrictions"]] == ranges
    assert {rule["action"] for rule in made["ipSecurityRestrictions"]} <= {"Allow"}  # which denies all others
    assert len({rule["name"] for rule in made["ipSecurityRestrictions"]}) == len(ranges)
    for_everybody = not ranges or "0.0.0.0/0" in ranges
    assert made["external"] is (auth != "none" or not for_everybody)


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_publishes_an_open_broker(stage: str) -> None:
    file = INFRA / "parameters" / f"{stage}.broker.bicepparam"
    for environ in ({"BROKER_ALLOWED_ADDRESSES": ""}, {"BROKER_ALLOWED_ADDRESSES": "203.0.113.9/32"}):
        given = read_parameters(file, environ)
        made = ingress(**given)
        assert not made["external"] or given["brokerAuth"] != "none" or made["ipSecurityRestrictions"]


def test_dev_admits_the_deployers_address_alone() -> None:
    given = read_parameters(
        INFRA / "parameters" / "dev.broker.bicepparam", {"BROKER_ALLOWED_ADDRESSES": "203.0.113.9/32"}
    )
    made = ingress(**given)
    assert made["external"] is True
    assert [rule["ipAddressRange"] for rule in made["ipSecurityRestrictions"]] == ["203.0.113.9/32"]


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "https://token-broker.internal.<apps.properties.defaultDomain>"),
        ({"allowedAddresses": "203.0.113.9/32"}, "https://token-broker.<apps.properties.defaultDomain>"),
        ({"brokerAuth": "entra"}, "https://token-broker.<apps.properties.defaultDomain>"),
        ({"brokerAuth": "entra", "publicUrl": "https://voice.example.com"}, "https://voice.example.com"),
    ],
)
def test_public_url_is_the_ingress_name(given: dict[str, str], url: str) -> None:
    """A broker with a public URL answers under that name and no other."""
    assert {item["name"]: item.get("value") for item in scope(**given)["env"]}["BROKER_PUBLIC_URL"] == url


@pytest.mark.parametrize("wanted", ["", "Voice.Talk"])
def test_required_scope_reaches_the_broker(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(brokerAuth="entra", entraAudience="api://x", entraRequiredScope=wanted)
    assert settings(monkeypatch, variables).entra_required_scope == (wanted or None)


@pytest.mark.parametrize("stage", ["staging", "production"])
def test_stage_reads_scope_from_environment(stage: str) -> None:
    file = INFRA / "parameters" / f"{stage}.broker.bicepparam"
    assert read_parameters(file, {"BROKER_ENTRA_REQUIRED_SCOPE": "Voice.Talk"})["entraRequiredScope"] == "Voice.Talk"
    assert read_parameters(file)["entraRequiredScope"] == ""


def test_every_deployment_has_a_metrics_token() -> None:
    """Where callers sign in, a broker without one refuses every scraper."""
    for auth in ("none", "easyauth", "entra"):
        assert environment(brokerAuth=auth)["BROKER_METRICS_TOKEN"]


def test_auth_has_no_default() -> None:
    assert BROKER.parameters["brokerAuth"].value is None
    assert BACKEND.parameters["brokerAuth"].value is None


@pytest.mark.parametrize("drain", [0, 25, 590])
def test_grace_exceeds_drain_by_ten_seconds(drain: int) -> None:
    names = scope(drainSeconds=drain)
    grace = evaluate(
        at(BACKEND.resources["broker"].body, "properties", "template", "terminationGracePeriodSeconds"), names
    )
    assert grace >= drain + KUBERNETES_GRACE_S
    assert {item["name"]: item.get("value") for item in names["env"]}["BROKER_DRAIN_S"] == str(drain)


def test_longest_drain_fits_the_platform() -> None:
    (limit,) = BROKER.parameters["drainSeconds"].decorators["maxValue"]
    assert evaluate(limit, {}) + KUBERNETES_GRACE_S <= PLATFORM_GRACE_LIMIT_S


def test_probes_and_ingress_use_the_port() -> None:
    names = scope()
    made = evaluate(at(BACKEND.resources["broker"].body, "properties"), names)
    (container,) = made["template"]["containers"]
    port = int(environment()["PORT"])
    assert made["configuration"]["ingress"]["targetPort"] == port
    assert {(probe["type"], probe["httpGet"]["path"]) for probe in container["probes"]} == {
        ("Startup", "/healthz"),
        ("Liveness", "/healthz"),
        ("Readiness", "/readyz"),
    }
    assert {probe["httpGet"]["port"] for probe in container["probes"]} == {port}


def test_probes_fit_the_platforms_limits() -> None:
    """learn.microsoft.com/azure/templates/microsoft.app/2025-07-01/containerapps, ContainerAppProbe."""
    limits = {
        "initialDelaySeconds": (1, 60),
        "periodSeconds": (1, 240),
        "timeoutSeconds": (1, 240),
        "failureThreshold": (1, 10),
    }
    (container,) = evaluate(at(BACKEND.resources["broker"].body, "properties", "template", "containers"), scope())
    for probe in container["probes"]:
        for name in probe.keys() & limits.keys():
            low, high = limits[name]
            assert low <= probe[name] <= high, (probe["type"], name)


def test_ingress_requires_tls_and_no_affinity() -> None:
    made = ingress(brokerAuth="entra")
    assert made["external"] is True
    assert made["allowInsecure"] is False
    assert made["transport"] == "http"
    assert made["stickySessions"] == {"affinity": "none"}


def test_scale_rule_and_limit_follow_talks() -> None:
    names = scope(talksPerReplica=200)
    scale = evaluate(at(BACKEND.resources["broker"].body, "properties", "template", "scale"), names)
    (talks,) = [rule["http"]["metadata"]["concurrentRequests"] for rule in scale["rules"] if "http" in rule]
    assert talks == "200"
    assert {item["name"]: item.get("value") for item in names["env"]}["BROKER_MAX_SESSIONS"] == "400"


def test_sqlite_has_one_replica() -> None:
    names = scope(store="sqlite", minReplicas=5, maxReplicas=50)
    scale = evaluate(at(BACKEND.resources["broker"].body, "properties", "template", "scale"), names)
    assert (scale["minReplicas"], scale["maxReplicas"]) == (1, 1)


@pytest.mark.parametrize("stage", ["staging", "production"])
def test_shared_stages_have_two_replicas(stage: str) -> None:
    given = read_parameters(INFRA / "parameters" / f"{stage}.broker.bicepparam")
    assert given["maxReplicas"] >= given["minReplicas"] >= 2


def test_voice_resource_is_where_the_model_is() -> None:
    deployed = [model_table().default(kind) for kind in ("realtime", "transcription")]
    regions = [region for region in deployed[0].regions if region in deployed[1].regions]
    assert VOICE.parameters["location"].allowed == regions
    for template in (MAIN, BROKER, BACKEND):
        for name in ("voiceLocation", "secondVoiceLocation"):
            assert template.parameters[name].allowed == regions
    for name in ("voiceLocation", "secondVoiceLocation"):
        assert evaluate_default(MAIN, name) in regions
        assert evaluate_default(MAIN, name) == evaluate_default(BROKER, name)
    assert evaluate_default(MAIN, "voiceLocation") != evaluate_default(MAIN, "secondVoiceLocation")


def test_model_is_offered_with_the_sku() -> None:
    deployed = [model_table().default(kind) for kind in ("realtime", "transcription")]
    assert {sku for model in deployed for sku in model.skus} == set(MAIN.parameters["deploymentSku"].allowed)
    assert evaluate_default(MAIN, "deploymentSku") in MAIN.parameters["deploymentSku"].allowed


@pytest.mark.parametrize(("kind", "prefix"), [("realtime", "realtime"), ("transcription", "transcription")])
def test_deployed_version_is_the_tables(kind: str, prefix: str) -> None:
    given = {"environmentName": "voice-x", "location": "eastus2"}
    model = model_table().default(kind)
    assert evaluate_default(MAIN, f"{prefix}Model") == model.name
    passed = at(MAIN.modules["voice"].body, "params", f"{prefix}ModelVersion")
    assert evaluate(passed, MAIN.scope(given)) == model.version
    assert evaluate(passed, MAIN.scope({**given, f"{prefix}ModelVersion": "2030-01-01"})) == "2030-01-01"


@pytest.mark.parametrize("choice", ["key1", "key2"])
def test_keys_are_listed_only_if_enabled(choice: str) -> None:
    """ARM works list functions out even where the condition of their resource is false."""
    value = at(VAULT.resources["voiceKeySecret"].body, "properties", "value")
    assert evaluate(value, {"storeVoiceKey": False, "voiceKey": choice}) == ""
    assert evaluate(value, {"storeVoiceKey": True, "voiceKey": choice}) == f"voiceAccount.listKeys().{choice}"


def test_identity_has_exactly_its_roles() -> None:
    """Ids of built-in roles: learn.microsoft.com/azure/role-based-access-control/built-in-roles."""
    roles = {
        "Cognitive Services OpenAI User": "5e0bd9bd-7b93-4f28-af87-19fc36ad61bd",
        "Cognitive Services User": "a97b65f3-24c7-4388-baec-2e87135dc908",
        "Key Vault Secrets User": "4633458b-17de-408a-b874-0445c86b69e6",
        "AcrPull": "7f951dda-4ed3-4680-a7ca-43fe172d538d",
    }
    given = []
    for path in (INFRA / "modules").glob("*.bicep"):
        template = Template(path)
        names = made_up(template)
        for assignment in of_type(template, "Microsoft.Authorization/roleAssignments"):
            made = evaluate(at(assignment.body, "properties"), names)
            assert made["principalId"] == "x"
            assert made["principalType"] == "ServicePrincipal"
            given.append(made["roleDefinitionId"].removesuffix(")").rpartition(", ")[2])
    assert sorted(given) == sorted(roles.values())


def test_broker_finds_the_foundation_by_name() -> None:
    made: dict[str, set[str]] = {}
    for path in (INFRA / "modules").glob("*.bicep"):
        template = Template(path)
        names = made_up(template, nameSuffix="")
        for resource in template.resources.values():
            if not resource.existing and "name" in properties(resource.body):
                made.setdefault(resource.label, set()).add(evaluate(at(resource.body, "name"), names))
    names = scope()
    for resource in BACKEND.resources.values():
        if resource.existing:
            assert evaluate(at(resource.body, "name"), names) in made[resource.label], resource.name


def test_vault_and_database_are_private() -> None:
    vault = properties(at(VAULT.resources["vault"].body, "properties"))
    assert evaluate(vault["publicNetworkAccess"], {}) == "Disabled"
    assert evaluate(vault["enableRbacAuthorization"], {}) is True
    assert evaluate(vault["enablePurgeProtection"], {}) is True
    database = Template(INFRA / "modules" / "database.bicep")
    server = properties(at(database.resources["server"].body, "properties"))
    names = database.scope(dict.fromkeys(database.parameters, "x"))
    assert evaluate(server["network"], names)["publicNetworkAccess"] == "Disabled"
    assert evaluate(server["authConfig"], names)["passwordAuth"] == "Disabled"
    assert evaluate(server["authConfig"], names)["activeDirectoryAuth"] == "Enabled"


def test_database_url_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Template(INFRA / "modules" / "database.bicep")
    names = database.scope(dict.fromkeys(database.parameters, "id-x"))
    value = database.outputs["url"].value
    assert value is not None
    url = evaluate(value, names).replace("<", "").replace(">", "")
    assert url.startswith("postgresql+asyncpg://id-x@")
    assert url.endswith("?ssl=verify-full")
    loaded = settings(monkeypatch, {**environment(), "BROKER_DATABASE_URL": url})
    assert loaded.database_url == SecretStr(url)


def test_deployments_match_the_settings() -> None:
    for symbol, parameter in (("realtime", "realtimeModel"), ("transcription", "transcriptionModel")):
        body = VOICE.resources[symbol].body
        names = VOICE.scope(dict.fromkeys(VOICE.parameters, "x") | {parameter: "a-model"})
        assert evaluate(at(body, "name"), names) == "a-model"
        assert evaluate(at(body, "properties", "model", "name"), names) == "a-model"
    defaults = {name: evaluate(item.value, {}) for name, item in MAIN.parameters.items() if item.value is not None}
    told = environment()
    assert told["AZURE_VOICELIVE_MODEL"] == defaults["realtimeModel"]
    assert told["AZURE_VOICELIVE_TRANSCRIPTION_MODEL"] == defaults["transcriptionModel"]


def test_resources_send_diagnostics() -> None:
    silent = {
        "Microsoft.OperationalInsights/workspaces",
        "Microsoft.ManagedIdentity/userAssignedIdentities",
        "Microsoft.App/containerApps",  # its environment does
    }
    for path in (INFRA / "modules").glob("*.bicep"):
        template = Template(path)
        scopes = [
            (at(item.body, "scope").text or b"").decode()
            for item in of_type(template, "Microsoft.Insights/diagnosticSettings")
        ]
        for name, item in template.resources.items():
            kind = item.label.partition("@")[0]
            if (
                kind.count("/") == 1
                and not item.existing
                and kind not in silent
                and not kind.startswith(("Microsoft.Network/", "Microsoft.Authorization/", "Microsoft.Insights/"))
            ):
                assert name in scopes, f"{path.name}: {name}"
