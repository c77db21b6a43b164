"""Secrets are checked at the start, and sign as the specification says."""

import base64
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from token_broker.hooks.secrets import parse_webhook_secrets

KEY = bytes(range(24))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
OTHER = f"whsec_{base64.b64encode(bytes(range(40))).decode()}"


@pytest.fixture
def far_from_utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Pacific/Auckland"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "geheim!",
        "whsec_geheim!",
        "whsec_",
        base64.b64encode(KEY).decode(),  # without the prefix
        f"whsec_{base64.b64encode(KEY[:23]).decode()}",  # too short
        f"whsec_{'é' * 40}",
        f"whsec_{base64.urlsafe_b64encode(bytes([255] * 24)).decode()}",
        f"{SECRET} whsec_no",
        f"{SECRET},{OTHER}",
        " ".join([SECRET] * 9),
    ],
)
def test_wrong_secret_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64 of 24 random bytes") as refused:
        parse_webhook_secrets(SecretStr(text))
    assert "geheim" not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("text", [SECRET, f" {SECRET}\n", SECRET.rstrip("="), f"{SECRET}  {OTHER}"])
def test_secret_signs(text: str) -> None:
    secrets = parse_webhook_secrets(SecretStr(text))
    assert len(secrets) == len(text.split())
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": secrets[0].sign("msg_1", now, '{"a": "ü"}'),
    }
    Webhook(SECRET).verify('{"a": "ü"}', headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify('{"a": "u"}', headers)


def test_repr_masks() -> None:
    (secret,) = parse_webhook_secrets(SecretStr(SECRET))
    assert repr(secret) == "WebhookSecret()"


@pytest.mark.usefixtures("far_from_utc")
def test_local_time_is_refused() -> None:
    """The package would sign a local time as if it were UTC's: 13 hours off, in Auckland."""
    (secret,) = parse_webhook_secrets(SecretStr(SECRET))
    now = datetime.now(UTC)
    for at in (now.replace(tzinfo=None), now.astimezone(), now.astimezone(timezone(timedelta(hours=2)))):
        with pytest.raises(ValueError, match="UTC"):
            secret.sign("msg_1", at, "{}")
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": secret.sign("msg_1", now, "{}"),
    }
    assert Webhook(SECRET).verify("{}", headers) == {}
