"""Checks that a value fits the models of OpenAI's or Microsoft's package, down to every field."""

import base64
import binascii
import datetime as dt
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from azure.ai.voicelive import _unions, models
from azure.ai.voicelive._utils.model_base import Model
from azure.ai.voicelive.models import _models
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import BaseModel, TypeAdapter

__all__ = [
    "ga_client_event",
    "ga_server_event",
    "hints_of",
    "known_to_microsoft",
    "preview_client_event",
    "preview_server_event",
    "strictly",
    "voice_live_session_fits",
]

_GA_SERVER: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
_GA_CLIENT: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)

# What Voice Live's reference has and its package does not; and `usage`, which no client of either minds.
_DOCUMENTED = {
    "AudioInputTranscriptionOptions": {"prompt"},
    "ResponseSession": {"object"},
    "ResponseCreateParams": {"conversation", "max_response_output_tokens"},
    "ServerEventConversationItemInputAudioTranscriptionCompleted": {"usage"},
}
_DOCUMENTED_AS_NULLABLE = {("RequestAudioContentPart", "audio")}


def known_to_microsoft(value: Any, model: Any) -> None:
    """Fails for a field that the model lacks. The SDK's models silently accept any field."""
    names = set(hints_of(model))
    assert set(value) <= names, f"{set(value) - names} is unknown to {model.__name__}"


def strictly(model: type[BaseModel], value: Any) -> None:
    """Validates, and fails where the model, which takes extra fields, has no such field."""
    _no_extras(model.model_validate(value), model.__name__)


def ga_server_event(event: Any) -> None:
    """Fails where `openai.types.realtime` has no such event from a server."""
    parsed = _GA_SERVER.validate_python(event, strict=True)
    if event["type"] in {"session.created", "session.updated"}:  # its model there is the request's, without these
        ours = {name: value for name, value in event["session"].items() if name not in {"id", "object", "expires_at"}}
        parsed = _GA_SERVER.validate_python({**event, "session": ours}, strict=True)
    _no_extras(parsed, event["type"])


def ga_client_event(event: Any) -> None:
    """Fails where `openai.types.realtime` has no such event from a client."""
    _no_extras(_GA_CLIENT.validate_python(event, strict=True), event["type"])


def preview_server_event(event: Any) -> None:
    """Fails where `azure.ai.voicelive.models` has no such event from a server."""
    assert event["type"] in _models.ServerEvent.__mapping__, event["type"]
    _fits(event, models.ServerEvent, event["type"])
    read: Any = cast("Any", models.ServerEvent)._deserialize(event, [])
    assert isinstance(read, cast("Any", models.ServerEvent.__mapping__[event["type"]]))


def preview_client_event(event: Any) -> None:
    """Fails where `azure.ai.voicelive.models` has no such event from a client."""
    assert event["type"] in _models.ClientEvent.__mapping__, event["type"]
    _fits(event, models.ClientEvent, event["type"])


def voice_live_session_fits(session: Any) -> None:
    """Fails where `azure.ai.voicelive.models` has no such session to ask for."""
    _fits(session, models.RequestSession, "session")


def _no_extras(value: Any, where: str) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{where}: {value.model_extra}"
        for name in type(value).model_fields:
            _no_extras(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            _no_extras(inner, f"{where}.{name}")
    elif isinstance(value, list):
        for inner in value:
            _no_extras(inner, f"{where}[]")


@functools.cache
def hints_of(model: Any) -> dict[str, Any]:
    """The fields of a model of Microsoft's, by their names on the wire, with their types."""
    known = {"_models": models, "_unions": _unions, "datetime": dt}
    hints = get_type_hints(model, {**vars(typing), **vars(_models), **known})
    model({})  # its fields are worked out at the first making
    return {field._rest_name: hints[name] for name, field in model._attr_to_rest_field.items()}


def _fits(value: Any, hint: Any, where: str) -> None:
    """Fails where a JSON value is not what Microsoft's type hint says."""
    if isinstance(hint, typing.ForwardRef):
        hint = getattr(models, hint.__forward_arg__.removeprefix("_models."))
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return
    if origin in (Union, types.UnionType):
        _fits_one(value, arguments, where)
    elif origin is Literal:
        assert value in arguments, f"{where}: {value!r} is none of {arguments}"
    elif origin is list:
        assert isinstance(value, list), f"{where}: no list"
        for inner in value:
            _fits(inner, arguments[0], f"{where}[]")
    elif origin is dict:
        assert isinstance(value, dict), f"{where}: no object"
    elif isinstance(hint, type) and issubclass(hint, Model):
        _fits_model(value, hint, where)
    else:
        _fits_scalar(value, hint, where)


def _fits_one(value: Any, hints: tuple[Any, ...], where: str) -> None:
    faults = []
    for hint in hints:
        try:
            _fits(value, hint, where)
        except AssertionError as fault:
            faults.append(str(fault))
        else:
            return
    raise AssertionError("; ".join(faults))


def _fits_model(value: Any, model: Any, where: str) -> None:
    assert isinstance(value, dict), f"{where}: no object"
    while (narrower := _narrower(value, model, where)) is not model:
        model = narrower
    hints = hints_of(model)
    extras = set(value) - set(hints) - _DOCUMENTED.get(model.__name__, set())
    assert not extras, f"{where}: {extras} is unknown to {model.__name__}"
    for name, hint in hints.items():
        if name in value:
            _fits(value[name], hint, f"{where}.{name}")
        elif (model.__name__, name) not in _DOCUMENTED_AS_NULLABLE:
            assert type(None) in get_args(hint), f"{where}: {model.__name__} lacks {name}"


def _narrower(value: Mapping[str, Any], model: Any, where: str) -> Any:
    """The one of the model's kinds that the value says it is; the model itself where it has none."""
    kinds = model.__dict__.get("__mapping__")
    if not kinds:
        return model
    hints_of(model)
    told = [value.get(field._rest_name) for field in model._attr_to_rest_field.values() if field._is_discriminator]
    kind = next((kinds[name] for name in told if name in kinds), None)
    assert kind is not None, f"{where}: {told} is no {model.__name__}"
    return kind


def _fits_scalar(value: Any, hint: Any, where: str) -> None:
    if hint is bytes:
        try:
            base64.b64decode(value, validate=True)
        except (TypeError, binascii.Error) as fault:
            raise AssertionError(f"{where}: no base64") from fault
        return
    if hint is dt.datetime:
        hint = int
    expected = (int, float) if hint is float else hint
    if isinstance(expected, type) and issubclass(expected, str):
        expected = str
    assert isinstance(value, expected), f"{where}: {value!r} is no {hint}"
    assert not (isinstance(value, bool) and hint in (int, float)), f"{where}: {value!r} is no number"
