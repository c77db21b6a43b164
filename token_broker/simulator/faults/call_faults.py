"""Faults and switches of WebRTC calls: what is disputed about Azure's, and what goes wrong with them.

Switches have no moment of their own: each is looked for when the call comes to where it matters.
"""

from typing import ClassVar, Literal

from token_broker.simulator.faults.fault_base import BaseFault, Protocol, Seconds


class IceNeverFault(BaseFault):
    """The answer has candidates that nobody can reach, and nobody listens there. It is met by the offer."""

    fault: Literal["ice_never"]


class DieAfterFault(BaseFault):
    """The call dies so long after it connected: closed, only its data channel closed, or silent for good."""

    fault: Literal["die_after"]
    seconds: Seconds = 5.0
    how: Literal["close", "channel", "silent"] = "close"


class _CallSwitch(BaseFault):
    protocols: ClassVar[frozenset[Protocol]] = frozenset()


class DataChannelFault(_CallSwitch):
    """The data channel opens so many seconds late, never, or is the service's own beside the page's."""

    fault: Literal["data_channel"]
    how: Literal["late", "never", "own"] = "never"
    seconds: Seconds = 1.0


class StrictSdpFault(_CallSwitch):
    """An offer whose lines do not all end in CR and LF is refused."""

    fault: Literal["strict_sdp"]


class LateSidebandFault(_CallSwitch):
    """A sideband is answered 404 until the call's peer is connected."""

    fault: Literal["late_sideband"]


class ManySidebandsFault(_CallSwitch):
    """A Live session takes more than one sideband."""

    fault: Literal["many_sidebands"]


class NoPageRightsFault(_CallSwitch):
    """A Live session over WebRTC has no `client`: what a page may send and get can't be said."""

    fault: Literal["no_page_rights"]


class WebrtcOrderFault(_CallSwitch):
    """On a control socket, `rtc.call.sdp.created` comes before `session.created`."""

    fault: Literal["webrtc_order"]


class DataChannelIgnoredFault(_CallSwitch):
    """Client events on the data channel of a call with a control socket are ignored."""

    fault: Literal["data_channel_ignored"]


class CallOutlivesSocketFault(_CallSwitch):
    """A call goes on without its control socket, until its peer leaves."""

    fault: Literal["call_outlives_socket"]


class NoVoiceLiveWebrtcFault(_CallSwitch):
    """Voice Live's control socket answers 404, as where WebRTC is not offered."""

    fault: Literal["no_voice_live_webrtc"]


class LateControlFault(_CallSwitch):
    """Events reach the control socket so many seconds after they reach the data channel."""

    fault: Literal["late_control"]
    seconds: Seconds = 0.5


class OfferSessionFault(_CallSwitch):
    """What becomes of an offer whose `session` is refused; without this fault the call is refused as well.

    `error`: the call begins with the default session after an `error` event; `silent`: without one.
    """

    fault: Literal["offer_session"]
    how: Literal["error", "silent"] = "error"
