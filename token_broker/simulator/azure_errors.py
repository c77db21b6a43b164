"""Azure's error answers, in the three shapes it is known to use (docs/azure.md §8.4).

AzureError                 an answer to be sent, raised from anywhere below a route
  structured(...)          {"error": {"code", "message", "param"?, "type"?}}
  flat(...)                {"statusCode": 401, "message": "…"}
  page(...)                not JSON at all: a gateway's HTML
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

# Of every answer that the model's own service gives, as recorded (docs/azure.md §2.1).
MODEL_HEADERS = {
    "azureml-served-by-cluster": "simulated",
    "openai-processing-ms": "1",
    "openai-version": "2020-10-01",
    "strict-transport-security": "max-age=31536000; includeSubDomains; preload",
}


class AzureError(Exception):
    """An error answer: HTTP status, body as sent, and headers beyond those of every answer."""

    def __init__(self, status: int, body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {body[:200]!r}")
        self.status = status
        self.body = body
        self.media_type = media_type
        self.headers = dict(headers or {})


def structured(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    type_: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> AzureError:
    """`{"error": {…}}`. With `type_` it also has a `param`, which may be null."""
    error: dict[str, Any] = {"code": code, "message": message}
    if type_ is not None:
        error |= {"param": param, "type": type_}
    return AzureError(status, _json({"error": error}), "application/json", headers)


def flat(status: int, message: str) -> AzureError:
    """The shape of the gateway in front."""
    return AzureError(status, _json({"statusCode": status, "message": message}), "application/json")


def page(status: int) -> AzureError:
    """A gateway's HTML."""
    title = f"{status} {HTTPStatus(status).phrase}"
    html = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return AzureError(status, html.encode(), "text/html")


def invalid_request(code: str, message: str, *, param: str | None = None, status: int = 400) -> AzureError:
    """The model's refusal of a body, as OpenAI words it."""
    return structured(status, code, message, param=param, type_="invalid_request_error")


def resource_not_found() -> AzureError:
    """For every route that the resource does not have."""
    return structured(404, "404", "Resource not found")


def deployment_not_found() -> AzureError:
    """No deployment has the name that was asked for."""
    return structured(
        404,
        "DeploymentNotFound",
        "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, "
        "please wait a moment and try again.",
    )


def project_not_found(project: str) -> AzureError:
    """No Foundry project has that name."""
    return structured(404, "NotFound", f"Project not found: {project}")


def api_version_not_supported() -> AzureError:
    """For a flat route with a missing or unknown `api-version`."""
    return structured(400, "BadRequest", "API version not supported")


def api_version_not_allowed() -> AzureError:
    """For a `/v1` route with any `api-version`."""
    return structured(400, "BadRequest", "api-version query parameter is not allowed when using /v1 path")


def beta_shape_disabled() -> AzureError:
    """For an `OpenAI-Beta` header on a GA route."""
    return invalid_request(
        "beta_api_shape_disabled",
        "The Realtime Beta API is no longer supported. Please use /v1/realtime for the GA API.",
    )


def key_missing() -> AzureError:
    """No credential came at all."""
    return flat(
        401,
        "Unauthorized. Access token is missing, invalid, audience is incorrect (https://cognitiveservices.azure.com), "
        "or have expired.",
    )


def key_wrong() -> AzureError:
    """A credential came that this route does not take."""
    return flat(
        401,
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an "
        "active subscription and use a correct regional API endpoint for your resource.",
    )


def ephemeral_needed() -> AzureError:
    """A standing credential came where only an ephemeral one may call (docs/azure.md §5.1)."""
    return structured(401, "Unauthorized", "This operation requires ephemeral tokens for authentication.")


def permission_denied() -> AzureError:
    """A principal without the role."""
    return structured(401, "PermissionDenied", "Principal does not have access to API/Operation.")


def keys_disabled() -> AzureError:
    """`disableLocalAuth` is set on the resource."""
    return structured(403, "AuthenticationTypeDisabled", "Key based authentication is disabled for this resource.")


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
