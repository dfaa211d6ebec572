"""Ids of rows: a prefix that says what it is, and enough chance that nobody guesses or repeats one."""

import re

from service.ids import new_id


def test_an_id_is_its_prefix_and_thirteen_letters_that_cannot_be_misread() -> None:
    for _ in range(100):
        assert re.fullmatch(r"job-[0-9abcdefghjkmnpqrstvwxyz]{13}", new_id("job"))


def test_ids_do_not_repeat_and_every_letter_varies() -> None:
    ids = [new_id("try") for _ in range(2_000)]
    assert len(set(ids)) == len(ids)
    for place in range(4, 17):
        assert len({each[place] for each in ids}) == 32
