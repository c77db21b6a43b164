"""Folding: spellings that a reader takes for one word become one word."""

import pytest

from token_broker.memory.words.folding import MAX_FOLDED_CHARS, fold, fold_turn

ALIKE = [
    ("İstanbul", "istanbul"),
    ("ISPARTA", "ısparta"),
    ("می\u200cخواهم", "میخواهم"),
    ("مُحَمَّد", "محمد"),
    ("مـــحمد", "محمد"),
    ("كتاب", "کتاب"),
    ("على", "علی"),
    ("أحمد", "احمد"),
    ("مدرسة", "مدرسه"),
    ("Linden\u00adstraße", "LINDENSTRASSE"),
    ("straße", "STRASSE"),
    ("۱۲۳", "123"),
    ("١٢٣", "१२३"),
    ("ﾗｰﾒﾝ", "ラーメン"),
    ("Ёлка", "елка"),
    ("Άνθρωπος", "ΑΝΘΡΩΠΟΣ"),
    ("לָהֲקָה", "להקה"),
    ("हँस", "हंस"),
    ("Đặng", "dang"),
    ("Łódź", "LODZ"),
    ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
    ("\u1112\u1161\u11ab", "한"),
    ("ﬁn", "FIN"),
    ("e\u0301te\u0301", "été"),
    ("zero\u200bwidth", "zerowidth"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_variants_become_one(one: str, other: str) -> None:
    assert fold(one) == fold(other) != ""


def test_vowels_of_other_scripts_stay() -> None:
    assert fold("किताब") != fold("कतब")
    assert fold("ที่") != fold("ท")


def test_blanks_and_runs() -> None:
    assert fold(" L'été, c'est\n42% 🙂_ok ") == "l ete c est 42 ok"
    assert fold("用户ID是abc") == "用户 id 是 abc"
    assert fold("…!?") == ""


def test_turn_has_each_word_once_between_blanks() -> None:
    assert fold_turn("No, no: NO Tea!") == " no tea "
    assert len(fold_turn("word " * 10_000 + "end")) < MAX_FOLDED_CHARS
    assert "end" not in fold_turn("x" * MAX_FOLDED_CHARS + " end")
