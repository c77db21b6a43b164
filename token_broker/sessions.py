"""Who owns a session: a new one begins, a known one is resumed by its owner alone."""

import time

from token_broker.auth import Principal
from token_broker.ids import uuid7
from token_broker.memory.base import CutOffList, Owner, SessionBook
from token_broker.problems import Problem
from token_broker.tokens import SessionClaims, TokenError, TokenSigner

__all__ = ["RESUME_GRACE_S", "ensure_not_cut_off", "open_session"]

RESUME_GRACE_S = 24 * 3600

_FOREIGN = (
    "This session belongs to somebody else, or its proof is missing: send its last session_token in X-Session-Token, "
    "or leave session_id out to begin a new session."
)


async def open_session(
    book: SessionBook,
    signer: TokenSigner,
    *,
    principal: Principal,
    session_id: str | None,
    session_token: str | None,
    user_id: str | None,
) -> Owner:
    """The session that a plan is made for, with the next epoch (contract §2, Sessions).

    Raises Problem 403 where the session is another's, or `user_id` is not the principal's own.
    """
    if principal.authenticated and user_id is not None and user_id not in {principal.id, principal.subject}:
        raise Problem(403, "foreign_user", "Leave user_id out, or send your own.")
    label = None if principal.authenticated else user_id
    if session_id is None:
        return Owner(uuid7(), principal.id, _now_ms(), label)
    claims = _claims(signer, session_token, session_id)
    if claims is not None and claims.principal != principal.id:
        raise Problem(403, "foreign_session", _FOREIGN)
    record = await book.find(session_id)
    same_user = principal.authenticated and record is not None and record.principal == principal.id
    if record is not None and claims is None and not same_user:
        raise Problem(403, "foreign_session", _FOREIGN)
    last_epoch = max(claims.epoch if claims else 0, record.epoch if record else 0)
    if label is None and claims is not None:
        label = claims.user_id
    return Owner(session_id, principal.id, max(last_epoch + 1, _now_ms()), label)


def ensure_not_cut_off(cutoffs: CutOffList, principal: str, session_id: str) -> None:
    """Raises Problem 403 where the operator has cut off the principal or the session: their tokens open nothing."""
    if cutoffs.refused(principal, session_id):
        detail = "This session, or its user, was cut off by the operator: ask them; asking again here is of no use."
        raise Problem(403, "cut_off", detail)


def _claims(signer: TokenSigner, session_token: str | None, session_id: str) -> SessionClaims | None:
    if session_token is None:
        return None
    try:
        claims = signer.read_session_token(session_token, grace_s=RESUME_GRACE_S)
    except TokenError:
        raise Problem(403, "foreign_session", _FOREIGN) from None
    if claims.session_id != session_id:
        raise Problem(403, "foreign_session", _FOREIGN)
    return claims


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
