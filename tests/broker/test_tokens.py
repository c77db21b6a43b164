"""The broker's own tokens: told apart by their type, bound in time, rotated, never forged."""

import base64
import json
import re
import uuid
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.strategies.clock import Clock
from token_broker.security.tokens import (
    CALL_TYPE,
    CLIENT_SECRET_TYPE,
    LEEWAY_S,
    SESSION_TYPE,
    TICKET_TYPE,
    Owner,
    TokenError,
    TokenSigner,
    _subkey,
    load_or_create_key,
)

KEY = SecretStr("first-key-0123456789abcdef0123456789")
OTHER = SecretStr("other-key-0123456789abcdef0123456789")
NOW_S = 1_795_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW_S)


@pytest.fixture
def signer(clock: Clock) -> TokenSigner:
    return TokenSigner([KEY], clock=clock)


ADA = Owner("session-0123456789", "anonymous", 7, "ada")
ENTRA_USER = Owner("session-0123456789", "entra:1", 7)


def session_token(signer: TokenSigner) -> str:
    return signer.session_token(ADA, ttl_s=100)


def ticket(signer: TokenSigner, owner: Owner = ENTRA_USER) -> str:
    return signer.ticket(owner, agent_id="elena", ttl_s=180)


def test_session_token_round_trip(signer: TokenSigner) -> None:
    claims = signer.read_session_token(session_token(signer))
    assert (claims.owner, claims.expires_at_s) == (ADA, NOW_S + 100)


def test_ticket_round_trip_with_unique_id(signer: TokenSigner) -> None:
    first, second = (signer.read_ticket(ticket(signer)) for _ in range(2))
    assert (first.owner, first.agent_id, first.expires_at_s) == (ENTRA_USER, "elena", NOW_S + 180)
    assert first.ticket_id != second.ticket_id


def test_ticket_is_a_valid_subprotocol(signer: TokenSigner) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", ticket(signer, Owner("s" * 64, "entra:1", 7, "ä" * 256)))


def test_token_kinds_are_told_apart(signer: TokenSigner) -> None:
    with pytest.raises(TokenError, match="another kind"):
        signer.read_ticket(session_token(signer))
    with pytest.raises(TokenError, match="another kind"):
        signer.read_session_token(ticket(signer), grace_s=10**9)


@pytest.mark.parametrize(
    ("later_s", "grace_s", "taken"),
    [
        (0, 0, True),
        (99, 0, True),
        (100 + LEEWAY_S - 1, 0, True),  # clocks may differ by 60 s
        (100 + LEEWAY_S, 0, False),
        (100 + 24 * 3600 + LEEWAY_S - 1, 24 * 3600, True),  # the grace comes on top
        (100 + 24 * 3600 + LEEWAY_S, 24 * 3600, False),
        (-LEEWAY_S, 0, True),  # signed by a replica whose clock is ahead
        (-3600, 0, True),
    ],
)
def test_token_is_valid_until_expiry_and_leeway(
    later_s: float, grace_s: float, taken: bool, signer: TokenSigner, clock: Clock
) -> None:
    token = session_token(signer)
    clock.now_s += later_s
    if taken:
        signer.read_session_token(token, grace_s=grace_s)
        return
    with pytest.raises(TokenError) as refused:
        signer.read_session_token(token, grace_s=grace_s)
    assert refused.value.expired


def test_keys_rotate_without_ending_talks(clock: Clock) -> None:
    before = TokenSigner([KEY], clock=clock)
    during = TokenSigner([OTHER, KEY], clock=clock)
    after = TokenSigner([OTHER], clock=clock)
    old, new = session_token(before), session_token(during)
    assert during.read_session_token(old).owner.session_id == after.read_session_token(new).owner.session_id
    for signer, token in ((after, old), (before, new)):
        with pytest.raises(TokenError, match="not one of this broker's"):
            signer.read_session_token(token)


def test_own_session_ids_are_recognized() -> None:
    before, during, after = TokenSigner([KEY]), TokenSigner([OTHER, KEY]), TokenSigner([OTHER])
    made = before.new_session_id()
    assert uuid.UUID(made).version == 7
    assert str(uuid.UUID(made)) == made
    assert before.made(made)
    assert during.made(made)
    assert not after.made(made)
    changed = made[:-1] + ("0" if made[-1] != "0" else "1")
    others = ["", "a", made[:28], made[:-1], f"{made}a", "0" * 36, f"é{made[1:]}", made.upper(), changed]
    assert [other for other in others if other != made and before.made(other)] == []


def test_signer_needs_a_key() -> None:
    with pytest.raises(ValueError, match="key"):
        TokenSigner([])


def _encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


KIND = "vtb-session+jwt"
CLAIMS = {
    "iss": "voice-token-broker", "aud": KIND, "sid": "session-0123456789", "sub": "anonymous", "epo": 7, "uid": None,
    "iat": int(NOW_S), "exp": int(NOW_S) + 100,
}  # fmt: skip
HEADER = {"alg": "HS256", "typ": KIND}


def signed(claims: object, *, key_of: str = KIND, typ: str = KIND) -> str:
    """`claims` as whoever holds the subkey of `key_of` would sign them."""
    document = json.dumps(claims).encode()
    return jwt.PyJWS().encode(document, _subkey(KEY.get_secret_value().encode(), key_of), "HS256", {"typ": typ})


@pytest.mark.parametrize(
    "forged",
    [
        f"{_encoded({**HEADER, 'alg': 'none'})}.{_encoded(CLAIMS)}.",
        f"{_encoded({**HEADER, 'alg': 'None'})}.{_encoded(CLAIMS)}.",
        f"{_encoded(HEADER)}.{_encoded(CLAIMS)}.",
        f"{_encoded(HEADER)}.{_encoded(CLAIMS)}.{_encoded('signature')}",
        jwt.encode(CLAIMS, OTHER.get_secret_value(), "HS256", HEADER),
        jwt.encode(CLAIMS, KEY.get_secret_value() * 2, "HS512", {"typ": "vtb-session+jwt"}),
        jwt.encode(CLAIMS, KEY.get_secret_value() * 2, "HS384", {"typ": "vtb-session+jwt"}),
        jwt.encode(CLAIMS, KEY.get_secret_value(), "HS256"),  # no type of ours
        jwt.encode(CLAIMS, KEY.get_secret_value(), "HS256", {"typ": "vtb-ticket+jwt"}),
        jwt.encode(CLAIMS, KEY.get_secret_value(), "HS256", HEADER),  # the configured key itself signs nothing
        signed(CLAIMS, key_of="vtb-ticket+jwt"),
        signed(CLAIMS, typ="vtb-ticket+jwt"),
        "",
        ".",
        "..",
        "a.b.c",
        "é.é.é",
        "x" * 5000,
        _encoded(HEADER),
    ],
)
def test_forgery_is_refused(forged: str, signer: TokenSigner) -> None:
    with pytest.raises(TokenError):
        signer.read_session_token(forged)


@pytest.mark.parametrize(
    "claims",
    [
        {**CLAIMS, "exp": None},
        {**CLAIMS, "exp": "2100-01-01"},
        {**CLAIMS, "exp": True},
        {key: value for key, value in CLAIMS.items() if key != "exp"},
        {**CLAIMS, "sid": 7},
        {**CLAIMS, "sub": None},
        {**CLAIMS, "epo": "7"},
        {**CLAIMS, "uid": 7},
        {**CLAIMS, "iss": "another-broker"},
        {**CLAIMS, "aud": "vtb-ticket+jwt"},
        {**CLAIMS, "aud": [KIND, "vtb-ticket+jwt"]},
        {key: value for key, value in CLAIMS.items() if key != "iss"},
        {key: value for key, value in CLAIMS.items() if key != "aud"},
        [CLAIMS],
        "claims",
    ],
)
def test_signed_foreign_claims_are_refused(claims: object, signer: TokenSigner) -> None:
    with pytest.raises(TokenError):
        signer.read_session_token(signed(claims))


def test_signed_own_claims_are_accepted(signer: TokenSigner) -> None:
    assert signer.read_session_token(signed(CLAIMS)).owner.session_id == CLAIMS["sid"]


def test_each_token_kind_has_its_subkey() -> None:
    key = KEY.get_secret_value().encode()
    subkeys = {_subkey(key, kind) for kind in (SESSION_TYPE, TICKET_TYPE, CALL_TYPE, CLIENT_SECRET_TYPE)}
    assert len(subkeys) == 4
    assert all(len(subkey) == 32 and subkey != key for subkey in subkeys)


@given(text=st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    signer = TokenSigner([KEY])
    with pytest.raises(TokenError):
        signer.read_session_token(text)
    with pytest.raises(TokenError):
        signer.read_ticket(text)


@given(position=st.integers(0, 300), letter=st.sampled_from("Aa0_-."))
def test_changed_token_is_refused(position: int, letter: str) -> None:
    signer = TokenSigner([KEY])
    token = session_token(signer)
    position %= len(token)
    changed = token[:position] + letter + token[position + 1 :]
    try:
        claims = signer.read_session_token(changed)
    except TokenError:
        return
    # base64url's last letter has bits to spare: the signature itself is the same.
    assert changed == token or position == len(token) - 1
    assert claims == signer.read_session_token(token)


def test_ticket_fits_a_handshake(signer: TokenSigner) -> None:
    assert len(signer.ticket(Owner("s" * 64, "entra:1", 7, "u" * 256), agent_id="a" * 64, ttl_s=180)) < 2048


def test_signing_key_is_created_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    made = load_or_create_key(path)
    assert load_or_create_key(path) == made
    assert len(made.get_secret_value()) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert made.get_secret_value() not in repr(made)


def test_key_file_without_key_is_reported(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short", encoding="utf-8")
    with pytest.raises(OSError, match="holds no signing key"):
        load_or_create_key(tmp_path / "key")


def test_signer_repr_masks_the_key(signer: TokenSigner) -> None:
    assert KEY.get_secret_value() not in f"{signer!r}"
