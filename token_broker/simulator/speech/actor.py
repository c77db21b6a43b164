"""Plays the agents of the demo: says who they are, as their instructions have it, and answers with words of its own.

Nobody thinks here, and speech is not recognised. What is typed is answered with its words. A few wishes are understood:
who somebody is, a tool by the words of its name ("show me a card" calls `show_card`), and another agent by its name.
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from token_broker.simulator.audio import BYTES_PER_MS, duration_ms
from token_broker.simulator.realtime.conversation import FunctionCall, FunctionOutput, Item, McpCall, Message
from token_broker.simulator.realtime.response_plan import PlannedCall, Tools, Words, follows, output_message
from token_broker.simulator.speech.espeak import Synthesizer, Voice

__all__ = ["Actor", "Heard", "Role"]

_LONGEST_QUOTE = 200
# So much of what a microphone sent is played back.
_LONGEST_ECHO_MS = 4_000
_YOU_ARE = re.compile(r"\bYou are (?P<what>(?P<name>[A-Z][\w-]*),[^.!?]*)[.!?](?:\s+You (?P<does>[^.!?:;]+))?")
_ASIDE = re.compile(r"\s*\([^)]*\)")
# Who needs more words than this to say who they are need not say what they do.
_SHORT = 60
_WHO = re.compile(r"\b(?:who are you|your name|introduce yourself)\b", re.IGNORECASE)
_HELLO = re.compile(r"\s*(?:hello|hi|hey|good (?:morning|afternoon|evening))\b[\s,.!]*\w*[\s.!]*", re.IGNORECASE)
_SAY = re.compile(r"\bSay (?:this|to the user exactly this)\b[^:]*:\s*(?P<words>.+)", re.DOTALL)
# The rest of the names of these services, and of Azure's voices that most use.
_DEEP = re.compile(r"\b(?:ash|ballad|cedar|echo|verse)\b|(?:andrew|brian|davis|guy|ryan|steffan|tony)", re.IGNORECASE)
_WISHES = frozenset({"talk", "speak", "ask", "hand", "switch", "get", "fetch"})
_DEEP_VOICE, _BRIGHT_VOICE = "en-us+m3", "en-us+f3"


@dataclass(frozen=True, slots=True)
class Role:
    """Who is played: by a session's instructions, in its voice."""

    instructions: str = ""
    voice: JsonValue = None

    @property
    def name(self) -> str:
        """The name that the instructions give; empty where they give none."""
        found = _YOU_ARE.search(self.instructions)
        return found["name"] if found else ""

    @property
    def introduction(self) -> str:
        """The first of the instructions, in the first person."""
        found = _YOU_ARE.search(self.instructions)
        if found is None:
            return "I am an agent of this demo."
        does = f" I {_ASIDE.sub('', found['does'])}." if found["does"] and len(found["what"]) < _SHORT else ""
        return f"I am {found['what']}.{does}"

    @property
    def sound(self) -> Voice:
        """Deep or bright as the session's voice, and not alike for two names."""
        name = _DEEP_VOICE if _DEEP.search(json.dumps(self.voice)) else _BRIGHT_VOICE
        return Voice(name, 40 + zlib.crc32(self.name.encode()) % 25)


@dataclass(frozen=True, slots=True)
class Heard:
    """What is answered: the items so far, the tools that may be called, and what this answer was told to say."""

    items: Sequence[Item]
    tools: Tools
    told: str = ""


class Actor:
    """Plays whom it is told to, in one voice or without any."""

    def __init__(self, speech: Synthesizer | None = None) -> None:
        self._speech = speech

    def answer(self, heard: Heard, role: Role, *, speaks: bool) -> Words | PlannedCall:
        """What comes next; a voice for it is being made where it `speaks`."""
        item = follows(heard.items)
        if isinstance(item, Message) and item.role == "user" and (call := wished_call(item.typed, heard.tools, role)):
            return call
        text = self.words(heard, role)
        echo = item.pcm[: _LONGEST_ECHO_MS * BYTES_PER_MS] if isinstance(item, Message) and speaks else b""
        if self._speech is None or not speaks:
            return output_message(text, echo, speaks=speaks)
        return Words(text, echo, self._speech.say(text, role.sound))

    def words(self, heard: Heard, role: Role) -> str:
        """What is said."""
        turns = sum(isinstance(each, Message) and each.role == "user" for each in heard.items)
        match follows(heard.items):
            case FunctionOutput() as item:
                return _after_tool(item, heard.items, role)
            case McpCall() as item:
                return f"The tool gave: {_quoted(item.output or 'nothing')}"
            case Message(role="assistant") as item:
                said = " ".join(part.text or "" for part in item.parts).split()
                return f"As I said: {' '.join(said[-8:])}. And so we go on."
            case Message(typed="") as item:
                seconds = f"{duration_ms(item.pcm) / 1000:.1f} seconds"
                if turns > 1:
                    return f"I heard you for {seconds}:"
                return f"{role.introduction} In this demo nobody understands speech. I heard you for {seconds}:"
            case Message() as item:
                return _to_text(item.typed, role, is_first=turns <= 1)
        say = _SAY.search(heard.told)
        return _quoted(say["words"]) if say else f"Hello. {role.introduction} What shall we talk about?"


def wished_call(text: str, tools: Tools, role: Role) -> PlannedCall | None:
    """The call of the first tool whose name is in the text, word for word, or of `handoff` to whom it names."""
    words = set(re.findall(r"\w+", text.lower()))
    for tool in tools.functions:
        name = str(tool.get("name", ""))
        if name == "handoff" and words & _WISHES:
            agents = tool["parameters"]["properties"]["agent_id"].get("enum", [])
            if wished := next((agent for agent in agents if agent in words and agent != role.name.lower()), None):
                return tools.call(name, json.dumps({"agent_id": wished}))
        elif words.issuperset(name.lower().split("_")):
            fields = tool.get("parameters", {}).get("properties", {})
            known = {"title": role.name or "Agent", "text": role.introduction}
            given = {field: value for field, value in known.items() if field in fields}
            return tools.call(name, json.dumps(given) if given else None)
    return None


def _to_text(text: str, role: Role, *, is_first: bool) -> str:
    if _WHO.search(text) or _HELLO.fullmatch(text):
        return f"Hello. {role.introduction}"
    if not is_first:
        return f"You wrote: {_quoted(text)}"
    return (
        f"{role.introduction} You wrote: {_quoted(text)} This is a demo, so no model thinks about it. "
        "Ask me who I am, or to show you a card."
    )


def _after_tool(given: FunctionOutput, items: Sequence[Item], role: Role) -> str:
    called = next((each for each in items if isinstance(each, FunctionCall) and each.call_id == given.call_id), None)
    if called and called.name == "handoff":
        return f"{role.introduction} I take over from here."
    name = called.name.replace("_", " ") if called else "the tool"
    if "error" in given.output[:_LONGEST_QUOTE].lower():
        return f"That did not work. I asked to {name}, and was told: {_quoted(given.output)}"
    return f"Done: {name}. You see it in the page."


def _quoted(text: str) -> str:
    """So much of it as is worth saying, and an end like a sentence's."""
    short = text.strip()[:_LONGEST_QUOTE]
    return short if short[-1:] in ".!?" else f"{short}{'…' if len(text.strip()) > _LONGEST_QUOTE else '.'}"
