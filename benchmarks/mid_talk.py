"""Azure resources are killed under talks with audio: each talk must go on, on the client's own socket.

    python -m benchmarks.mid_talk [--kills 200] [--talks 20] [--resources 4] [--how kill] [--seed 1]

Each talk speaks marked utterances in real time, hears the answers, and speaks again. A kill takes one resource from all
talks that are on it, at most three times a talk and minute. How:

    kill      its sockets are reset, and it refuses connections for 2 s
    cut       one talk alone is cut, at a random point of an answer, up to 300 ms after it (1,000 such: --kills 1000)
    hang      its sockets fall silent and answer no ping, and handshakes hang for 2 s; noticed in 5 s
    mute      its sockets fall silent at a point of an answer, and answer pings; noticed in 10 s
    refused   as kill, while every other resource but one refuses the agent's settings
    quota     as kill, while every other resource but one fails each answer for want of quota; with four resources
              (the default), since a fourth move within a minute may end a talk
    again     as kill, while the next resume is cut as soon as it is confirmed

At the end: no socket of a client's was closed, every utterance has exactly one answer, nobody heard a part of an answer
twice, no default persona spoke, the turns are stored once and in order, and no session is open at Azure any more. The
simulators' transcript and the marks in the audio say so, not the broker's counters. Exit code 1 otherwise.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.stage import AUDIO_DELTAS, Client, Stage, TalkLostError, open_client, proxy_of, stage
from tests.simulator.support import silence, speech
from token_broker.simulator import RunningSimulator
from token_broker.simulator.audio import marked, marks
from token_broker.simulator.records.transcript import SeenAnswer

NAMES = ("eastus2", "swedencentral", "westus3", "northeurope", "japaneast", "francecentral")
HOWS = ("kill", "cut", "hang", "mute", "refused", "quota", "again")
POINTS = (
    "speech_started",
    "speech_stopped",
    "committed",
    "response.created",
    "first_content",
    "sound",
    "last_sound",
    "last_content",
)
MUTE_POINTS = ("committed", "response.created", "first_content")
RESUME_S = {"hang": 12.0, "mute": 12.0}
"""How soon a talk must go on; 2 s where it is not said."""
DOWN_S = 2.0
ANSWER_S = 45.0
MOST_KILLS = {"quota": (1, 75.0), "again": (1, 75.0)}
"""Of one talk, in so many seconds. It moves up to three times for each of these, within about 10 s. Three in a minute
where it is not said: a fourth move within a minute is allowed to end it."""
SILENCE_S = 1.2

Fault = dict[str, Any]


@dataclass
class Heard:
    """What one client heard."""

    frames: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Marked frames of answers, by utterance and frame."""
    ended: Counter[str] = field(default_factory=Counter)
    """Responses by status."""
    paused_s: list[float] = field(default_factory=list)
    resuming: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    out_s: list[float] = field(default_factory=list)
    """From a kill to `broker.resumed`: the discovery included."""
    noticed_s: list[float] = field(default_factory=list)
    """From a kill to `broker.resuming`: the discovery alone."""
    killed_s: float | None = None
    _lost_s: float | None = None

    def note(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case name if name in AUDIO_DELTAS:
                pcm = base64.b64decode(event["delta"])
                self.frames.update((mark.utterance, mark.frame) for mark in marks(pcm))
            case "broker.resuming":
                self.resuming[event["reason"]] += 1
                self._lost_s = self._lost_s or time.monotonic()
            case "broker.resumed" if self._lost_s is not None:
                now_s = time.monotonic()
                self.paused_s.append(now_s - self._lost_s)
                if self.killed_s is not None:
                    self.out_s.append(now_s - self.killed_s)
                    self.noticed_s.append(self._lost_s - self.killed_s)
                self._lost_s = self.killed_s = None
            case "response.done":
                self.ended[event["response"]["status"]] += 1
            case "broker.error" | "error":
                error = event.get("error", event)
                self.errors[f"{error.get('code')}: {error.get('message')}"[:120]] += 1


@dataclass
class Talk:
    """One talk of the rehearsal, as its client sees it."""

    session_id: str = ""
    token: str = ""
    said: list[int] = field(default_factory=list)
    unanswered: list[int] = field(default_factory=list)
    heard: Heard = field(default_factory=Heard)
    closed: str | None = None
    killed: "deque[float]" = field(default_factory=deque)


class Rehearsal:
    """The talks, and what kills the resources under them."""

    def __init__(self, running: Stage, how: str, talks: int, seed: int) -> None:
        self.running = running
        self.how = how
        self.talks = [Talk() for _ in range(talks)]
        self.done = asyncio.Event()
        self.kills = 0
        self._numbers = itertools.count(1)
        self._dice = random.Random(seed)
        self._voices = [speech(seconds, seed) for seed, seconds in enumerate((0.8, 1.2, 1.6, 2.4), 1)]

    async def talk_on(self, talk: Talk) -> None:
        """Speaks, hears the answer, and speaks again, until all is done."""
        plan = await self.running.plan()
        talk.session_id, talk.token = plan["session_id"], plan["session_token"]
        proxy = proxy_of(plan)
        async with open_client(proxy["url"], protocols=proxy["protocols"], on_event=talk.heard.note) as client:
            try:
                await client.hear("broker.ready")
                while not self.done.is_set():
                    await self.exchange(talk, client)
            except TalkLostError as lost:
                talk.closed = str(lost)

    async def exchange(self, talk: Talk, client: Client) -> None:
        number = next(self._numbers)
        talk.said.append(number)
        await client.say(marked(self._dice.choice(self._voices), number) + silence(SILENCE_S))
        try:
            async with asyncio.timeout(ANSWER_S):
                # The end of an answer that was cut is told as cancelled; the rest of it follows.
                while (await client.hear("response.done"))["response"]["status"] != "completed":
                    pass
        except TimeoutError:
            talk.unanswered.append(number)
        await asyncio.sleep(self._dice.uniform(0.1, 0.6))

    # --- kills

    async def kill_on(self, kills: int) -> None:
        """Kills, as fast as the talks may be killed and while one is left, and lets the last one heal."""
        while self.kills < kills and any(talk.closed is None for talk in self.talks):
            await asyncio.sleep(self._dice.uniform(0.2, 0.8))
            victim = self._dice.choice(list(self.running.azure))
            if self.how == "cut":
                await self.cut_one()
                continue
            on_it = self.talks_by_resource()[victim.name]
            if not on_it or not all(self.may_be_killed(talk) for talk in on_it):
                continue
            self.kills += 1
            for talk in on_it:
                talk.killed.append(time.monotonic())
                # A mute resource is not known to be one before the next answer.
                talk.heard.killed_s = None if self.how == "mute" else time.monotonic()
            await self.kill(victim)
        await asyncio.sleep(ANSWER_S / 3)

    async def kill(self, victim: RunningSimulator) -> None:
        others = [each for each in self.running.azure if each is not victim]
        self._dice.shuffle(others)
        with contextlib.ExitStack() as faults:
            for other in others[1:]:
                match self.how:
                    case "refused":
                        faults.enter_context(other.fault("refuse_update"))
                    case "quota":
                        faults.enter_context(other.fault("failed_answers"))
            if self.how == "again":
                faults.enter_context(others[0].fault("cut", at="session.updated", times=1))
            if self.how == "hang":
                faults.enter_context(victim.fault("hang"))
                faults.enter_context(victim.fault("silence", pongs=False))
            elif self.how == "mute":
                faults.enter_context(victim.fault("silence", at=self._dice.choice(MUTE_POINTS)))
            else:
                faults.enter_context(victim.fault("refuse"))
                faults.enter_context(victim.fault("cut"))
            await asyncio.sleep(DOWN_S)
            if self.how in ("refused", "quota"):
                # Until the talks have settled at the resource that is well.
                await asyncio.sleep(DOWN_S)

    async def cut_one(self) -> None:
        """Cuts the first talk that passes a point of an answer, at a resource whose talks may all be killed."""
        transcript = self.running.azure.transcript
        there = self.talks_by_resource()
        victims = [
            each for each in self.running.azure if there[each.name] and all(map(self.may_be_killed, there[each.name]))
        ]
        if not victims:
            return
        before = {talk.talk for talk in transcript.talks if talk.ended_by == "fault"}
        point, delay_s = self._dice.choice(POINTS), self._dice.uniform(0, 0.3)
        ms, how = self._dice.randrange(50, 1500), self._dice.choice(["reset", "eof"])
        with self._dice.choice(victims).fault("cut", at=point, seconds=delay_s, ms=ms, how=how, times=1):
            for _ in range(200):
                cut = {talk.talk for talk in transcript.talks if talk.ended_by == "fault"} - before
                if cut:
                    break
                await asyncio.sleep(0.02)
            else:
                return
        self.kills += 1
        keys = {utterance.key for utterance in transcript.utterances if utterance.talk in cut}
        for talk in self.talks:
            if not keys.isdisjoint(f"#{number}" for number in talk.said):
                talk.killed.append(time.monotonic())

    def talks_by_resource(self) -> dict[str, list[Talk]]:
        """The talks whose last utterances were said at a session that is open."""
        transcript = self.running.azure.transcript
        resource_of = {each.talk: each.resource for each in transcript.open_talks}
        said_at: dict[str, set[str]] = defaultdict(set)
        for utterance in transcript.utterances[-20 * len(self.talks) :]:
            if utterance.talk in resource_of:
                said_at[utterance.key].add(resource_of[utterance.talk])
        return {
            each.name: [
                talk for talk in self.talks if any(each.name in said_at[f"#{number}"] for number in talk.said[-2:])
            ]
            for each in self.running.azure
        }

    def may_be_killed(self, talk: Talk) -> bool:
        most, within_s = MOST_KILLS.get(self.how, (3, 60.0))
        while talk.killed and talk.killed[0] < time.monotonic() - within_s:
            talk.killed.popleft()
        return len(talk.killed) < most


# --- the judgement


def judged(rehearsal: Rehearsal) -> Iterator[str]:
    """What is wrong, by the transcript and by what the clients heard."""
    by_key: dict[str, list[SeenAnswer]] = defaultdict(list)
    for answer in rehearsal.running.azure.transcript.answers:
        if answer.answers is not None:
            by_key[answer.answers].append(answer)
        if answer.was_heard and answer.default_persona:
            yield f"the default persona answered {answer.answers} at {answer.resource}"
    for talk in rehearsal.talks:
        if talk.closed is not None:
            yield f"a talk was closed: {talk.closed}"
        for number in talk.unanswered:
            yield f"#{number} has no answer after {ANSWER_S:.0f} s"
        for number in talk.said:
            answers = by_key[f"#{number}"]
            whole = [each for each in answers if each.status == "completed" and each.follows == "utterance"]
            ended = [each for each in answers if each.status == "completed"]
            if len(whole) > 1:
                yield f"#{number} was answered {len(whole)} times: {[each.resource for each in whole]}"
            elif not ended and number not in talk.unanswered[-1:] and number != talk.said[-1]:
                yield f"#{number} has no complete answer in the transcript"
        twice = {number for (number, _), count in talk.heard.frames.items() if count > 1}
        for number in sorted(twice):
            yield f"a part of the answer to #{number} was heard twice"
        limit_s = RESUME_S.get(rehearsal.how, 2.0)
        for paused_s in talk.heard.paused_s:
            if paused_s > limit_s:
                yield f"a talk paused for {paused_s:.1f} s"
        for out_s, noticed_s in zip(talk.heard.out_s, talk.heard.noticed_s, strict=True):
            if out_s > limit_s:
                yield f"a talk went on {out_s:.1f} s after the kill, which was noticed after {noticed_s:.1f} s"


async def stored_wrongly(rehearsal: Rehearsal) -> list[str]:
    """Turns that are missing, twice, or out of order."""
    wrong: list[str] = []
    for talk in rehearsal.talks:
        kept: list[str] = []
        after: str | None = None
        while True:
            answer = await rehearsal.running.client.get(
                f"{rehearsal.running.url}/api/v1/memory/sessions/{talk.session_id}/turns",
                params={"limit": "100"} | ({"after": after} if after else {}),
                headers={"Authorization": f"Bearer {talk.token}"},
            )
            page = answer.raise_for_status().json()
            kept += [turn["content"] for turn in page["turns"] if turn["role"] == "user"]
            after = page["next"]
            if after is None:
                break
        numbers = [int(found[1]) for content in kept for found in re.finditer(r"#(\d+)", content)]
        missing = [number for number in talk.said[:-1] if number not in numbers]
        twice = [number for number, count in Counter(numbers).items() if count > 1]
        wrong += [f"the turn of #{number} is not stored" for number in missing]
        wrong += [f"the turn of #{number} is stored twice" for number in twice]
        if numbers != sorted(numbers):
            wrong.append(f"turns are out of order: {numbers}")
    return wrong


async def rehearse(directory: Path, given: argparse.Namespace) -> bool:
    async with stage(directory, NAMES[: given.resources]) as running:
        rehearsal = Rehearsal(running, given.how, given.talks, given.seed)
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for talk in rehearsal.talks:
                group.create_task(rehearsal.talk_on(talk))
            await asyncio.sleep(5)
            await rehearsal.kill_on(given.kills)
            rehearsal.done.set()
        took_s = time.monotonic() - began_s
        for _ in range(100):
            if not running.azure.transcript.open_talks:
                break
            await asyncio.sleep(0.1)
        wrong = [*judged(rehearsal), *await stored_wrongly(rehearsal)]
        if left := running.azure.transcript.open_talks:
            wrong.append(f"{len(left)} sessions are still open at Azure")
        report(rehearsal, took_s, wrong)
    return not wrong


def report(rehearsal: Rehearsal, took_s: float, wrong: list[str]) -> None:
    heard = [talk.heard for talk in rehearsal.talks]
    paused_s = sorted(pause for each in heard for pause in each.paused_s) or [0.0]
    out_s = sorted(out for each in heard for out in each.out_s) or [0.0]
    said = sum(len(talk.said) for talk in rehearsal.talks)
    resuming = sum((each.resuming for each in heard), Counter[str]())
    print(f"{rehearsal.how}: {rehearsal.kills} kills under {len(rehearsal.talks)} talks in {took_s:.0f} s")
    print(f"utterances  {said}; answers {dict(sum((each.ended for each in heard), Counter[str]()))}")
    print(f"resumes     {dict(resuming)}, pause {paused_s[len(paused_s) // 2]:.2f} s in the middle, ", end="")
    print(f"{paused_s[-1]:.2f} s at worst; from the kill {out_s[len(out_s) // 2]:.2f} and {out_s[-1]:.2f} s")
    print(f"by resource {dict(Counter(each.resource for each in rehearsal.running.azure.transcript.answers))}")
    for error, count in sum((each.errors for each in heard), Counter[str]()).most_common(5):
        print(f"  told {count} times: {error}")
    kinds = Counter(re.sub(r"[#\d.]+", "…", line) for line in wrong)
    for kind, count in kinds.most_common():
        example = next(line for line in wrong if re.sub(r"[#\d.]+", "…", line) == kind)
        print(f"  WRONG {count} times: {example}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--talks", type=int, default=20)
    parser.add_argument("--resources", type=int, choices=range(2, len(NAMES) + 1), default=4)
    parser.add_argument("--how", choices=HOWS, default="kill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="directory for the broker's log and store")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mid-talk-") as name:
        well = asyncio.run(rehearse(given.keep or Path(name), given))
    sys.exit(not well)


if __name__ == "__main__":
    main()
