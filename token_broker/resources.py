"""The file of Azure resources, and how faults of a TOML file are told: a line a fault.

`read_resources` gives the file's entries. What an entry leaves out, `settings.py` fills in from the AZURE_… variables.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Tag, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from strategies.endpoint import EndpointError, parse_endpoint

__all__ = [
    "DEFAULT_RESOURCE",
    "SETTINGS_OF_KEYS",
    "ModelFamily",
    "ResourceEntry",
    "ResourcesFileError",
    "family_of",
    "fault_lines",
    "read_resources",
    "variable",
]

DEFAULT_RESOURCE = "default"
"""The name of the one resource that the AZURE_… variables make."""

ModelFamily = Literal["gpt-realtime", "gpt-realtime-2", "gpt-live", "other"]
"""What a deployment is, where its name does not say."""

SETTINGS_OF_KEYS = {
    "endpoint": "endpoint",
    "openai_endpoint": "openai_endpoint",
    "kind": "endpoint_kind",
    "project": "project_name",
    "auth": "azure_auth",
    "key_env": "key",
    "api_version": "api_version",
    "model": "model",
    "transcription_model": "transcription_model",
}
"""The setting that each key of an entry takes the place of."""

_FAMILIES: tuple[ModelFamily, ...] = ("gpt-realtime-2", "gpt-realtime", "gpt-live")  # the longest prefix first
_MAX_RESOURCES = 64


def family_of(model: str) -> ModelFamily:
    """What a deployment of that name is taken for, where nobody says what it is."""
    return next((family for family in _FAMILIES if model.startswith(family)), "other")


class ResourcesFileError(ValueError):
    """The resources' file can't be used. `lines` has a line for each fault, and none has a secret."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


def _is_endpoint(url: str) -> str:
    try:
        parse_endpoint(url, key_in="the variable that key_env names")
    except EndpointError as error:
        raise ValueError(str(error)) from None
    return url


_Endpoint = Annotated[str, AfterValidator(_is_endpoint)]
_LEFT_OUT_IF_EMPTY = BeforeValidator(lambda text: None if text == "" else text)  # as an empty variable is


class ResourceEntry(BaseModel):
    """One resource as the file has it. None: the AZURE_… variable of that name counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    name: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    endpoint: _Endpoint
    openai_endpoint: Annotated[_Endpoint | None, _LEFT_OUT_IF_EMPTY] = None
    kind: Literal["auto", "direct", "unified"] = "auto"
    project: Annotated[str | None, _LEFT_OUT_IF_EMPTY] = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    auth: Literal["auto", "key", "entra"] = "auto"
    key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
    api_version: str | None = Field(None, pattern=r"^\d{4}-\d{2}-\d{2}(-preview)?$")
    model: str | None = Field(None, min_length=1, max_length=256)
    model_family: ModelFamily | None = None
    transcription_model: str | None = Field(None, min_length=1, max_length=256)
    priority: int = Field(1, ge=0, le=1000)  # lower is asked first
    weight: int = Field(1, ge=0, le=1000)  # 0: only where no other is left
    zone: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    # Known quotas; 0: unknown.
    voice_live_per_minute: int = Field(0, ge=0, le=1_000_000)
    voice_live_per_second: int = Field(0, ge=0, le=1_000_000)
    mints_per_minute: int = Field(0, ge=0, le=1_000_000)


class _ResourcesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    resources: tuple[ResourceEntry, ...]  # a length here would be a second fault beside that of an entry


def read_resources(path: Path) -> tuple[ResourceEntry, ...]:
    """The entries of the file, in its order. Raises ResourcesFileError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ResourcesFileError([f"{path}: can't be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ResourcesFileError([f"{path}: is not TOML: {error}"]) from None
    try:
        entries = _ResourcesFile.model_validate(document).resources
    except ValidationError as error:
        raise ResourcesFileError(fault_lines(path, error, _ResourcesFile, document)) from None
    if not 0 < len(entries) <= _MAX_RESOURCES:
        raise ResourcesFileError([f"{path}: resources: should be 1 to {_MAX_RESOURCES} tables [[resources]]"])
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults = [f"{path}: resources.{name}: the name stands there twice; each resource has its own" for name in twice]
    faults += [
        f'{path}: resources.{entry.name}.key_env: missing; auth = "key" needs the name of the key\'s variable'
        for entry in entries
        if entry.auth == "key" and entry.key_env is None
    ]
    if faults:
        raise ResourcesFileError(faults)
    return entries


_IN_TOML = {
    "tuple_type": "should be a list",
    "frozen_set_type": "should be a list",
    "dict_type": "should be a table",
    "mapping_type": "should be a table",
    "model_type": "should be a table",
    "string_type": "should be a text",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "too_short": "should have an entry at least",
}
"""What pydantic says of Python's types, as somebody who writes TOML knows them."""


def fault_lines(path: Path, error: ValidationError, model: type[BaseModel], document: Any) -> list[str]:
    """A line for each fault that pydantic found in the TOML `document` at `path`.

    An unknown key's line names the nearest and all permitted ones. Entries of a list are named by their `name`, or by
    `server_label`.
    """
    lines = []
    for fault in error.errors():
        where = _place(fault["loc"], document, is_missing=fault["type"] == "missing")
        if fault["type"] == "extra_forbidden":
            owner = _model_at(model, fault["loc"][:-1])
            permitted = sorted(owner.model_fields)
            near = difflib.get_close_matches(str(fault["loc"][-1]), permitted, n=1)
            meant = f"; {near[0]} is meant, perhaps" if near else ""
            lines.append(f"{path}: {where}: there is no such key{meant}; permitted are {', '.join(permitted)}")
        elif fault["type"] == "union_tag_not_found":
            lines.append(f"{path}: {where}: has no {fault['ctx']['discriminator']}, which says what it is")
        elif fault["type"] in _IN_TOML:
            lines.append(f"{path}: {where}: {_IN_TOML[fault['type']]}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            own = fault["type"] == "value_error"  # may begin with a name
            lines.append(f"{path}: {where}: {message if own else message[:1].lower() + message[1:]}")
    return lines


def _model_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel]:
    """The model that is validated at `loc` within `model`, where `loc` also has the tags of unions."""
    tagged = {"": model}
    parts = iter(loc)
    for part in parts:
        owner = next((each for each in tagged.values() if part in each.model_fields), None)
        if owner is None:
            tagged = {"": tagged[str(part)]} if str(part) in tagged else tagged
            continue
        annotation = owner.model_fields[str(part)].annotation
        tagged = dict(_models_in(annotation))
        if get_origin(annotation) in {dict, tuple}:
            next(parts, None)  # the key or the number of one of several
    return next(iter(tagged.values()))


def _models_in(annotation: Any, tag: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The models of an annotation by their tag in a union: what a `Tag` says, or their own `type`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        own = annotation.model_fields.get("type")
        words = get_args(own.annotation) if own is not None else ()
        yield tag or (str(words[0]) if len(words) == 1 else annotation.__name__), annotation
    tags = [each.tag for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Tag)]
    for part in get_args(annotation):
        yield from _models_in(part, tags[0] if tags else tag)


def _place(loc: Sequence[int | str], document: Any, *, is_missing: bool) -> str:
    """`resources.eastus2.endpoint`: where in the document the fault is. The tags of unions are no part of it."""
    parts = []
    for number, part in enumerate(loc, 1):
        if isinstance(document, Mapping) and (part in document or (is_missing and number == len(loc))):
            document = document.get(str(part))
            parts.append(str(part))
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
            name = (document.get("name") or document.get("server_label")) if isinstance(document, Mapping) else None
            parts.append(name if isinstance(name, str) else str(part + 1))
    return ".".join(parts) or "the file"


class _NamedVariables(BaseSettings):
    """Reads `.env` in the way that the broker's settings do."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", case_sensitive=True)


def variable(name: str) -> str | None:
    """The value of a variable that a file names, such as `env:CRM_TOKEN`; None where it is unset or empty.

    As for every variable: the environment wins over `.env`.
    """
    return os.environ.get(name) or DotEnvSettingsSource(_NamedVariables).env_vars.get(name) or None
