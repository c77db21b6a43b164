"""Builds the OpenAPI 3.1 document from descriptions of the routes and from the models that check requests.

Each endpoint's module describes what its routes accept and answer, as `Operation` values. The application names the
operations that it serves, as it names its routes: nothing registers itself at import.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import JsonSchemaMode, models_json_schema

__all__ = ["Body", "Operation", "Parameter", "ProblemDocument", "ResponseSpec", "SocketSpec", "api_document"]

Json = dict[str, Any]

_REF = "#/components/schemas/{model}"
_PROBLEM_MEDIA = "application/problem+json"
_ANY_ROUTE = {421: ("host_not_served",), 500: ("internal_error",)}
_STATE_CHANGING = {403: ("origin_not_allowed",)}
_WITH_PATH_PARAMETER = {404: ("not_found",)}
_SAFE = frozenset({"get", "head"})


class FaultyField(BaseModel):
    """An invalid field, and why it is invalid."""

    field: str
    message: str


class ProblemDocument(BaseModel):
    """RFC 9457. Programs go by `code`, which is stable; people by `detail`, which says what to do."""

    type: str = Field(pattern="^urn:voice-token-broker:problem:[a-z0-9_]+$")
    title: str
    status: int
    code: str = Field(pattern="^[a-z0-9_]+$")
    detail: str
    correlation_id: str = Field(description="The same as in X-Request-ID; it stands in the log.")
    errors: list[FaultyField] | None = Field(None, description="With invalid_request: each field that is wrong.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the path, the query or the headers."""

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: Json = field(default_factory=lambda: {"type": "string"})
    example: Any = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """A request body: JSON of any one of `models`. Without models, `media_type` of `json_schema` (or text).

    `alternatives` are further media types that are accepted, each with its schema.
    """

    models: tuple[type[BaseModel], ...] = ()
    media_type: str = "application/json"
    json_schema: Json | None = None
    example: Any = None
    required: bool = True
    alternatives: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """A successful response: JSON of `model`, `media_type` of `json_schema` (or text), or no content."""

    status: int
    description: str
    model: type[BaseModel] | None = None
    media_type: str | None = None
    json_schema: Json | None = None
    example: Any = None
    headers: tuple[str, ...] = ("Cache-Control",)


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """A WebSocket's path. OpenAPI does not cover WebSockets, so it is a path without operations, with `x-websocket`."""

    path: str
    tag: str
    summary: str
    description: str
    subprotocols: tuple[str, ...]
    close_codes: Mapping[int, str]
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a route. `path` is the route's template; `aliases` are further paths of the same endpoint.

    `problems` maps a status to the codes that it comes with. The codes of all routes are added: 421, 500, 403 for a
    foreign origin, 404 for an impossible path. `security` names schemes, any one of which is enough; None is no
    authentication.
    """

    name: str
    method: Literal["get", "post", "put", "delete"]
    path: str
    tag: str
    summary: str
    description: str
    answers: tuple[ResponseSpec, ...]
    problems: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    aliases: tuple[str, ...] = ()
    security: tuple[str | None, ...] = ()


_HEADERS: dict[str, Json] = {
    "X-Request-ID": {
        "description": "The request's id: yours where you sent a plain one.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Cache-Control": {"required": True, "schema": {"type": "string"}, "example": "no-store"},
    "Retry-After": {
        "description": "Seconds until it is worth another try.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {
        "description": "How to authenticate.",
        "required": True,
        "schema": {"type": "string"},
        "example": "Bearer",
    },
    "Location": {"schema": {"type": "string", "format": "uri-reference"}},
}
_STATUS_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}

_SECURITY: dict[str, Json] = {
    "entra": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "BROKER_AUTH=entra: an Entra access token for this broker.",
    },
    "easyauth": {
        "type": "apiKey",
        "in": "header",
        "name": "X-MS-CLIENT-PRINCIPAL",
        "description": "BROKER_AUTH=easyauth: what the platform's sign-in sets; callers can't.",
    },
    "sessionToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "The `session_token` of the session's last plan.",
    },
    "sessionTokenHeader": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Session-Token",
        "description": "The same, where something in front of the broker puts a token of its own into Authorization.",
    },
    "clientSecret": {
        "type": "http",
        "scheme": "bearer",
        "description": "A client secret of `POST /v1/realtime/client_secrets`; it may stand elsewhere too.",
    },
    "metricsToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "BROKER_METRICS_TOKEN, where it is set.",
    },
}


def api_document(
    operations: Sequence[Operation], *, sockets: Sequence[SocketSpec] = (), version: str, description: str
) -> Json:
    """The OpenAPI document of these operations and WebSockets."""
    paths: Json = {}
    tags = dict.fromkeys([*(operation.tag for operation in operations), *(socket.tag for socket in sockets)])
    for operation in operations:
        for number, path in enumerate((operation.path, *operation.aliases)):
            paths.setdefault(path, {})[operation.method] = _operation(operation, path, number)
    for socket in sockets:
        paths.setdefault(socket.path, {}).update(
            summary=socket.summary,
            description=socket.description,
            parameters=[_parameter(parameter) for parameter in socket.parameters],
        )
        paths[socket.path]["x-websocket"] = {
            "tag": socket.tag,
            "subprotocols": list(socket.subprotocols),
            "closeCodes": {str(code): meaning for code, meaning in socket.close_codes.items()},
        }
    used = {name for operation in operations for name in operation.security if name is not None}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Voice token broker", "version": version, "description": description},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "headers": _HEADERS,
            "securitySchemes": {name: scheme for name, scheme in _SECURITY.items() if name in used},
        },
    }


def _operation(operation: Operation, path: str, number: int) -> Json:
    """`number` counts the paths that serve the operation, because operation ids have to be unique."""
    same = f"The same as `{operation.path}`.\n\n" if number else ""
    described: Json = {
        "operationId": operation.name if not number else f"{operation.name}_{number + 1}",
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": f"{same}{operation.description}",
        "responses": {
            str(status): answer
            for status, answer in sorted(
                [
                    *((answer.status, _answer(answer)) for answer in operation.answers),
                    *((status, _problem(status, codes)) for status, codes in _problems(operation).items()),
                ],
                key=lambda pair: pair[0],
            )
        },
    }
    if parameters := [
        _parameter(parameter)
        for parameter in operation.parameters
        if parameter.where != "path" or f"{{{parameter.name}}}" in path
    ]:
        described["parameters"] = parameters
    if (body := operation.body) is not None:
        content = _content(body.models, body.example, body.json_schema)
        others = {media_type: {"schema": schema} for media_type, schema in body.alternatives.items()}
        described["requestBody"] = {"required": body.required, "content": {body.media_type: content, **others}}
    if operation.security:
        described["security"] = [{} if name is None else {name: []} for name in operation.security]
    return described


def _problems(operation: Operation) -> dict[int, tuple[str, ...]]:
    """The codes of the operation, and those that any route may answer."""
    any_route = _ANY_ROUTE if operation.method in _SAFE else _ANY_ROUTE | _STATE_CHANGING
    own = operation.problems
    if "{" in operation.path and "not_found" not in own.get(404, ()):
        any_route = any_route | _WITH_PATH_PARAMETER
    return {status: (*own.get(status, ()), *any_route.get(status, ())) for status in {*own, *any_route}}


def _parameter(parameter: Parameter) -> Json:
    described: Json = {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.required or parameter.where == "path",
        "description": parameter.description,
        "schema": parameter.schema,
    }
    return described if parameter.example is None else {**described, "example": parameter.example}


def _answer(answer: ResponseSpec) -> Json:
    described: Json = {"description": answer.description, "headers": _header_refs(answer.headers)}
    if answer.model is not None or answer.media_type is not None:
        media_type = answer.media_type or "application/json"
        models = () if answer.model is None else (answer.model,)
        described["content"] = {media_type: _content(models, answer.example, answer.json_schema)}
    return described


def _content(models: Sequence[type[BaseModel]], example: Any, json_schema: Json | None = None) -> Json:
    schema = json_schema or {"type": "string"}
    if refs := [{"$ref": _REF.format(model=model.__name__)} for model in models]:
        schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return {"schema": schema} if example is None else {"schema": schema, "example": example}


def _problem(status: int, codes: Sequence[str]) -> Json:
    narrowed = {"properties": {"status": {"const": status}, "code": {"enum": list(codes)}}}
    return {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for code in codes)}.",
        "headers": _header_refs(("Cache-Control", *_STATUS_HEADERS.get(status, ()))),
        "content": {
            _PROBLEM_MEDIA: {"schema": {"allOf": [{"$ref": _REF.format(model=ProblemDocument.__name__)}, narrowed]}}
        },
    }


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _schemas(operations: Sequence[Operation]) -> Json:
    """The models of requests and responses. A model with defaults has other required fields in a response."""
    modes: dict[type[BaseModel], JsonSchemaMode] = {ProblemDocument: "serialization"}
    for operation in operations:
        for model in operation.body.models if operation.body else ():
            modes[model] = "validation"
        for answer in operation.answers:
            if answer.model is not None:
                modes[answer.model] = "serialization"
    _, document = models_json_schema(list(modes.items()), ref_template=_REF)
    schemas: Json = document["$defs"]
    return schemas
