"""A caller whom Easy Auth, in front of the broker, has signed in."""

import base64
import json

__all__ = ["signed_in"]


def signed_in(name: str) -> dict[str, str]:
    """The header that Container Apps' authentication adds for a user of Entra with the object id `name`."""
    document = {"auth_typ": "aad", "claims": [{"typ": "oid", "val": name}]}
    return {"X-MS-CLIENT-PRINCIPAL": base64.b64encode(json.dumps(document).encode()).decode()}
