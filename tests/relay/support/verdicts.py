"""What becomes of a client's message on the proxy, as one value."""

from dataclasses import dataclass

from token_broker.relay.event_text import compact
from token_broker.relay.policy.allowlist import Allowed, Broken, Command, Passed, Refused, examine

__all__ = ["Sent", "judge"]


@dataclass(frozen=True)
class Sent:
    """It goes to Azure as `text`, without `left_out` fields that it came with."""

    text: str
    left_out: int = 0


def judge(text: str) -> Sent | Command | Refused | Broken:
    match examine(text):
        case Allowed(event=event, left_out=left_out):
            return Sent(compact(event), left_out)
        case Passed(text=plain):
            return Sent(plain)
        case verdict:
            return verdict
