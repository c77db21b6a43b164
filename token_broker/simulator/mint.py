"""The mint routes: GA's, and the first version's three flat ones. Each checks what Azure is known to check.

Order of the checks: the route exists, the credential, the api-version, the deployment or project in the path, the
body. Facts from docs/azure.md §2. Decided here, where it is silent: GA's mint answers an `api-version` with 400
(as Azure words it for other `/v1` routes), and an `OpenAI-Beta` header with 400 `beta_api_shape_disabled`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from token_broker.simulator import azure_errors
from token_broker.simulator.auth import Credential, admit
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies import flat_session, ga_session
from token_broker.simulator.session_bodies.check import (
    INVALID_VALUE,
    MISSING_PARAMETER,
    InvalidRequest,
    check,
    parse_json,
)

# The key as Bearer is a convenience of `/v1` for the openai package; the older routes know it as a header alone.
_FLAT_CREDENTIALS = frozenset({Credential.KEY, Credential.ENTRA})
_V1_CREDENTIALS = _FLAT_CREDENTIALS | {Credential.KEY_AS_BEARER}


@dataclass(frozen=True, slots=True)
class Mint:
    """The mint endpoints of one simulated resource."""

    resource: Resource

    def routes(self) -> list[Route]:
        """Those of the resource's kinds."""
        kinds = self.resource.config.kinds
        routes: list[Route] = []
        if "direct" in kinds:
            routes += [
                _post("/openai/v1/realtime/client_secrets", self.ga),
                _post("/openai/deployments/{deployment}/realtime/client_secrets", self.direct_deployment),
            ]
        if "unified" in kinds:
            routes += [_post("/openai/realtime/client_secrets", self.unified)]
        if "project" in kinds:
            routes += [
                _post("/api/projects/{project}/openai/realtime/client_secrets", self.project),
                _post("/api/projects/{project}/openai/v1/realtime/client_secrets", self.project_ga),
            ]
        return routes

    async def ga(self, request: Request) -> Response:
        admit(self.resource.credential_of(request.headers), self.resource.config, _V1_CREDENTIALS)
        return await self._mint_nested(request)

    async def project_ga(self, request: Request) -> Response:
        self._admit_to_project(request)
        return await self._mint_nested(request)

    async def direct_deployment(self, request: Request) -> Response:
        admit(self.resource.credential_of(request.headers), self.resource.config, _FLAT_CREDENTIALS)
        self._require_flat_version(request)
        deployment = request.path_params["deployment"]
        self._require_deployment(deployment)
        return await self._mint_flat(request, deployment)

    async def unified(self, request: Request) -> Response:
        admit(self.resource.credential_of(request.headers), self.resource.config, _FLAT_CREDENTIALS)
        self._require_flat_version(request)
        return await self._mint_flat(request, None)

    async def project(self, request: Request) -> Response:
        self._admit_to_project(request)
        self._require_flat_version(request)
        return await self._mint_flat(request, None)

    async def _mint_nested(self, request: Request) -> Response:
        # Before the body is read: who sends a version has the wrong route in mind, and any body would mislead.
        if "api-version" in request.query_params:
            raise azure_errors.api_version_not_allowed()
        if "openai-beta" in request.headers:
            raise azure_errors.beta_shape_disabled()
        body = check(ga_session.GaMintRequest, await _json_body(request))
        if isinstance(body.session, ga_session.RealtimeSession):
            if body.session.model is None:
                raise InvalidRequest(MISSING_PARAMETER, "Missing required parameter: 'session.model'.", "session.model")
            self._require_deployment(body.session.model)
        ttl_s = body.expires_after.seconds or self.resource.config.ga_ttl_s
        minted = self.resource.secrets.mint("ga", body.session.model_dump(mode="json"), ttl_s)
        return JSONResponse(
            {
                "value": minted.value.get_secret_value(),
                "expires_at": int(minted.expires_at),
                "session": ga_session.session_object(body.session, minted.session_id),
            },
            headers=azure_errors.MODEL_HEADERS,
        )

    async def _mint_flat(self, request: Request, deployment: str | None) -> Response:
        body = check(flat_session.FlatSession, await _json_body(request))
        if deployment is None and body.model is None:
            raise InvalidRequest(MISSING_PARAMETER, "Missing required parameter: 'model'.", "model")
        if deployment is not None and body.model not in (None, deployment):
            raise InvalidRequest(INVALID_VALUE, f"Invalid value for 'model': the path says '{deployment}'.", "model")
        model = deployment or body.model or ""
        self._require_deployment(model)
        session: dict[str, Any] = body.model_dump(mode="json") | {"model": model}
        minted = self.resource.secrets.mint("preview", session, self.resource.config.flat_ttl_s)
        # ISO 8601, as the first version's flat routes had it; GA states unix seconds.
        expires_at = datetime.fromtimestamp(minted.expires_at, UTC)
        return JSONResponse(
            {"value": minted.value.get_secret_value(), "expires_at": expires_at.isoformat().replace("+00:00", "Z")}
        )

    def _admit_to_project(self, request: Request) -> None:
        """A project needs the key twice, in `api-key` and `Ocp-Apim-Subscription-Key`; an Entra token once."""
        credential = self.resource.credential_of(request.headers)
        admit(credential, self.resource.config, _FLAT_CREDENTIALS)
        if credential is Credential.KEY:
            second = request.headers.get("ocp-apim-subscription-key")
            if second is None:
                raise azure_errors.key_missing()
            if second != request.headers["api-key"]:
                raise azure_errors.key_wrong()
        projects, project = self.resource.config.projects, request.path_params["project"]
        if projects is not None and project not in projects:
            raise azure_errors.project_not_found(project)

    def _require_flat_version(self, request: Request) -> None:
        if request.query_params.get("api-version") not in self.resource.config.flat_api_versions:
            raise azure_errors.api_version_not_supported()

    def _require_deployment(self, name: str) -> None:
        if name not in self.resource.config.deployments:
            raise azure_errors.deployment_not_found()


def _post(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, endpoint, methods=["POST"])


async def _json_body(request: Request) -> Any:
    # Lenient where there is no content type: what Azure does then is not known.
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise azure_errors.structured(415, "UnsupportedMediaType", f"Unsupported media type: {media_type}")
    return parse_json(await request.body())
