"""What `token-broker demo` adds to the broker: agents that show a card in the page, and who plays them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from token_broker.sessions.agents import BUILT_IN, load_agents

if TYPE_CHECKING:
    from token_broker.simulator.speech.actor import Actor

__all__ = ["demo_agents", "open_actor"]

_CARD = """
[[agents.{agent_id}.tools]]
type = "function"
name = "show_card"
description = "Shows a card with a title and a text in the page."
parameters = {{ type = "object", properties = {{ title = {{ type = "string" }}, text = {{ type = "string" }} }} }}
run = "client"
"""


def demo_agents() -> str:
    """The built-in agents as a file in TOML, each with a tool that the demo's page runs."""
    cards = [_CARD.format(agent_id=agent_id) for agent_id in load_agents()]
    return BUILT_IN.read_text(encoding="utf-8") + "".join(cards)


@contextlib.contextmanager
def open_actor(warn: Callable[[str], None]) -> Iterator["Actor | None"]:
    """Who plays the agents until the block ends. Where there is no voice, it is told, and answers are a tone."""
    try:
        from token_broker.simulator.speech.actor import Actor
        from token_broker.simulator.speech.espeak import Espeak, VoiceUnavailableError
    except ImportError:  # without the simulator, which the command tells by itself
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            espeak = stack.enter_context(Espeak())
        except VoiceUnavailableError as error:
            warn(f"The demo has no voice, so answers are a tone: {error}. scripts/run installs it.")
            espeak = None
        yield Actor(espeak)
