"""How a call comes to its end: nobody says anything any more, or it is hung up, and its last events are heard."""

import asyncio
from collections.abc import Callable

from token_broker.server.close_codes import DONE, DRAINING, Ending

__all__ = ["CHECK_S", "NO_PLACE", "CallEnd", "IdleClock"]

CHECK_S = 1.0
"""How often a listener looks whether its call still has a place."""

NO_PLACE = Ending(DONE, "the call was ended elsewhere", by_client=True, outcome="lost")
_LAST_EVENTS_S = 1.0  # for what Azure had sent before it hung up
_LAST_HANG_UP_S = 4.0  # before the drain goes on
_BUSY_AT_MOST_S = 600.0  # an answer or a tool that takes longer counts as lost
_SPEECH = frozenset({"input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"})
# What says that somebody speaks or writes, on either side. Azure sends a sideband no audio.
_OF_USE = ("response.", "output_audio_buffer.", "conversation.item.", "input_audio_buffer.committed")
_BEGINS = frozenset({"response.created", "output_audio_buffer.started"})
_ENDS = {
    "response.done": "response.created",
    "output_audio_buffer.stopped": "output_audio_buffer.started",
    "output_audio_buffer.cleared": "output_audio_buffer.started",
}


class IdleClock:
    """One call's. It runs while the call is listened to: what happens meanwhile is unknown.

    An answer, its sound and a tool keep a call alive without an event, for ten minutes at most. What Azure says by
    itself because nobody speaks (`idle_timeout_ms`) does not, and neither do the answers to that.
    """

    def __init__(self, idle_s: float, now_s: float) -> None:
        self._idle_s = idle_s
        self._last_s = now_s
        self._left_s: float | None = None
        self._under_way: dict[str, float] = {}
        self._speaks_alone = False

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being made, or played."""
        return bool(self._under_way)

    def heard(self, kind: str, text: str, now_s: float) -> None:
        """Azure sent the event `text` of the type `kind`."""
        if kind in _SPEECH:
            self._speaks_alone = False
            self._last_s = now_s
        elif kind == "input_audio_buffer.timeout_triggered":
            self._speaks_alone = True
            self._under_way.clear()
        elif kind.startswith(_OF_USE) and (not self._speaks_alone or '"input_text"' in text):
            self._speaks_alone = False
            self._last_s = now_s
            if kind in _BEGINS:
                self._under_way[kind] = now_s
            elif (begun := _ENDS.get(kind)) is not None:
                self._under_way.pop(begun, None)

    def leave(self, now_s: float) -> None:
        """The call is not listened to from now on."""
        self._left_s = now_s
        self._under_way.clear()

    def join(self, now_s: float) -> None:
        """The call is listened to again."""
        if self._left_s is not None:
            self._last_s += now_s - self._left_s
            self._left_s = None

    def is_idle(self, now_s: float, *, tool_since_s: float | None = None) -> bool:
        """Whether the call is to end. `tool_since_s`: since when a tool of the agent's has run."""
        since_s = [*self._under_way.values(), *(() if tool_since_s is None else (tool_since_s,))]
        if any(now_s - each_s < _BUSY_AT_MOST_S for each_s in since_s):
            self._last_s = now_s  # what follows has its own time
            return False
        return now_s - self._last_s >= self._idle_s


class CallEnd:
    """The end of one call, for its listener, which goes on until `over` is done.

    `hang_up` asks Azure to end the call; `holds_place` says whether it still has its place among the open talks. Once
    Azure has hung up, `on_hung_up` is called, and a listener with an open sideband (`is_heard`) goes on for a second:
    an answer that ended before the hang-up may still be on its way, and costs something.
    """

    def __init__(self, hang_up: Callable[[Ending], None], holds_place: Callable[[], bool]) -> None:
        self.on_hung_up: Callable[[], None] = lambda: None
        self.is_asked = False  # Azure, to end the call, and it may not have done it yet
        self.is_heard = False
        self.last: Ending | None = None  # Azure has hung up
        self._hang_up = hang_up
        self._holds_place = holds_place
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[Ending] = self._loop.create_future()

    def ask(self, ending: Ending) -> None:
        """Hangs the call up; it is listened to until it is over, which Azure may take its time for."""
        if not self.is_asked:
            self.is_asked = True
            self._hang_up(ending)

    def stop(self, ending: Ending) -> None:
        """Stops listening for this reason; the call goes on. Where the broker goes away it is hung up before."""
        if ending.code == DRAINING:
            self.ask(ending)
            self._loop.call_later(_LAST_HANG_UP_S, self._set, ending)
        else:
            self._set(ending)

    def hung_up(self, ending: Ending) -> None:
        """Azure has hung the call up."""
        if self.last is None:
            self.last = ending
            self.is_asked = True
            self.on_hung_up()
            if self.is_heard:
                self._loop.call_later(_LAST_EVENTS_S, self._set, ending)
            else:
                self._set(ending)

    def look(self) -> None:
        """A call without a place was hung up, here or elsewhere."""
        if not self._holds_place():
            self.hung_up(NO_PLACE)

    async def pause(self, seconds: float) -> None:
        """Waits for so long, or until the call is over."""
        until_s = self._loop.time() + seconds
        while not self.over.done() and (left_s := until_s - self._loop.time()) > 0:
            await asyncio.wait((self.over,), timeout=min(left_s, CHECK_S))
            self.look()

    def _set(self, ending: Ending) -> None:
        if not self.over.done():
            self.over.set_result(ending)
