"""The offer that a talk by WebRTC begins with, and SDP as it is passed on. Pure."""

import re
from dataclasses import dataclass

from token_broker.relay.event_text import event_of

__all__ = ["CREATE", "CREATED", "LONGEST_OFFER", "CallOffer", "offers_audio", "read_offer", "with_line_ends"]

CREATE = "rtc.call.sdp.create"
CREATED = "rtc.call.sdp.created"
LONGEST_OFFER = 65_536  # characters: a browser's offer with all its candidates has a tenth of that
_LONGEST_ID = 512
_LINE_END = re.compile(r"\r\n|\n|\r")
_SDP_LINE = re.compile(rb"[a-z]=[^\x00-\x08\x0a-\x1f]*")
_AUDIO = re.compile(r"(?m)^m=audio ")


@dataclass(frozen=True, slots=True)
class CallOffer:
    """The client's offer, as Azure gets it. `event_id` is the client's own."""

    sdp: str
    event_id: str | None = None


def offers_audio(offer: bytes) -> bool:
    """Whether this is an SDP that offers audio."""
    lines = offer.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    well_formed = lines[0] == b"v=0" and all(_SDP_LINE.fullmatch(line) for line in lines)
    return well_formed and any(line.startswith(b"m=audio ") for line in lines)


def read_offer(text: str) -> CallOffer | str:
    """The offer in the client's first message, or what is wrong with it.

    Nothing but the offer is taken: the session is the agent's.
    """
    event = event_of(text) if len(text) <= 2 * LONGEST_OFFER else None
    if event is None or event.get("type") != CREATE:
        return f"the first message has to be {CREATE} with an sdp_offer"
    sdp, event_id = event.get("sdp_offer"), event.get("event_id")
    if not isinstance(sdp, str) or not sdp.strip():
        return "sdp_offer is missing: send createOffer()'s sdp as it is"
    if len(sdp) > LONGEST_OFFER:
        return "sdp_offer is too long"
    sdp = with_line_ends(sdp)
    if not offers_audio(sdp.encode(errors="replace")):
        return "sdp_offer is no SDP with an audio line: send createOffer()'s sdp as it is"
    if len(_AUDIO.findall(sdp)) != 1:  # docs/azure.md §12.1: two are answered, and carry no media
        return "sdp_offer has several audio lines: offer one"
    known = isinstance(event_id, str) and len(event_id) <= _LONGEST_ID
    return CallOffer(sdp, event_id if known else None)


def with_line_ends(sdp: str) -> str:
    """The SDP with each line ended as the standard has it, the last one too."""
    return _LINE_END.sub("\n", sdp).rstrip("\n").replace("\n", "\r\n") + "\r\n"
