"""Search: what is asked is found among all that a user said, in any language, and nothing else is."""

import pytest

from tests.memory.words.everyday import BESIDES, EVERYDAY, NEVER_SAID
from tests.memory.words.pairs import PAIRS, SMALL_TALK, UNANSWERED
from token_broker.memory.words.folding import fold_turn
from token_broker.memory.words.ranking import Search
from token_broker.memory.words.terms import MAX_TERMS, terms_of

SAID = [*(said for said, _ in PAIRS), *SMALL_TALK]


def found(question: str, *said: str, limit: int = 3) -> list[str]:
    """What is found among `said`, oldest first."""
    search = Search(question)
    newest = list(enumerate(said))[::-1]
    for start in range(0, len(newest), 7):
        chunk = newest[start : start + 7]
        search.look(" ".join(str(n) for n, _ in chunk), "\n".join(fold_turn(text) for _, text in chunk))
    for _ in search.compare():
        pass
    return [said[n] for n in search.best(limit)]


def test_pairs_are_found_and_nothing_else() -> None:
    told = {question: found(question, *SAID) for _, question in PAIRS}
    hits = [said for said, question in PAIRS if said in told[question]]
    wrong = {question: texts for said, question in PAIRS if (texts := told[question]) not in ([said], [])}
    assert len(hits) >= len(PAIRS) - 1, "46 of 50 were asked for"
    assert not wrong


def test_everyday_talk_is_found() -> None:
    said = [*(said for said, _ in EVERYDAY), *BESIDES.strip().splitlines()]
    told = {question: found(question, *said) for _, question in EVERYDAY}
    assert not {question: told[question] for said, question in EVERYDAY if said not in told[question]}
    assert not {question: told[question] for said, question in EVERYDAY if len(told[question]) > 1}
    assert not {question: texts for question in NEVER_SAID if (texts := found(question, *said))}


@pytest.mark.parametrize("question", UNANSWERED)
def test_unanswered_question_finds_nothing(question: str) -> None:
    assert found(question, *SAID) == []


@pytest.mark.parametrize(
    "pair",
    [
        ("İstanbul çok güzeldi", "istanbul"),
        ("ısparta çok güzeldi", "ISPARTA"),
        ("می‌خواهم بروم", "میخواهم"),
        ("قال محمد نعم", "مُحَمَّد"),
        ("Die Linden\u00adstraße ist zu", "Lindenstraße"),
        ("Wir gehen zum Haus", "Häuser"),
        ("Der Zahnarzt hat einen Termin", "Zahnarzttermin"),
        ("Die Reiseversicherung ist bezahlt", "Versicherung"),
    ],
)
def test_found_both_ways(pair: tuple[str, str]) -> None:
    one, other = pair
    assert found(other, "so", one, "nein") == [one]
    assert found(one, "so", other, "nein") == [other]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Wen wollte ich anrufen?", "Ich rufe den Vermieter morgen wegen der Heizung an."),
        ("Wann muss ich die Großeltern abholen?", "Wir holen die Großeltern am Freitag ab."),
        ("Was soll ich mitnehmen?", "Nimm bitte die Taschenlampe mit, und wir nehmen das Zelt."),
        ("Evimin anahtarları nerede?", "Evin anahtarı komşuda."),
    ],
)
def test_word_is_found_in_another_form(question: str, said: str) -> None:
    others = ("Man ruft Elefanten mit Trommeln.", "Ich bin an der Ostsee.", "Geh mit Anna vor.")
    assert found(question, *others, said) == [said]
    assert found(question, *others) == []


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Wem vertraue ich?", "Der Vertrag läuft aus"),
        ("Where did I park?", "The market was full"),
        ("is it ab?", "I am about to be absent, so it is abstract"),
        ("and what about the others?", "and what about the others, the rest?"),
        ("什么时候?", "什么时候都可以"),
        ("4711?", "471 and 14711"),
    ],
)
def test_different_words_stay_different(question: str, said: str) -> None:
    assert found(question, said, "nothing else") == []


def test_function_words_are_no_terms() -> None:
    assert terms_of("What did you say about that?") == terms_of("Was war denn das?") == terms_of("怎么样?") == ()
    assert [term.text for term in terms_of("What about the war?")] == ["war"]
    assert terms_of("Was war mit mir?") == ()
    assert len(terms_of(" ".join(f"word{number}" for number in range(99)))) == MAX_TERMS


def test_rarer_words_weigh_more() -> None:
    said = [f"the boat and harbour {number}" for number in range(40)] + ["a harbour in Bergen", "the boat of Ann"]
    assert found("harbour Bergen boat", *said, limit=1) == ["a harbour in Bergen"]


def test_newest_of_equals_is_first() -> None:
    assert found("harbour?", "harbour one", "tea", "harbour two") == ["harbour two", "harbour one"]


def test_question_itself_answers_nothing() -> None:
    asked = "When is my dentist's appointment?"
    answer = "The dentist has an appointment left on Tuesday at ten"
    assert found(asked, answer, asked) == [answer]
    assert found(asked, asked) == [asked], "found where nothing says more"


def test_common_word_is_searched_no_further() -> None:
    search = Search("harbour lighthouse")
    for start in range(0, 5_000, 100):
        numbers = range(5_000 - start, 4_900 - start, -1)
        lines = [" harbour lighthouse " if number == 7 else " harbour " for number in numbers]
        search.look(" ".join(map(str, numbers)), "\n".join(lines))
    for _ in search.compare():
        pass
    assert len(search._hits) < 600
    assert search.best(1) == [7]
