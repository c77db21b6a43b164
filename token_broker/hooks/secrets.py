"""The secrets that outgoing hooks are signed with, as the Standard Webhooks specification has them."""

import base64
import binascii
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import SecretStr
from standardwebhooks import Webhook

__all__ = ["WebhookSecret", "parse_webhook_secrets"]

_PREFIX = "whsec_"
_MIN_BYTES = 24  # of the specification
_MAX_SECRETS = 8
_RIGHT_FORM = f"should be {_PREFIX} and the base64 of {_MIN_BYTES} random bytes or more"
_HOW_TO = f'echo "{_PREFIX}$(openssl rand -base64 32)" makes one'


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """One secret; `parse_webhook_secrets` makes it. Its `repr` shows nothing."""

    _webhook: Webhook = field(repr=False)

    def sign(self, webhook_id: str, at: datetime, text: str) -> str:
        """The signature of `text`, such as `v1,…`. Raises ValueError for a time without a zone.

        The package takes any time for UTC, whatever its zone says, and signs the `repr` of bytes.
        """
        if at.utcoffset() is None or at.utcoffset():
            raise ValueError("the time of a signature is given in UTC")
        return self._webhook.sign(webhook_id, at, text)


def parse_webhook_secrets(text: SecretStr) -> tuple[WebhookSecret, ...]:
    """The secrets of a setting, separated by blanks: while one replaces another, each signs.

    Raises ValueError with the right form; its message never has the secret. The package itself decodes leniently: of
    words that a person made up it would keep a few bytes, and sign with these.
    """
    parts = text.get_secret_value().split()
    if not 0 < len(parts) <= _MAX_SECRETS:
        raise ValueError(f"{_RIGHT_FORM}, or up to {_MAX_SECRETS} of them, separated by blanks; {_HOW_TO}")
    found = []
    for part in parts:
        encoded = part.removeprefix(_PREFIX)
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not part.startswith(_PREFIX) or len(key) < _MIN_BYTES:
            raise ValueError(f"{_RIGHT_FORM}; {_HOW_TO}")
        found.append(WebhookSecret(Webhook(key)))
    return tuple(found)
