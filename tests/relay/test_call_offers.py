"""The first message of a talk by WebRTC."""

import json

import pytest

from tests.support.offers import OFFER
from token_broker.relay.media.call_offers import CallOffer, read_offer, with_line_ends


def _first(**fields: object) -> str:
    return json.dumps({"type": "rtc.call.sdp.create", **fields})


@pytest.mark.parametrize(
    "sdp",
    [OFFER, OFFER.replace("\r\n", "\n"), OFFER.rstrip(), OFFER.replace("\r\n", "\r"), OFFER + "\r\n"],
)
def test_line_ends_are_restored(sdp: str) -> None:
    assert read_offer(_first(sdp_offer=sdp, event_id="mine", session={"voice": "x"})) == CallOffer(OFFER, "mine")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        json.dumps({"type": "session.update"}),
        _first(),
        _first(sdp_offer=7),
        _first(sdp_offer=" "),
        _first(sdp_offer="hello"),
        _first(sdp_offer=OFFER + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"),
        _first(sdp_offer=OFFER.replace("m=audio", "m=video")),
        _first(sdp_offer=OFFER + "a=x\r\n" * 20_000),
        _first(sdp_offer=OFFER + "a=\x00\r\n"),
    ],
)
def test_anything_else_is_told(text: str) -> None:
    found = read_offer(text)
    assert isinstance(found, str)
    assert len(found.encode()) <= 123


def test_odd_event_id_is_left_out() -> None:
    assert read_offer(_first(sdp_offer=OFFER, event_id=[1])) == CallOffer(OFFER)
    assert with_line_ends("v=0") == "v=0\r\n"
