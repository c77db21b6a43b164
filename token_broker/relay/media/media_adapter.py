"""A WebRTC talk's side towards its client: the proxy's, without audio."""

from strategies.session_model.agent_settings import CLIENT_MAY_SET, Dialect
from token_broker.relay.adapters import FromClient, ProxyAdapter
from token_broker.relay.dialects.broker_events import broker_error, broker_event
from token_broker.relay.dialects.session_settings import MaySet
from token_broker.relay.event_text import event_of
from token_broker.relay.policy.allowlist import Refused, is_plain_append

__all__ = ["MediaAdapter"]

_AUDIO_EVENTS = frozenset({"input_audio_buffer.append", "input_audio.turn.append"})
_NO_AUDIO = Refused("no_audio_here", "audio goes straight to Azure, over the peer connection")


class MediaAdapter(ProxyAdapter):
    """The proxy's events as the upstream sends them, and the broker's own. One a talk."""

    transport = "webrtc_websocket"

    def from_client(self, text: str, upstream: Dialect, may_set: MaySet = CLIENT_MAY_SET) -> FromClient:
        """As the proxy's; an event with audio is refused."""
        if is_plain_append(text):
            return _NO_AUDIO
        found = super().from_client(text, upstream, may_set)
        if isinstance(found, Refused) or not any(kind in text for kind in _AUDIO_EVENTS):
            return found
        return _NO_AUDIO if (event_of(text) or {}).get("type") in _AUDIO_EVENTS else found

    def switching(self, agent_id: str) -> str:
        """The event that asks the page to take a new plan, with this agent: a call keeps its voice."""
        return broker_event("broker.agent.switch", agent_id=agent_id)

    def expiring(self, left_s: float) -> str:
        """The event that says that Azure ends the session soon, and that another plan begins another one."""
        message = f"Azure ends this session in {left_s:.0f} s: ask for a new plan, which goes on with the talk"
        return broker_error("session_expiring", message, retryable=True)
