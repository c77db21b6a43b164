"""When a talk ends that the model has ended. Times are seconds."""

import pytest

from token_broker.relay.answers.farewell import Farewell

OWN, OTHER = frozenset({"end"}), frozenset({"look_up"})


@pytest.mark.parametrize(
    ("batches", "spoke", "holds"),
    [
        ([OWN], True, True),  # the goodbye was said
        ([OWN], False, False),  # it is asked for
        ([OWN | OTHER], True, False),  # the answer to the other tool comes first
        ([OWN, OTHER], True, False),
        ([], True, True),
    ],
)
def test_no_second_goodbye(batches: list[frozenset[str]], *, spoke: bool, holds: bool) -> None:
    farewell = Farewell()
    assert not farewell.holds(list(batches), spoke=spoke)
    farewell.ask("end")
    assert farewell.holds(list(batches), spoke=spoke) is holds


@pytest.mark.parametrize(
    ("now_s", "batches", "answering", "spoke", "over"),
    [
        (7.5, [OWN], False, True, True),  # 7 s of goodbye, and half a second for the client
        (7.4, [OWN], False, True, False),
        (9.0, [OWN], True, True, False),
        (9.0, [OWN, OTHER], False, True, False),
        (9.0, [OWN], False, False, False),  # the model is still asked for its goodbye
        (9.0, [], False, False, True),  # it said nothing that could be heard
    ],
)
def test_end_after_the_goodbye_was_played(
    now_s: float, batches: list[frozenset[str]], *, answering: bool, spoke: bool, over: bool
) -> None:
    farewell = Farewell()
    told = {"answering": answering, "spoke": spoke}
    assert not farewell.is_over(now_s, list(batches), plays_until_s=7.0, **told)
    farewell.ask("end")
    assert farewell.is_over(now_s, list(batches), plays_until_s=7.0, **told) is over
    farewell.take_back()
    assert not farewell.is_over(99.0, list(batches), plays_until_s=7.0, **told)
