"""An SDP offer as a WebRTC stack makes it."""

from aiortc import RTCPeerConnection

__all__ = ["make_offer"]


async def make_offer() -> str:
    """An offer of audio and a data channel, of a peer that does not wait for the answer."""
    peer = RTCPeerConnection()
    peer.addTransceiver("audio")
    peer.createDataChannel("oai-events")
    await peer.setLocalDescription(await peer.createOffer())
    sdp: str = peer.localDescription.sdp
    await peer.close()
    return sdp
