"""What an admitted handshake opens: a talk in a dialect, from a session."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from token_broker.simulator.ephemeral import EphemeralSecret
from token_broker.simulator.faults.talk_behaviour import TalkBehaviour
from token_broker.simulator.realtime.dialects import GA, PREVIEW, Dialect
from token_broker.simulator.realtime.responses import SpeechRate
from token_broker.simulator.realtime.simulated_talk import SimulatedTalk, TalkOptions
from token_broker.simulator.records.transcript import TalkRecord
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies.check import INVALID_VALUE, InvalidRequest


@dataclass(frozen=True, slots=True)
class Opening:
    """A dialect, and the session in its shape that the talk starts from."""

    dialect: Dialect
    session: Any
    session_id: str | None = None
    """Where the mint has stated it already."""


def minted_opening(resource: Resource, secret: EphemeralSecret) -> Opening:
    """What a secret was minted for.

    Raises:
        InvalidRequest: for transcription, which this simulator does not do.

    """
    dialect = GA if secret.dialect == "ga" else PREVIEW
    if secret.session.get("type") == "transcription":
        raise InvalidRequest(INVALID_VALUE, "This simulator does not hold transcription sessions.", "session.type")
    session = dialect.session_model.model_validate(secret.session)
    return Opening(dialect, session, resource.secrets.session_id_for(secret))


def new_talk(
    resource: Resource,
    opening: Opening,
    path: str,
    *,
    server_plays: bool = False,
    check_update: Callable[[Any, Any], None] = lambda _before, _after: None,
) -> SimulatedTalk:
    """A talk as this resource holds them, with the faults that are set for its path."""
    config = resource.config
    behaviour = TalkBehaviour(resource.faults, path)
    stated_s, longest_s = behaviour.expiry(config.longest_talk_s)
    options = TalkOptions(
        speech_rate=SpeechRate(config.thinking_s, config.answer_speed),
        transcript_timing=config.transcript_timing,
        # Voice Live and the preview host their transcription models themselves.
        transcription_models=config.transcription_deployments if opening.dialect is GA else None,
        longest_s=longest_s,
        server_plays=server_plays,
        next_response=resource.scripted.take,
        behaviour=behaviour,
        check_update=check_update,
        record=TalkRecord(resource.transcript, resource.name),
        actor=config.actor,
    )
    # By the resource's clock, which a test may have moved.
    expires_at = None if stated_s is None else int(resource.clock.now() + stated_s)
    return SimulatedTalk(opening.dialect, opening.session, options, expires_at, opening.session_id)
