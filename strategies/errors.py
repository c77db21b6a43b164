"""Why a mint failed. Each class is one decision about what to do next.

    MintError
    ├── TransientError          try again: 429, 5xx, a connection that failed
    │   ├── RateLimitedError        429: not before `retry_after_s`
    │   ├── TimedOutError           no answer in time: not again in this request
    │   └── CredentialError         there is no Entra token
    ├── PermanentError          this resource lacks the route: 404, 405, 410
    │   └── ApiVersionError         it has the route, and refuses our api-version
    ├── MisconfiguredError      an operator has to act: 401, 403
    │   └── KeysDisabledError       403 AuthenticationTypeDisabled: Entra may still work
    ├── RejectedError           our request is wrong: other 4xx
    └── MalformedError          the answer is wrong: not JSON, no token, an impossible expiry, a redirect

The messages are the broker's own, written for an operator. They never carry Azure's text, a URL's query or a secret:
Azure's text may quote what it was sent.
"""

import re
from collections.abc import Mapping
from typing import Any

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

_TOKENS_TEXT = re.compile(r"token rate limit|tokens per min|insufficient_quota", re.IGNORECASE)


class MintError(Exception):
    """A mint that failed.

    `status` is the answer's HTTP status and `code` its error code, each None where there was none. `request_id` is
    Azure's `apim-request-id`, which its support asks for.
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
    """A repetition may succeed."""

    outcome = "transient"


class RateLimitedError(TransientError):
    """429. `retry_after_s` is the time that Azure asks to wait, in seconds from now; None without a usable one.

    `is_of_tokens` tells a limit of the model's tokens from one of requests and connections.
    """

    outcome = "rate_limited"

    @staticmethod
    def names_tokens(text: str) -> bool:
        """Whether Azure's text about a limit means the model's tokens."""
        return _TOKENS_TEXT.search(text) is not None

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        is_of_tokens: bool = False,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, request_id=request_id)
        self.retry_after_s = retry_after_s
        self.is_of_tokens = is_of_tokens


class TimedOutError(TransientError):
    """No complete answer within the attempt's time."""

    outcome = "timeout"


class CredentialError(TransientError):
    """No Entra token came in time, or its source refused one."""

    outcome = "no_credential"


class PermanentError(MintError):
    """The resource lacks the route."""

    outcome = "permanent"


class ApiVersionError(PermanentError):
    """The route exists and refuses the api-version."""


class MisconfiguredError(MintError):
    """The credential is wrong or lacks a role. Only an operator can change that."""

    outcome = "misconfigured"


class KeysDisabledError(MisconfiguredError):
    """The resource accepts no keys at all (403 AuthenticationTypeDisabled)."""


class RejectedError(MintError):
    """Azure understood the request and refuses it. `about` is Azure's own `error`, which is never shown."""

    outcome = "rejected"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, request_id=request_id)
        self.about = {} if about is None else about


class MalformedError(MintError):
    """The answer is unusable."""

    outcome = "malformed"
