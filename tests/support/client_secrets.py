"""What stands in a client secret."""

from token_broker.security.tokens import ClientSecretClaims, TokenSigner

__all__ = ["secret_claims"]


def secret_claims(signer: TokenSigner, secret: str) -> ClientSecretClaims:
    """The claims of an unexpired client secret, with or without its prefix. Raises TokenError."""
    claims = signer.read_any(secret)
    assert isinstance(claims, ClientSecretClaims)
    return claims
