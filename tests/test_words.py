"""Numbers and lists in words."""

from __future__ import annotations

import pytest

from sweep.words import duration, few, last_word, number


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.04 s"),
        (0, "0 s"),
        (40.4, "40 s"),
        (123, "2 min 03 s"),
        (750, "12 min"),
        (3900, "1 h 05 min"),
        (47 * 3600, "47 h 00 min"),
        (100 * 3600, "4.17 days"),
    ],
)
def test_durations_are_in_a_unit_that_one_can_grasp(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.123456, "0.1235"), (12, "12"), (None, "-"), ("adamw", "adamw")])
def test_numbers_have_4_digits(value: object, text: str) -> None:
    assert number(value) == text


def test_of_many_things_the_first_are_named_and_the_others_counted() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few(range(8), "; ") == "0; 1; 2; 3; 4 and 3 more"


def test_the_last_word_of_a_metric_is_its_name_without_its_group() -> None:
    assert last_word("eval/loss_total") == "loss_total"
    assert last_word("loss_total") == "loss_total"
