"""Why a mint failed, as far as it decides what to do next.

    MintError
    ├── TransientError          try again: 429, 5xx, a connection that failed
    │   ├── RateLimitedError        429: not before `retry_after_s`
    │   ├── TimedOutError           no answer in time: not again in this request
    │   └── CredentialError         no Entra token could be had
    ├── PermanentError          this resource lacks the route: 404, 405, 410
    │   └── ApiVersionError         it has the route, and refuses our api-version
    ├── MisconfiguredError      an operator has to act: 401, 403
    │   └── KeysDisabledError       403 AuthenticationTypeDisabled: Entra may still work
    ├── RejectedError           our request is wrong: other 4xx
    └── MalformedError          the answer is: not JSON, no token, an expiry that can't be, a redirect

Messages are ours: fit for a log and for an operator. They never carry Azure's text, a URL's query or a secret.
"""

__all__ = [
    "ApiVersionError",
    "CredentialError",
    "KeysDisabledError",
    "MalformedError",
    "MintError",
    "MisconfiguredError",
    "PermanentError",
    "RateLimitedError",
    "RejectedError",
    "TimedOutError",
    "TransientError",
]


class MintError(Exception):
    """A mint that failed.

    `status` is the HTTP status where there was an answer; `code` Azure's error code where it had a plain one;
    `request_id` Azure's `apim-request-id`, which its support asks for.
    """

    outcome = "failed"

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id


class TransientError(MintError):
    """It may work the next time."""

    outcome = "transient"


class RateLimitedError(TransientError):
    """429. `retry_after_s` is Azure's wish, in seconds from now; None where it named none that can be used."""

    outcome = "rate_limited"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, request_id=request_id)
        self.retry_after_s = retry_after_s


class TimedOutError(TransientError):
    """No whole answer within the attempt's time."""

    outcome = "timeout"


class CredentialError(TransientError):
    """No Entra token within the time, or its source refused."""

    outcome = "no_credential"


class PermanentError(MintError):
    """The resource lacks the route."""

    outcome = "permanent"


class ApiVersionError(PermanentError):
    """The route is there, and refuses the api-version asked with."""


class MisconfiguredError(MintError):
    """The credential is wrong, or lacks a role: nothing heals it but an operator."""

    outcome = "misconfigured"


class KeysDisabledError(MisconfiguredError):
    """The resource takes no keys at all (403 AuthenticationTypeDisabled)."""


class RejectedError(MintError):
    """Azure understood the request and will not have it."""

    outcome = "rejected"


class MalformedError(MintError):
    """The answer can't be used."""

    outcome = "malformed"
