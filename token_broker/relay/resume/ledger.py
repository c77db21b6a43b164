"""What is open in a talk: utterances without an answer, answers under way, events that Azure has not confirmed. Pure.

Feed it what the client sends and what Azure sends. `cut` says, when a session is lost, what ends for the client, and
what the next session is told: every utterance gets one answer, and nothing that was said is repeated.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from token_broker.relay.azure.stated_faults import LIMIT_CODES, stated_fault
from token_broker.relay.dialects.broker_events import SAY_ID
from token_broker.relay.resume.client_changes import ClientChanges
from token_broker.relay.resume.held_audio import HeldAudio
from token_broker.relay.resume.history import Item, TalkHistory, text_of
from token_broker.relay.resume.open_answers import AwaitedEvent, OpenAnswer
from token_broker.relay.resume.session_facts import PLAIN_CHARS_A_MS, SessionFacts
from token_broker.relay.resume.steps import Ask, Handover, Listen, Resend, Say, Speech, Step

__all__ = ["ASK_ID", "LEDGER_EVENTS", "Due", "TalkLedger"]

Event = Mapping[str, Any]
Due = Literal["nothing", "answer", "content", "end"]
"""What Azure owes: nothing, an answer or its first content, more of it, its end after the last content."""

_SPEECH_STARTED = "input_audio_buffer.speech_started"
_SPEECH_STOPPED = "input_audio_buffer.speech_stopped"
_COMMITTED = "input_audio_buffer.committed"
_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
_NOT_TRANSCRIBED = "conversation.item.input_audio_transcription.failed"
_SOUND_DONE = frozenset({"response.audio.done", "response.output_audio.done"})
_ITEM_CREATED = frozenset({"conversation.item.created", "conversation.item.added", "conversation.item.done"})
_TRANSCRIPT_DELTAS = frozenset({"response.audio_transcript.delta", "response.output_audio_transcript.delta"})
_TRANSCRIPT_DONE = frozenset({"response.audio_transcript.done", "response.output_audio_transcript.done"})
_TEXT_DELTAS = frozenset({"response.text.delta", "response.output_text.delta"})
_TEXT_DONE = frozenset({"response.text.done", "response.output_text.done"})
_ARGUMENTS_DONE = "response.function_call_arguments.done"

LEDGER_EVENTS = frozenset({_SPEECH_STARTED, _SPEECH_STOPPED, "input_audio_buffer.cleared", *_SOUND_DONE})
"""Azure's events that have to be parsed for the ledger, beside those that are parsed for turns and clients."""

ASK_ID = "broker_ask"
"""The `event_id` of the `response.create` by which a new session is asked for an answer that was lost."""

_IDLE_S = 1.0  # of audio that is kept while nobody speaks
_TOLD_S = 1.0
_TRIM_S = 2.0
_FAILED_JUST_NOW_S = 2.0
_FADES_MS = 300  # after the end of an utterance, as Azure tells it: words fade out
_UNCONFIRMED_BYTES = 2_097_152
_UNCONFIRMED_AT_MOST = 512
_ANSWERS_KEPT = 16


class TalkLedger:
    """One talk's. `audio` holds what the client appended."""

    def __init__(self, audio: HeldAudio) -> None:
        self.audio = audio
        self._changes = ClientChanges()
        self.fault = ""
        """What Azure last said of a failed answer: its code."""
        self.completed = 0
        self.was_asked = False
        """Whether this session was asked for an answer."""
        self.acting: Callable[[], bool] = lambda: False
        """Whether a tool or an approval is waited for, as somebody else knows it."""
        self.notes: Callable[[], Sequence[Item]] = tuple
        """Items that a new session is told first, and that are no part of the talk."""
        self._refused_s: float | None = None
        self._last_sounded = True
        self._last_spoke = False
        self._last_owed_sound = True
        self.facts = SessionFacts()
        self._history = TalkHistory()
        self._answers: deque[OpenAnswer] = deque(maxlen=_ANSWERS_KEPT)
        self._current: OpenAnswer | None = None
        self._failed: tuple[OpenAnswer, float] | None = None
        self._unconfirmed: deque[AwaitedEvent] = deque()
        self._unconfirmed_bytes = 0
        # Where the utterance under way, and the uncommitted rest, begin.
        self._offset = 0.0  # position of the session's first millisecond
        self._buffer_start = 0
        self._after_speech = False  # the uncommitted audio follows an utterance
        self._speaking: Item | None = None
        self._stopped_at: int | None = None
        self._tools: set[str] = set()  # Azure's own calls under way
        self._unheard: str | None = None  # an utterance under way, which the new session has not noticed yet
        self._told_at = 0  # what was sent when Azure last told something
        self._marked_s = 0.0
        self._mark = self._last_mark = 0  # what was sent two to four seconds ago, and up to two

    @property
    def settings(self) -> dict[str, Any]:
        """What the client has changed of the session, in the shape of its dialect."""
        return self._changes.settings

    # --- what a clock asks

    @property
    def due(self) -> Due:
        """What Azure owes now; nothing while the user speaks, or a tool runs."""
        if self._tools or self.acting() or self.holds or (self._speaking is not None and self._stopped_at is None):
            return "nothing"
        for answer in self._answers:
            if answer.stopped and answer.response is None:
                continue
            if answer.response is None or not answer.began:
                return "answer"
            return "end" if answer.is_whole else "content"
        return "nothing"

    @property
    def holds(self) -> bool:
        """Whether push to talk is held: audio is there that only the client commits."""
        return not self.facts.detects and self.audio.end > self._buffer_start

    @property
    def holds_speech(self) -> bool:
        """The same, and the audio may be speech: some clients send silence all the time."""
        return self.holds and self.audio.may_have_speech(self._buffer_start, self.audio.end)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is open: a pause, in which the talk can move without anybody's notice."""
        return not (
            self._answers
            or self._unconfirmed
            or self._tools
            or self._speaking is not None
            or self.acting()
            or self.holds
            or (self.facts.transcribes and any(item.speech and not item.transcribed for item in self._history))
            or self._history.open_calls()
        )

    def trim(self, now_s: float) -> None:
        """Forgets audio that no utterance needs. Call it every second or so."""
        needed = [item.speech[0] for item in self._history if item.speech is not None]
        needed += [each.speech[0] for each in self._unconfirmed if each.speech is not None]
        if self._speaking is not None or self._unheard is not None or not self.facts.detects:
            needed.append(self._buffer_start)
        if now_s - self._marked_s >= _TRIM_S:
            self._marked_s = now_s
            self._mark, self._last_mark = self._last_mark, self.audio.end
            # What was sent two seconds ago or earlier is no speech, by Azure's word; or it is quiet, and Azure silent.
            needed.append(int(self._mark - _IDLE_S * 1000 * self.facts.heard_chars_a_ms))
            self.audio.drop_before(min(needed), quiet_from=self._told_at)

    def may_have_spoken(self) -> bool:
        """Whether the user may have said something of which Azure should have told by now."""
        return self.facts.detects and self.audio.may_have_speech(max(self._told_at, self._buffer_start), self._mark)

    # --- what the client sends

    def client_sent(self, kind: str, text: str, event: Event) -> None:
        """Takes an event that went to Azure, an append of audio excepted."""
        if kind == "conversation.item.create":
            item = event.get("item")
            named = item if isinstance(item, dict) else {}
            self._await(AwaitedEvent(text, text_of(named.get("id"))))
        elif kind == "input_audio_buffer.commit":
            self._await(AwaitedEvent(text, speech=(self._buffer_start, self.audio.end)))
            self._begin_buffer(self.audio.end)
        elif kind == "input_audio_buffer.clear":
            self._begin_buffer(self.audio.end)
            self._speaking = self._unheard = None
        elif kind == "response.create":
            response = event.get("response")
            outside = isinstance(response, dict) and (
                response.get("conversation") == "none" or response.get("commit") is False
            )
            once = text_of(event.get("event_id")).startswith(SAY_ID)
            self._expect(OpenAnswer(dict(event), outside=outside, stopped=once))
            self._failed = None
        elif kind == "response.cancel":
            response_id = text_of(event.get("response_id"))
            for answer in self._answers:
                if not answer.outside and (not response_id or answer.response_id == response_id):
                    answer.stopped = True
        elif kind == "conversation.item.truncate":
            self.truncate(event)
        elif kind == "conversation.item.delete":
            self._history.remove(event.get("item_id"))
        elif kind == "session.update" and isinstance(session := event.get("session"), dict):
            self._changes.sent(text_of(event.get("event_id")), session)

    # --- what Azure sends

    def sounded(self, chars: int) -> None:
        """Notes a delta of audio, `chars` long in base64. It is the hot path: no event is parsed for it."""
        if (answer := self._current) is not None:
            answer.heard = answer.began = answer.sounded = True
            answer.sound_chars += chars

    def told(self) -> None:
        """Azure has sent an event: of speech a second ago and earlier it would have told."""
        self._told_at = max(self._told_at, int(self.audio.end - _TOLD_S * 1000 * self.facts.heard_chars_a_ms))

    def azure_sent(self, event: Event, now_s: float) -> None:
        """Takes a parsed event of Azure's."""
        self.told()
        kind = event.get("type")
        item_id = event.get("item_id")
        if kind in _TRANSCRIPT_DELTAS or kind in _TEXT_DELTAS:
            self._began(event, heard=kind in _TEXT_DELTAS)
            self._history.add_text(item_id, event.get("content_index"), text_of(event.get("delta")), whole=False)
        elif kind in _TRANSCRIPT_DONE or kind in _TEXT_DONE:
            said = text_of(event.get("transcript") or event.get("text"))
            self._history.add_text(item_id, event.get("content_index"), said, whole=True)
            if kind in _TEXT_DONE:
                self._finish(item_id)
        elif kind in _SOUND_DONE:
            self._finish(item_id)
        elif kind == "response.output_item.added":
            self._add_output(event)
        elif kind in {"response.output_item.done", _ARGUMENTS_DONE}:
            self._end_output(event)
        elif kind == "response.created":
            self._begin_answer(event.get("response"))
        elif kind == "response.done":
            self._end_answer(event.get("response"), now_s)
        elif kind == _SPEECH_STARTED:
            self._begin_speech(text_of(item_id), event.get("audio_start_ms"))
        elif kind == _SPEECH_STOPPED:
            self._stopped_at = self._position(event.get("audio_end_ms"), default=self.audio.end)
        elif kind == _COMMITTED:
            self._commit(text_of(item_id))
        elif kind in {_TRANSCRIBED, _NOT_TRANSCRIBED}:
            if transcript := text_of(event.get("transcript")):
                self._history.add_text(item_id, event.get("content_index"), transcript, whole=True)
            if (item := self._history.get(item_id)) is not None:
                item.transcribed = True
                self._let_go()
        elif kind in _ITEM_CREATED:
            self._confirm_item(event.get("item"))
        elif kind == "conversation.item.truncated":
            self._history.shorten(item_id, event.get("audio_end_ms"))
        elif kind == "conversation.item.deleted":
            self._history.remove(item_id)
        elif kind in {"session.created", "session.updated"}:
            self.facts.note(event.get("session"))
            if kind == "session.updated":
                self._changes.confirmed()
        elif kind == "error":
            self._note_error(event.get("error"))
        about = event.get("error") if kind == "error" else None
        is_of_session = isinstance(about, dict) and (  # and not of an event that was sent
            about.get("type") != "invalid_request_error" or text_of(about.get("code")) in LIMIT_CODES
        )
        self._refused_s = now_s if is_of_session else None
        if kind in {"response.created", _SPEECH_STARTED, _COMMITTED}:
            self._failed = None  # something else has begun

    def was_refused(self, now_s: float) -> bool:
        """Whether the last that Azure told, just now, was an error of its own: the session did not just break."""
        return self._refused_s is not None and now_s - self._refused_s <= _FAILED_JUST_NOW_S

    def is_success(self, response: object) -> bool:
        """Whether the answer that has just ended was completed. One in text alone is none where sound was due."""
        if not isinstance(response, dict) or response.get("status") != "completed":
            return False
        says = any(isinstance(item, dict) and item.get("type") == "message" for item in response.get("output") or ())
        return not says or not self._last_owed_sound or self._last_sounded

    @property
    def failed(self) -> OpenAnswer | None:
        """The answer that has just failed, where nothing of it was heard: a new session is asked for it."""
        return None if self._failed is None else self._failed[0]

    def forget_failed(self) -> None:
        """No session is to be asked for it."""
        self._failed = None

    # --- the change of sessions

    def truncate(self, event: Event) -> bool:
        """Cuts an answer of an earlier session to what was heard of it; False: there is none of this id."""
        return self._history.shorten(event.get("item_id"), event.get("audio_end_ms")) is not None

    @property
    def last_spoke(self) -> bool:
        """Whether the answer that ended last said something, by sound or as text."""
        return self._last_spoke

    @property
    def hears_nothing(self) -> bool:
        """Whether no audio is there to be committed."""
        return self.audio.end <= self._buffer_start

    def stop_asking(self) -> None:
        """The client cancels, or asks itself, while no session is there: what would be asked again is not."""
        self._answers = deque((each for each in self._answers if each.outside), maxlen=_ANSWERS_KEPT)

    def cut(self, now_s: float, *, goes_on: bool = True) -> Handover:
        """Ends what is open in the session that was lost. `steps` tells the next one of the rest.

        `goes_on`: an answer of which something was heard is gone on with. Another agent does not.
        """
        if self._failed is not None and now_s - self._failed[1] <= _FAILED_JUST_NOW_S and self._speaking is None:
            failed = self._failed[0]
            self._answers.append(OpenAnswer(failed.request, failed.go_on, failed.outside))
        self._failed = self._current = None
        endings, unsaid, due = [], set(), []
        for answer in self._answers:
            if answer.response is not None:
                endings.append(answer.ended())
            if not answer.heard:
                unsaid |= {item.item_id for item in answer.items if item.kind == "assistant"}
            over = answer.heard and (answer.is_whole or answer.outside)
            if not goes_on:
                over = answer.heard or answer.go_on
            if any(item.kind == "call" and item.finished for item in answer.items):
                over = True  # once its calls have their outputs, the model is asked to go on from them
            if not answer.stopped and not over:
                due.append(OpenAnswer(answer.request, answer.heard or answer.go_on, answer.outside))
            for item in answer.items:
                if item.kind == "assistant" and answer.heard:
                    self._finish(item.item_id, answer)
        for item_id in unsaid:
            self._history.remove(item_id)
        if self._speaking is not None and self._stopped_at is not None:
            # Over, by Azure's word, but not committed: what follows is not part of it.
            speech = (self._buffer_start, self._stopped_at)
            self._unconfirmed.append(AwaitedEvent("", self._speaking.item_id, speech=speech))
            if self.facts.answers_by_itself:
                due.append(OpenAnswer())
            self._begin_buffer(self._stopped_at, after_speech=True)
            self._speaking = self._stopped_at = None
        # One answer within the conversation at most: it answers all that was said. Those outside are independent.
        inside = [answer for answer in due if not answer.outside]
        self._answers = deque([answer for answer in due if answer.outside] + inside[-1:], maxlen=_ANSWERS_KEPT)
        self._tools.clear()
        return Handover(tuple(endings), frozenset(unsaid))

    def steps(self) -> tuple[Step, ...]:
        """What a new session is told, in order."""
        steps: list[Step] = [Say(note) for note in self.notes()]
        for item in self._history.latest():
            if item.kind in ("call", "output") or item.text:
                steps.append(Say(item))
            elif item.speech is not None and (appends := self.audio.between(*item.speech)):
                steps.append(Speech(item.item_id, tuple(appends), told=True))
        for each in self._unconfirmed:
            if each.speech is None:
                steps.append(Resend(each.text))
            elif appends := self.audio.between(*each.speech):
                steps.append(Speech(each.item_id, tuple(appends), told=False))
        steps += [Ask(answer.request, answer.go_on) for answer in self._answers]
        rest = self.audio.between(self._buffer_start, self.audio.end)
        if self._speaking is not None or self._unheard is not None:
            steps.append(Listen(tuple(rest), self._unheard if self._speaking is None else self._speaking.item_id))
        else:
            if self.facts.detects and self.facts.heard_chars_a_ms == PLAIN_CHARS_A_MS:
                # Azure has told nothing of it: it goes without the silence before speech.
                rest = self.audio.speech_from(self._buffer_start, skip_ms=_FADES_MS if self._after_speech else 0)
            if rest:
                steps.append(Listen(tuple(rest)))
        return tuple(steps)

    def moved(self, *, replayed_chars: int, listened_chars: int, settings: dict[str, Any] | None = None) -> None:
        """The new session has got that much audio: of finished utterances, and of the one under way.

        `settings` are the client's changes in the new session's dialect; None where they are as before.
        """
        self._offset = self.audio.end - listened_chars - replayed_chars
        self._changes.restated(self.settings if settings is None else settings)
        self.was_asked = bool(self._answers)
        if self._speaking is not None:  # the new session tells of it once more
            self._unheard, self._speaking = self._speaking.item_id, None

    # --- parts of the above

    def _expect(self, answer: OpenAnswer) -> None:
        self._answers.append(answer)
        self.was_asked = True

    def _await(self, each: AwaitedEvent) -> None:
        self._unconfirmed.append(each)
        self._unconfirmed_bytes += len(each.text)
        while self._unconfirmed_bytes > _UNCONFIRMED_BYTES or len(self._unconfirmed) > _UNCONFIRMED_AT_MOST:
            # Azure confirms within a second: what is older than 2 MB of others was refused.
            self._unconfirmed_bytes -= len(self._unconfirmed.popleft().text)

    def _confirm(self, item_id: str | None, *, commit: bool) -> AwaitedEvent | None:
        """Takes what Azure confirms from the unconfirmed: the one of this id, else the first of its kind."""
        kind = [each for each in self._unconfirmed if (each.speech is not None) == commit]
        found = next((each for each in kind if each.item_id == item_id), None)
        found = found or next((each for each in kind if not each.item_id), None)
        if found is not None:
            self._unconfirmed.remove(found)
            self._unconfirmed_bytes -= len(found.text)
        return found

    def _confirm_item(self, stated: object) -> None:
        if not isinstance(stated, dict):
            return
        item_id = text_of(stated.get("id"))
        known = self._history.get(item_id)
        if known is None:
            content = stated.get("content")
            parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
            spoken = any(part.get("type") == "input_audio" for part in parts)
            by_model = stated.get("role") == "assistant" or stated.get("type") in {"function_call", "mcp_call"}
            said = stated.get("role") == "assistant" and self._current is not None and not self._current.outside
            if not spoken and self._confirm(item_id, commit=False) is None and by_model and not said:
                return  # a call of an answer, or outside the conversation: `response.output_item.added` tells of it
        if known is None or known.kind not in ("assistant", "call"):
            self._history.note_item(stated)

    def _begin_speech(self, item_id: str, start_ms: object) -> None:
        self._speaking = Item(item_id, "user")
        self._stopped_at = self._unheard = None
        self._buffer_start = max(self._buffer_start, self._position(start_ms, default=self._buffer_start))
        if self.facts.interrupts:
            # What turn detection would have asked for never comes; what is asked for explicitly does.
            self._answers = deque(
                (each for each in self._answers if each.response is not None or each.request is not None),
                maxlen=_ANSWERS_KEPT,
            )
            for answer in self._answers:
                answer.stopped = answer.stopped or (answer.response is not None and not answer.outside)

    def _commit(self, item_id: str) -> None:
        """The user's utterance is over: by turn detection, or since the client committed it."""
        if not item_id:
            return
        by_hand = self._confirm(item_id, commit=True) if self._stopped_at is None else None
        item = self._history.put(item_id, "user")
        if by_hand is not None:
            item.speech = by_hand.speech
        else:
            end = self.audio.end if self._stopped_at is None else self._stopped_at
            item.speech = (self._buffer_start, end)
            self._begin_buffer(end, after_speech=True)
            if self.facts.detects and self.facts.answers_by_itself:
                self._expect(OpenAnswer())
        self._speaking = self._stopped_at = self._unheard = None

    def _begin_answer(self, stated: object) -> None:
        if not isinstance(stated, dict):
            return
        outside = "conversation_id" in stated and stated["conversation_id"] is None
        waiting = [answer for answer in self._answers if answer.response is None]
        answer = next((each for each in waiting if each.outside == outside), None)
        if answer is None:
            answer = OpenAnswer(outside=outside)
            self._expect(answer)
        answer.response = stated
        self._current = answer

    def _end_answer(self, stated: object, now_s: float) -> None:
        if not isinstance(stated, dict):
            return
        response_id = text_of(stated.get("id"))
        answer = next((each for each in self._answers if each.response_id == response_id), None)
        if answer is None:
            return
        self._answers.remove(answer)
        self._last_sounded = answer.sounded
        self._last_spoke = any(item.kind == "assistant" for item in answer.items)
        self._last_owed_sound = answer.owes_sound(self.facts.modalities)
        if self._current is answer:
            self._current = None
        if stated.get("status") == "failed":
            details = stated.get("status_details")
            error = details.get("error") if isinstance(details, dict) else None
            self.fault = text_of(error.get("code")) if isinstance(error, dict) else ""
            if not answer.heard:
                self._failed = (answer, now_s)
        elif stated.get("status", "completed") == "completed":
            self.fault = ""
            self.completed += 1
        for item in answer.items:
            self._finish(item.item_id, answer)
        self._let_go()

    def _add_output(self, event: Event) -> None:
        answer = self._answer_of(event)
        stated = event.get("item")
        if isinstance(stated, dict) and stated.get("type") == "mcp_call":
            self._tools.add(text_of(stated.get("id")))
        if answer is None or answer.outside:
            return
        item = self._history.note_item(stated, answer.response_id)
        if item is not None and item.kind in ("assistant", "call"):
            answer.items.append(item)

    def _end_output(self, event: Event) -> None:
        stated = event.get("item")
        item_id = stated.get("id") if isinstance(stated, dict) else event.get("item_id")
        self._tools.discard(text_of(item_id))
        self._began(event, heard=False)
        item = self._history.get(item_id)
        if item is not None and item.kind == "call":
            if isinstance(stated, dict) and stated.get("status", "completed") == "completed":
                self._history.note_item(stated)
                item.finished = True
                if (answer := self._answer_of(event)) is not None:
                    answer.heard = True  # the client may act on it: it must not be asked for again
        else:
            self._finish(item_id)

    def _finish(self, item_id: object, answer: OpenAnswer | None = None) -> None:
        item = self._history.get(item_id)
        if item is not None and not item.finished:
            item.finished = True
            if (answer := answer or self._current) is not None:
                item.sound_ms = answer.sound_chars / self.facts.spoken_chars_a_ms
                answer.sound_chars = 0

    def _began(self, event: Event, *, heard: bool) -> None:
        if (answer := self._answer_of(event)) is not None:
            answer.began = True
            answer.heard = answer.heard or heard

    def _answer_of(self, event: Event) -> OpenAnswer | None:
        response_id = event.get("response_id")
        found = next((each for each in self._answers if response_id and each.response_id == response_id), None)
        return found or self._current

    def _let_go(self) -> None:
        """Forgets the audio of utterances that are transcribed while no answer is open."""
        if any(not answer.outside for answer in self._answers):
            return
        for item in self._history:
            if item.transcribed:
                item.speech = None

    def _begin_buffer(self, position: int, *, after_speech: bool = False) -> None:
        self._buffer_start = position
        self._after_speech = after_speech

    def _position(self, at_ms: object, *, default: int) -> int:
        if not isinstance(at_ms, int | float) or isinstance(at_ms, bool):
            return default
        position = round(at_ms * self.facts.heard_chars_a_ms + self._offset)
        return min(max(position, self._buffer_start), self.audio.end)

    def _note_error(self, error: object) -> None:
        """Takes what Azure refused from what is due: no answer will come of it."""
        if not isinstance(error, dict):
            return
        code, event_id = text_of(error.get("code")), text_of(error.get("event_id"))
        if self._changes.awaits:
            param = text_of(error.get("param"))
            waits = self._unconfirmed or any(answer.response is None for answer in self._answers)
            may_be = not (param or waits or stated_fault(error))
            self._changes.refused(event_id, nameless=param.startswith("session") or may_be)
        for answer in self._answers:
            asked_as = ASK_ID if answer.request is None else answer.request.get("event_id")
            busy = code == "conversation_already_has_active_response" and not event_id
            if answer.response is None and (busy or (event_id and asked_as == event_id)):
                self._answers.remove(answer)
                return
        if code == "input_audio_buffer_commit_empty":
            self._confirm(None, commit=True)
        if code.startswith("item_create") or code == "invalid_tool_call_id":
            self._confirm(None, commit=False)
