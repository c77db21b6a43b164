"""Looks for a question's terms in what a user said, and ranks the turns that have them. Pure, and in small steps.

`Search.look` goes through a chunk of folded turns by plain substring search, which costs a millisecond for a megabyte
and a pattern. `Search.compare` then compares words, of the few turns that may be best alone. Both are made of steps
well below a millisecond, so that an event loop can do something else in between.
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import nsmallest

from token_broker.memory.words.folding import fold
from token_broker.memory.words.likeness import ALIKE
from token_broker.memory.words.stop_words import stop_words_of
from token_broker.memory.words.terms import Pattern, Term, is_decisive, terms_of

__all__ = ["Search"]

_COMPARED = 60  # turns whose words are compared: those that have most of the question
_HITS_A_TERM = 400  # a term that is in so many of the newest turns says little: the search for it stops
_COVERED = 0.34  # a turn that answers has at least this share of the question's weight
_ENOUGH = 2.04  # of weight, about two rare words: they answer a long question
_LEAST = 0.33  # of weight: a common word alone answers nothing
_BESIDE_BEST = 0.8  # a turn with a smaller share of the best score is left out
_MOST_COVERED = 0.8  # the share that a question of frame words alone, or of little weight, needs
_ECHO = 0.4  # weighs a turn that only repeats the question: it answers nothing


@dataclass(slots=True)
class Search:
    """The search for one question. Give it the user's turns, the newest first."""

    question: str
    terms: tuple[Term, ...] = ()
    turns: int = 0
    _counts: list[int] = field(default_factory=list)  # by term: turns that have its pattern
    _seen: list[int] = field(default_factory=list)  # by term: turns that were searched
    _starts: list[int] = field(default_factory=list)  # where each chunk starts, as if all were one text
    _chunks: list[tuple[str, str]] = field(default_factory=list)
    _hits: dict[int, int] = field(default_factory=dict)  # by the start of a turn's line: one bit for each term found
    _scores: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.terms = terms_of(self.question)
        self._counts = [0] * len(self.terms)
        self._seen = [0] * len(self.terms)

    def steps(self, chunks: Iterable[tuple[str, str]]) -> Iterator[None]:
        """The whole search, a step at a time: `look` for each chunk, then `compare`."""
        for arrivals, lines in chunks:
            self.look(arrivals, lines)
            yield
        yield from self.compare()

    def look(self, arrivals: str, lines: str) -> None:
        """Looks through turns: a line of folded words each (`fold_turn`), and their arrivals with blanks between."""
        count = arrivals.count(" ") + 1
        self._starts.append(self._starts[-1] + len(self._chunks[-1][1]) + 1 if self._chunks else 0)
        self._chunks.append((arrivals, lines))
        self.turns += count
        for number, term in enumerate(self.terms):
            if self._counts[number] >= _HITS_A_TERM:
                continue
            self._seen[number] += count
            for pattern in term.patterns:
                if (at := lines.find(pattern.text)) >= 0:
                    self._note(number, pattern, at, lines)

    def _note(self, number: int, pattern: Pattern, at: int, lines: str) -> None:
        """Notes the turns that have a pattern, whose text stands first at `at`."""
        bit, start, hits = 1 << number, self._starts[-1], self._hits
        while at >= 0:
            if pattern.stands_at(at, lines):
                line = start + lines.rfind("\n", 0, at) + 1
                known = hits.get(line, 0)
                if not known & bit:
                    hits[line] = known | bit
                    self._counts[number] += 1
                if (at := lines.find("\n", at)) < 0:
                    return
            at = lines.find(pattern.text, at + 1)

    def compare(self) -> Iterator[None]:
        """Compares the words of the likeliest turns, a turn a step. Call `best` behind the last one."""
        weights = []
        for number, term in enumerate(self.terms):
            # The rarity is 1 for a term that at most one turn has, and less the more turns have it.
            count = max(1.0, self._counts[number] * self.turns / max(1, self._seen[number]))
            rarity = (1 + math.log((self.turns + 2) / (count + 1))) / (1 + math.log((self.turns + 2) / 2))
            weights.append(term.weight * rarity)
        whole = sum(weights)
        needed = max(min(_LEAST, _MOST_COVERED * whole), min(_COVERED * whole, _ENOUGH))
        common = sum(1 << number for number, count in enumerate(self._counts) if count >= _HITS_A_TERM)
        hits = set(self._hits.values())
        sure = {each: _weight_of(each, weights) for each in hits}
        # Common terms were not looked for everywhere: a turn may have them besides.
        enough = {each for each in hits if _weight_of(each | common, weights) >= needed}
        likely = [(-sure[bits], line) for line, bits in self._hits.items() if bits in enough]
        asked = frozenset(fold(self.question).split())
        asked |= stop_words_of(asked)[0]
        for _, line in nsmallest(_COMPARED, likely):  # of equals the newest, which are the first
            chunk = bisect_right(self._starts, line) - 1
            arrivals, lines = self._chunks[chunk]
            start = line - self._starts[chunk]
            words = lines[start:].partition("\n")[0]
            said = words.split()
            if (score := self._score(words, said, self._hits[line] | common, weights, needed)) > 0:
                arrival = int(arrivals.split(" ")[lines.count("\n", 0, start)])
                self._scores[arrival] = score * (_ECHO if asked.issuperset(said) else 1)
            yield

    def best(self, limit: int, *, but: Collection[int] = ()) -> list[int]:
        """The arrivals of the turns that answer, without those of `but`, best first; of equals the newest."""
        scores = {arrival: score for arrival, score in self._scores.items() if arrival not in but}
        least = _BESIDE_BEST * max(scores.values(), default=0.0)
        ranked = sorted(scores, key=lambda arrival: (round(scores[arrival], 2), arrival), reverse=True)
        return [arrival for arrival in ranked if scores[arrival] >= least][:limit]

    def _score(self, words: str, said: list[str], hits: int, weights: list[float], needed: float) -> float:
        """The weight of the terms that the turn has; 0 where it is too little for an answer."""
        score, decided = 0.0, False
        for number, term in enumerate(self.terms):
            if hits >> number & 1 and (alike := term.likeness(words, said)) >= ALIKE:
                score += weights[number] * alike
                decided |= is_decisive(term)
        if all(term.is_frame for term in self.terms):
            needed = _MOST_COVERED * sum(weights)
        return score if decided and score >= needed else 0.0


def _weight_of(hits: int, weights: list[float]) -> float:
    return sum(weight for number, weight in enumerate(weights) if hits >> number & 1)
