"""What a question asks for: terms, each with its weight and the patterns by which turns that may have it are found.

A term is a word, or a few signs of a script without blanks. Function words of the question's language are left out.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from token_broker.memory.words.folding import fold, is_unspaced
from token_broker.memory.words.likeness import ALIKE, likeness, min_prefix, stems
from token_broker.memory.words.stop_words import (
    COMPOUNDING,
    DECISIVE,
    FRAMES,
    STOP_GRAMS,
    STOP_RUNS,
    STOP_SIGNS,
    WEAK_SIGNS,
    stop_words_of,
)

__all__ = ["MAX_TERMS", "Pattern", "Term", "terms_of"]

MAX_TERMS = 16
_ASKED_CHARS = 600
_FRAME_WEIGHT = 0.3
_SHORT_WEIGHTS = {1: 0.0, 2: 0.4, 3: 0.8}
_PARTS_FROM = 5
_SEPARABLE = re.compile("(ab|an|auf|aus|bei|ein|fest|her|hin|los|mit|nach|um|vor|weg|zu|zuruck)(?:ge|zu)?([a-z]{4,})$")
_IN_TWO = 0.7  # a verb whose parts stand apart in the turn
_COMPOUND_FROM = 8
_EDGE = 5
_MIN_HEAD = 4

_HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff]{2,}")
_HIRAGANA = re.compile("[\u3041-\u309f]{2,}")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_KANA = re.compile("[\u3041-\u30ff]")
_OTHERS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f]+")
_STOP_RUN = re.compile("|".join(STOP_RUNS))
_STOP_GRAM = re.compile("|".join(sorted(STOP_GRAMS, key=len, reverse=True)))
_SHORT_SCRIPTS = re.compile("[\uac00-\ud7a3\u0590-\u06ff\u0900-\u0dff]")  # whose words have few letters


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text to look for, and what it has to be a part of: one of `within`, by where the text stands in it."""

    text: str
    within: tuple[tuple[int, str], ...] = ()

    def stands_at(self, at: int, lines: str) -> bool:
        """Whether the pattern is there, where its text is."""
        for offset, whole in self.within:
            if lines.startswith(whole, at - offset):
                return True
        return not self.within


@dataclass(frozen=True, slots=True)
class Term:
    """Something asked for. A turn has to have one of `patterns` for the term to be like anything in it."""

    text: str
    weight: float
    patterns: tuple[Pattern, ...]
    is_gram: bool = False
    is_frame: bool = False
    compounds: bool = False
    with_kana: bool = False  # asked in Japanese: of single signs, Chinese has the same

    def likeness(self, words: str, said: list[str]) -> float:
        """How well a turn has the term, from 0 to 1: its folded words as they are stored, and one by one."""
        if self.is_gram:
            if len(self.text) == 1 and self.with_kana != (_KANA.search(words) is not None):
                return 0.0
            return 1.0 if self.text in words else 0.0
        best, parts = 0.0, 0
        for word in said:
            alike = likeness(self.text, word, compounds=self.compounds)
            if alike < ALIKE:
                continue
            if alike == 1.0:
                return alike
            best = max(best, alike)
            # Said as several words, asked as a compound of them.
            if _PARTS_FROM - 1 <= len(word) < len(self.text):
                parts += len(word) if self.text.startswith(word) else 0
                parts += len(word) if self.text.endswith(word) else 0
        if best < ALIKE and self.compounds and (verb := _SEPARABLE.match(self.text)) and verb[1] in said:
            return _IN_TWO if any(likeness(verb[2], word) >= ALIKE for word in said) else 0.0
        return max(best, min(1.0, parts / len(self.text)))


def terms_of(question: str) -> tuple[Term, ...]:
    """The terms of a question, those that weigh most first; none where it has function words only."""
    words = list(dict.fromkeys(fold(question[:_ASKED_CHARS]).split()))
    stops, languages = stop_words_of(frozenset(words))
    compounds = bool(languages & COMPOUNDING)
    found: dict[str, Term] = {}
    for word in words:
        for term in _grams(word) if is_unspaced(word) else _word(word, stops, compounds=compounds):
            found.setdefault(term.text, term)
    return tuple(sorted(found.values(), key=lambda term: (-term.weight, -len(term.text)))[:MAX_TERMS])


def is_decisive(term: Term) -> bool:
    """Whether the term may decide alone: every content word, and a few others."""
    return not term.is_frame or term.text in DECISIVE


def _word(word: str, stops: frozenset[str], *, compounds: bool) -> tuple[Term, ...]:
    if word in stops:
        return ()
    weight = 0.8 if _SHORT_SCRIPTS.match(word) or word.isdigit() else _SHORT_WEIGHTS.get(len(word), 1.0)
    weight = 1.0 if len(word) > max(_SHORT_WEIGHTS) else weight
    if len(word) == 1 and not _SHORT_SCRIPTS.match(word) and not word.isdigit():
        return ()
    is_frame = word in FRAMES or word.isdigit()
    if word in FRAMES:
        weight = _FRAME_WEIGHT
    patterns = _patterns(word)
    if compounds and (verb := _SEPARABLE.match(word)):
        patterns += (Pattern(f" {verb[2][: max(_MIN_HEAD - 1, len(verb[2]) - 2)]}"),)
    return (Term(word, weight, patterns, is_frame=word in FRAMES and is_frame, compounds=compounds),)


@lru_cache(maxsize=1_024)
def _patterns(word: str) -> tuple[Pattern, ...]:
    """A turn that has a word like this one has one of these."""
    if any(map(str.isdigit, word)):
        return (Pattern(f" {word} "),)  # numbers and codes are like themselves alone
    if _HANGUL.match(word):
        return (Pattern(min(*stems(word), word[:3], key=len)),)
    if _SHORT_SCRIPTS.match(word) or len(shortest := min(stems(word), key=len)) < len(word):
        # Endings and beginnings are cut off: whatever is left stands anywhere in the word.
        shortest = min(stems(word), key=len)
        return (Pattern(shortest if len(shortest) > 1 else f" {shortest}"),)
    if len(word) < _MIN_HEAD:
        return (Pattern(f" {word} " if len(word) < _MIN_HEAD - 1 else f" {word}"),)
    if len(word) == _MIN_HEAD:
        return (Pattern(f" {word[:-1]}"), Pattern(f"{word} "))
    head = word[: min_prefix(word)]  # wherever it stands: also behind another part of a compound
    if len(word) < _COMPOUND_FROM:
        short = word[:_MIN_HEAD]
        return (Pattern(short, ((0, head), (1, f" {short} "))) if short != head else Pattern(head),)
    # What was said may be a part of what is asked, from its beginning or its end.
    edge = word[:_EDGE]
    return (Pattern(edge, ((0, head), (1, f" {edge}"))), Pattern(f"{word[-_EDGE:]} "))


def _grams(run: str) -> list[Term]:
    """The terms of a run without blanks."""
    has_kana = _KANA.search(run) is not None
    pieces = _STOP_RUN.sub(" ", run).split() if has_kana or _OTHERS.match(run) else [run]
    grams: dict[str, float] = {}
    for piece in pieces:
        for han in _HAN.findall(piece):
            for gram, weight in _of_han(han).items():
                grams[gram] = max(weight, grams.get(gram, 0.0))
        for word in _KATAKANA.findall(piece):
            grams |= {word[at : at + 3]: 0.5 for at in range(max(1, len(word) - 2))}
        for word in _HIRAGANA.findall(piece):
            if len(word) > 2:  # noqa: PLR2004  # signs: shorter ones are endings and particles
                grams |= {word[at : at + 3]: 0.3 for at in range(len(word) - 2)}
        for other in _OTHERS.findall(piece):
            grams |= {other[at : at + 3]: 0.35 for at in range(max(1, len(other) - 2)) if len(other) > 1}
    return [Term(gram, weight, (Pattern(gram),), is_gram=True, with_kana=has_kana) for gram, weight in grams.items()]


def _of_han(run: str) -> dict[str, float]:
    """Pairs of signs, and signs that stand alone between function words."""
    grams: dict[str, float] = {}
    for piece in _STOP_GRAM.sub(" ", run).split():
        for pair in map("".join, pairwise(piece)):
            if STOP_SIGNS.isdisjoint(pair):
                grams[pair] = 0.7 if WEAK_SIGNS.isdisjoint(pair) else 0.25
        for alone in "".join(" " if sign in STOP_SIGNS or sign in WEAK_SIGNS else sign for sign in piece).split():
            if len(alone) == 1:
                grams[alone] = 0.5
    return grams
