"""The simulated agents of the demo: what they say, the tools that they call, and their voice."""

import base64
import importlib.util
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.simulator.scene import Scene, by_dialect, user_text
from tests.simulator.support import silence, speech
from tests.support.agents import write_agents
from token_broker.cli.demo import demo_agents
from token_broker.sessions.agents import load_agents
from token_broker.simulator.audio import duration_ms, level
from token_broker.simulator.realtime.dialects import GA, Dialect
from token_broker.simulator.speech import espeak
from token_broker.simulator.speech.actor import Actor, Role
from token_broker.simulator.speech.espeak import Espeak, Voice, VoiceUnavailableError

ELENA = "I am Elena, a business analyst with twenty years among people who knew what they wanted and could not say it."
DEMO = "This is a demo, so no model thinks about it. Ask me who I am, or to show you a card."
CARD = {
    "type": "function", "name": "show_card",
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}, "text": {"type": "string"}}},
}  # fmt: skip
HANDOFF = {
    "type": "function", "name": "handoff",
    "parameters": {"type": "object", "properties": {"agent_id": {"type": "string", "enum": ["elena", "sage"]}}},
}  # fmt: skip
SAID = b"\x00\x10\x00\xf0" * 12_000  # a second


class FakeSpeech:
    """Says everything in the same second, when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Voice]] = []
        self.answer: Future[bytes] = Future()

    def say(self, text: str, voice: Voice) -> "Future[bytes]":
        self.asked.append((text, voice))
        return self.answer


def acted(dialect: Dialect = GA, speech: FakeSpeech | None = None) -> Scene:
    """A talk with Elena, who has a card to show and colleagues."""
    scene = Scene(dialect, actor=Actor(speech))
    instructions = str(load_agents()["elena"].instructions)
    scene.update(instructions=instructions, tools=[CARD, HANDOFF])
    return scene


def answer(scene: Scene) -> str:
    """The words of the newest answer."""
    return str(scene.all("response.output_audio_transcript.done")[-1]["transcript"])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("Who are you?", f"Hello. {ELENA}"),
        ("hi Elena!", f"Hello. {ELENA}"),
        ("The sky is blue", f"{ELENA} You wrote: The sky is blue. {DEMO}"),
        ("Is it?", f"{ELENA} You wrote: Is it? {DEMO}"),
    ],
)  # fmt: skip
def test_typed_text_is_answered(typed: str, said: str) -> None:
    scene = acted()
    scene.ask(typed)
    assert answer(scene) == said


@by_dialect
def test_agent_introduces_itself_first(dialect: Dialect) -> None:
    scene = acted(dialect)
    scene.send("response.create")
    scene.wait(30)
    assert answer(scene) == f"Hello. {ELENA} What shall we talk about?"


def test_later_turns_are_short() -> None:
    scene = acted()
    scene.ask("One")
    scene.ask("x" * 300)
    assert answer(scene) == f"You wrote: {'x' * 200}…"


def test_every_built_in_agent_has_a_name() -> None:
    for agent in load_agents().values():
        role = Role(str(agent.instructions))
        assert role.name == agent.name
        assert role.introduction.startswith(f"I am {agent.name}, a")
    sage = Role(str(load_agents()["sage"].instructions))
    assert sage.introduction == (
        "I am Sage, a storyteller. I take what people live through at work and find the story in it."
    )
    assert Role("Speak Danish.").introduction == "I am an agent of this demo."


def test_wishes_call_tools() -> None:
    scene = acted()
    scene.ask("Please show me a card")
    call = scene.only("response.function_call_arguments.done")
    assert (call["name"], call["arguments"]) == ("show_card", f'{{"title": "Elena", "text": "{ELENA}"}}')
    scene.send(
        "conversation.item.create", item={"type": "function_call_output", "call_id": call["call_id"], "output": "{}"}
    )
    scene.send("response.create")
    scene.wait(20)
    assert answer(scene) == "Done: show card. You see it in the page."
    scene.ask("May I talk to Sage?")
    handed = scene.all("response.function_call_arguments.done")[-1]
    assert (handed["name"], handed["arguments"]) == ("handoff", '{"agent_id": "sage"}')
    scene.ask("Sage is a herb")
    assert answer(scene) == "You wrote: Sage is a herb."


def test_told_words_are_said() -> None:
    scene = acted()
    told = "You are Elena. The conversation begins. Say this, and then let the user speak: Welcome to Contoso"
    scene.send("response.create", response={"instructions": told})
    scene.wait(20)
    assert answer(scene) == "Welcome to Contoso."


def test_cut_answer_is_gone_on_with() -> None:
    scene = acted()
    cut = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It was late, and"}]}
    scene.send("conversation.item.create", item=user_text("Tell me"))
    scene.send("conversation.item.create", item=cut)
    scene.send("response.create")
    scene.wait(20)
    assert answer(scene) == "As I said: It was late, and. And so we go on."


def test_speech_is_played_back_after_the_words() -> None:
    fake = FakeSpeech()
    fake.answer.set_result(SAID)
    scene = acted(speech=fake)
    scene.say(speech(0.9) + silence(0.9))
    scene.wait(20)
    assert answer(scene).startswith(f"{ELENA} In this demo nobody understands speech. I heard you for ")
    deltas = scene.all("response.output_audio.delta")
    sound = b"".join(base64.b64decode(event["delta"]) for event in deltas)
    assert sound.startswith(SAID)
    assert 900 <= duration_ms(sound[len(SAID) :]) <= 2000
    ((text, voice),) = fake.asked
    assert text == answer(scene)
    assert voice.name == "en-us+f3"


@pytest.mark.parametrize("how", ["late", "never", "empty"])
def test_voice_is_waited_for_with_a_bound(how: str) -> None:
    fake = FakeSpeech()
    scene = acted(speech=fake)
    scene.send("conversation.item.create", item=user_text("Hello"))
    scene.send("response.create")
    if how == "empty":
        fake.answer.set_result(b"")
    scene.wait(2)
    assert (scene.all("response.output_audio.delta") != []) is (how == "empty")
    if how == "late":
        fake.answer.set_result(SAID)
    scene.wait(20)
    sound = b"".join(base64.b64decode(event["delta"]) for event in scene.all("response.output_audio.delta"))
    assert (sound == SAID) is (how == "late")
    assert level(sound) > 0
    assert scene.only("response.done")["response"]["status"] == "completed"


def test_written_answers_need_no_voice() -> None:
    fake = FakeSpeech()
    scene = acted(speech=fake)
    scene.update(output_modalities=["text"])
    scene.ask("Hello")
    assert scene.only("response.output_text.done")["text"] == f"Hello. {ELENA}"
    assert fake.asked == []


def test_markers_and_scripts_still_count() -> None:
    scene = acted()
    scene.ask("[call show_card {}] who are you")
    assert scene.only("response.function_call_arguments.done")["arguments"] == "{}"
    scene.script({"say": "As written"})
    scene.ask("who are you")
    assert answer(scene) == "As written"


def test_demo_agents_have_a_card(tmp_path: Path) -> None:
    file = write_agents(tmp_path, demo_agents())
    agents = load_agents(file)
    assert list(agents) == list(load_agents())
    names = {tool.name for agent in agents.values() for tool in agent.tools if tool.type == "function"}
    assert names == {"show_card"}


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(VoiceUnavailableError, match="espeakng-loader is not installed"):
        Espeak()


needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None,
    reason="espeakng-loader is not installed; requirements-dev.lock has it",
)


@needs_espeak
def test_espeak_says_different_things(monkeypatch: pytest.MonkeyPatch) -> None:
    with Espeak() as said:
        short = said.say("Yes.", Voice()).result(60)
        long = said.say("I would rather say a date than an adjective.", Voice()).result(60)
        assert 200 < duration_ms(short) < duration_ms(long) < 6000
        assert 0.02 < level(long) < 0.3
        assert said.say("Yes.", Voice()).result(60) is short
        assert said.say("Yes.", Voice("en-us+m3")).result(60) != short
        assert said.say("Yes.", Voice("nobody")).result(60) == b""
        assert level(said.say("", Voice()).result(60)) == 0
        assert said.say("\0\x1b[31m", Voice()).result(60) != short
        assert duration_ms(said.say("word " * 5000, Voice()).result(60)) <= 60_000
        monkeypatch.setattr(espeak, "_MOST_WAITING", 0)
        assert said.say("Too many ask.", Voice()).result(0) == b""


def test_production_never_has_the_voice() -> None:
    root = Path(__file__).parents[2]
    having = {lock.name for lock in root.glob("requirements*.lock") if "espeak" in lock.read_text()}
    assert having == {"requirements-demo.lock", "requirements-dev.lock"}
