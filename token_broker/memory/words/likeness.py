"""How alike two folded words are: the same, inflected, part of a compound, or different.

There is no dictionary. Scripts differ in where words change: at the end in most, also at the beginning in Arabic and
Hebrew, by particles in Korean. Words of two letters, and numbers, are like themselves alone.
"""

import re
from functools import lru_cache

__all__ = ["ALIKE", "likeness", "min_prefix", "stems"]

ALIKE = 0.5  # at least: words that are less alike are different ones

_INFLECTED = 0.85
_COMPOUND = 0.75
_MIN_PREFIX = 4
_SHORTEST = 3  # letters that two inflected words have in common, in scripts where only endings change
_LONG_TAIL = 6
_LONG_COMMON = 7  # letters that two words begin with
_KNOWN_ENDS = 6  # letters that both begin with, where the rest of both is a known ending
_KNOWN_LIKENESS = 0.7
_ALIKE_ENDS = 0.6  # where they are fewer, and the rest is no known ending
_PARTS_FROM = 5  # letters of a part of a compound
_SHORT_ENDINGS = """s es n en e er i a o as os im in um un imi ini imin inin umu unu si sini yi de da den dan ta te le
    la u y ow om ie ni ssa lla"""
_ENDINGS = """s es ed d er ers ing ly n en e em ens r rs m a i o u as os y in im um un imi ini imin inin umu unu
    umun imiz si sini yi nin nun de da den dan te ta ten tan le la lar ler lari leri larim lerim ach ami
    owi ow om ie ou ej ni ssa sta lla lta lle na t ja ia an ar or arna erna nne mme k ok ek ak ot at et
    ban ben nak nek hoz je nt ul ului ei lor ele uri"""
_SHORT_TAILS = frozenset(_SHORT_ENDINGS.split())
_TAILS = frozenset(_ENDINGS.split())
_HANGUL = re.compile("[\uac00-\ud7a3]")
_CYRILLIC = re.compile("[\u0400-\u052f]")
_GREEK = re.compile("[\u0370-\u03ff]")
_ARABIC = re.compile("[\u0600-\u06ff]")
_HEBREW = re.compile("[\u0590-\u05ff]")
_INDIC = re.compile("[\u0900-\u0dff]")

_PARTICLES = re.compile(
    "(?:으로부터|에서는|에게서|에서|에게|한테|부터|까지|이랑|으로|이라고|라고|입니다|이에요|예요|이야|처럼|보다|이나|마다|하고"
    "|은|는|이|가|을|를|에|의|도|로|와|과|만|랑|야|님)$"
)
_HANGUL_VERB = re.compile("(?:했|하|해|할|합|한|됐|되)[가-힣]{0,3}$")
_CYRILLIC_END = re.compile(
    "(?:иями|ями|ами|иях|ого|его|ому|ему|ыми|ими|ией|ость|ости|ях|ах|ов|ев|ей|ам|ям|ом|ем|ой|ый|ий|ая|яя|ое|ее|ые|ие"
    "|ую|юю|ых|их|им|ым|ия|ию|ии|ью|ать|ять|ить|еть|ал|ил|ла|ло|ли|ся|сь|та|то|те|ят|а|я|о|е|у|ю|ы|и|ь|і)$"
)
_GREEK_END = re.compile("(?:ουσ|ων|οσ|ησ|ασ|εσ|οι|ου|ον|ην|αν|ει|α|η|ο|ε|ι|υ|ω)$")
_ARABIC_START = re.compile("^(?:وال|بال|كال|فال|لل|ال|و|ف|ب|ك|ل)")
_ARABIC_END = re.compile("(?:هايي|هاي|كما|هما|ها|هم|هن|كم|نا|ين|ون|ات|ان|تي|ية|مان|تان|شان|ام|ات|اش|ه|ي|ك|م|ت|ش)$")
_HEBREW_START = re.compile("^[והבלמשכ]{1,2}")
_HEBREW_END = re.compile("(?:ים|ות|יה|נו|כם|ית|י|ך|ו|ה|ת)$")
_INDIC_END = re.compile("(?:ियों|ियाँ|ियां|ाओं|ओं|ों|ें|[\u093e-\u094c\u0902\u09be-\u09cc\u0bbe-\u0bcc]+)$")


@lru_cache(maxsize=8_192)
def stems(word: str) -> frozenset[str]:
    """What may be left of the word without its endings, and the word itself."""
    found = {word}
    if _HANGUL.match(word):
        found |= _cut(word, None, _PARTICLES, 1) | _cut(word, None, _HANGUL_VERB, 2)
    elif _CYRILLIC.match(word):
        found |= _cut(word, None, _CYRILLIC_END, 3)
    elif _GREEK.match(word):
        found |= _cut(word, None, _GREEK_END, 3)
    elif _ARABIC.match(word):
        found |= _cut(word, _ARABIC_START, _ARABIC_END, 2)
    elif _HEBREW.match(word):
        found |= _cut(word, _HEBREW_START, _HEBREW_END, 2)
    elif _INDIC.match(word):
        found |= _cut(word, None, _INDIC_END, 2)
    return frozenset(found)


def _cut(word: str, start: "re.Pattern[str] | None", end: "re.Pattern[str]", least: int) -> set[str]:
    found = {word}
    if start is not None and len(rest := start.sub("", word)) >= least:
        found.add(rest)
    return found | {rest for each in found if len(rest := end.sub("", each)) >= least}


def min_prefix(word: str) -> int:
    """How many of the word's first letters every inflection of it has."""
    least = 2 if _HANGUL.match(word) or _INDIC.match(word) else _MIN_PREFIX
    return max(min(len(word), least), -(-len(word) * 7 // 10) if len(word) > least else 0)


def likeness(asked: str, said: str, *, compounds: bool = False) -> float:
    """From 0, different, to 1, the same. `compounds`: the asker's language writes them as one word."""
    if asked == said:
        return 1.0
    short, long = (asked, said) if len(asked) <= len(said) else (said, asked)
    if asked[:_SHORTEST] != said[:_SHORTEST] and asked.isascii() and said.isascii() and not long.endswith(short):
        return 0.0  # most pairs: for speed
    if not short or any(map(str.isdigit, short)):
        return 0.0
    mine, other = stems(asked), stems(said)
    if shared := max(map(len, mine & other), default=0):
        return _INFLECTED if shared > 2 or _HANGUL.match(asked) else 0.6  # noqa: PLR2004  # letters
    is_hangul = _HANGUL.match(asked) is not None
    if long.startswith(short):
        return _as_prefix(short, long[len(short) :], is_hangul=is_hangul)
    least = 2 if is_hangul else 4 if compounds else _PARTS_FROM
    if len(short) >= least and long.endswith(short):
        return _COMPOUND
    common = next((n for n, (a, b) in enumerate(zip(asked, said, strict=False)) if a != b), len(short))
    if is_hangul:  # a verb's stem of three syllables
        return 0.7 if common > 2 and len(long) - common <= _MIN_PREFIX else 0.0  # noqa: PLR2004
    if common < _MIN_PREFIX or len(long) - common > _MIN_PREFIX:
        return 0.0
    alike = (common / len(long)) ** 2
    known = {asked[common:], said[common:]} <= _TAILS
    inflected = common >= _LONG_COMMON or known
    if known and common >= _KNOWN_ENDS:
        return max(alike, _KNOWN_LIKENESS)
    return alike if alike >= (ALIKE if inflected else _ALIKE_ENDS) else 0.0


def _as_prefix(short: str, tail: str, *, is_hangul: bool) -> float:
    """One word begins with the other: it is inflected, or a compound of it."""
    if is_hangul:
        return _INFLECTED if len(short) > 1 else 0.0
    ratio = len(short) / (len(short) + len(tail))
    if len(short) >= _PARTS_FROM:
        return max(_COMPOUND, ratio) if len(tail) <= _LONG_TAIL else _COMPOUND - 0.1
    if len(short) == _MIN_PREFIX:
        return max(0.7, ratio) if tail in _TAILS or not short.isascii() else 0.0
    if len(short) == _MIN_PREFIX - 1:
        return 0.7 if tail in _SHORT_TAILS else 0.0
    return 0.0
