"""An SDP offer of a real WebRTC stack."""

from aiortc import RTCPeerConnection

__all__ = ["make_offer"]


async def make_offer() -> str:
    """An offer of audio and a data channel; its peer is closed at once."""
    peer = RTCPeerConnection()
    peer.addTransceiver("audio")
    peer.createDataChannel("oai-events")
    await peer.setLocalDescription(await peer.createOffer())
    sdp: str = peer.localDescription.sdp
    await peer.close()
    return sdp
