"""What a handshake that was let in opens: a talk in some dialect, from some session."""

from dataclasses import dataclass
from typing import Any

from token_broker.simulator.ephemeral import EphemeralSecret
from token_broker.simulator.realtime.answer import SpeechRate
from token_broker.simulator.realtime.dialects import GA, PREVIEW, Dialect
from token_broker.simulator.realtime.simulated_talk import SimulatedTalk, TalkOptions
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies.check import INVALID_VALUE, InvalidRequest


@dataclass(frozen=True, slots=True)
class Opening:
    """A dialect, and the session in its shape that the talk starts from."""

    dialect: Dialect
    session: Any


def minted_opening(secret: EphemeralSecret) -> Opening:
    """What a secret was minted for.

    Raises:
        InvalidRequest: for transcription, which this simulator does not do.

    """
    dialect = GA if secret.dialect == "ga" else PREVIEW
    if secret.session.get("type") == "transcription":
        raise InvalidRequest(INVALID_VALUE, "This simulator does not hold transcription sessions.", "session.type")
    return Opening(dialect, dialect.session_model.model_validate(secret.session))


def new_talk(resource: Resource, opening: Opening, *, server_plays: bool = False) -> SimulatedTalk:
    """A talk as this resource holds them."""
    config = resource.config
    options = TalkOptions(
        speech_rate=SpeechRate(config.thinking_s, config.answer_speed),
        transcribes_after_answer=config.transcribes_after_answer,
        transcription_models=config.transcription_deployments if opening.dialect is GA else None,
        longest_s=config.longest_talk_s,
        server_plays=server_plays,
    )
    return SimulatedTalk(opening.dialect, opening.session, options, int(resource.clock.now() + config.longest_talk_s))
