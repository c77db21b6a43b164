"""Folds text for recall: spellings that a reader takes for one word become one word.

NFKC and full case folding unify widths and cases. A table then unifies what those leave apart: accents, the dotted and
the dotless i, vowel marks of Arabic and Hebrew, letters that Persian and Urdu keyboards write otherwise, digits of all
scripts. It drops characters that nobody sees, and makes a blank of everything that is neither letter, mark nor digit.

Scripts without blanks (Han, Kana, Thai, Lao, Khmer, Burmese) stay runs, set off from other scripts by blanks.
"""

import re
import unicodedata

__all__ = ["FOLDING_VERSION", "MAX_FOLDED_CHARS", "fold", "fold_turn", "is_unspaced"]

FOLDING_VERSION = 1  # of these rules; a greater one has stored turns folded again
MAX_FOLDED_CHARS = 800  # of a turn: a long one says what it is about at its beginning

_CACHED_CHARS = 20_000  # of the table: text of all of Unicode must not fill the memory

_UNSPACED = (
    "\u3005-\u3007\u3040-\u309f\u30a0-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"  # Han and Kana
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f"  # Thai, Lao, Burmese, Khmer
)
_RUN = re.compile(f"[{_UNSPACED}]+")

# Letters and marks that Unicode neither decomposes nor folds.
_VARIANTS = {
    "ı": "i",
    "ø": "o",
    "đ": "d",
    "ð": "d",
    "ł": "l",
    "ħ": "h",
    "æ": "ae",
    "œ": "oe",
    "þ": "th",
    "ς": "σ",
    "ى": "ي",  # alef maksura
    "ی": "ي",  # Persian yeh
    "ې": "ي",
    "ے": "ي",
    "ک": "ك",
    "ڪ": "ك",
    "ہ": "ه",
    "ھ": "ه",
    "ە": "ه",
    "ۀ": "ه",
    "ة": "ه",
    "ٱ": "ا",
    "ء": "",
    "ـ": "",  # tatweel
    "׳": "",
    "״": "",
    "ँ": "ं",
    "\u093c": "",  # nukta
    "\u3164": "",  # Hangul fillers, which are letters to Unicode
    "\u115f": "",
    "\u1160": "",
    "\uffa0": "",
}
# Marks that a word means the same without. Those of Indic and South-East Asian scripts are vowels: they stay.
_DROPPED_MARKS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0711"
    "\u0730-\u074a\u08d3-\u08ff\u17b4\u17b5\u180b-\u180f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
    "\U000e0100-\U000e01ef]"
)
_DECOMPOSED = re.compile("[\u00c0-\u06ff\u1e00-\u1fff]")  # Latin, Greek, Cyrillic, Hebrew, Arabic


class _Table(dict[int, str]):
    """What becomes of a character; filled as characters come."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        parts = unicodedata.normalize("NFKD", char) if _DECOMPOSED.match(char) else char
        folded = "".join(_folded(part) for part in parts)
        if len(self) < _CACHED_CHARS:
            self[code] = folded
        return folded


def _folded(char: str) -> str:
    if (variant := _VARIANTS.get(char)) is not None:
        return variant
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Cf" or _DROPPED_MARKS.match(char):
        return ""  # soft hyphens, joiners, direction marks
    return char if category[0] in "LMN" and char != "\u02bc" else " "


_TABLE = _Table()


def fold(text: str) -> str:
    """The folded words, a blank between two."""
    if text.isascii():
        folded = text.lower().translate(_TABLE)
    else:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_TABLE)
        folded = _RUN.sub(r" \g<0> ", folded)
    return " ".join(folded.split())


def fold_turn(content: str) -> str:
    """What is stored of a turn for recall: each folded word of its beginning once, a blank before and behind each."""
    return f" {' '.join(dict.fromkeys(fold(content[:MAX_FOLDED_CHARS]).split()))} "


def is_unspaced(word: str) -> bool:
    """Whether a folded word is a run of a script that has no blanks between its words."""
    return _RUN.match(word) is not None
