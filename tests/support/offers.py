"""An SDP offer for the broker, and for every fake that answers without a WebRTC peer."""

__all__ = ["OFFER"]

OFFER = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n"
