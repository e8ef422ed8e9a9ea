"""sweep/sweep_diagnosis.py: which rules fire where in a search space, on trials whose findings are given."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.diagnosis import MADE_UP, Finding
from sweep.limits import Rule, Severity
from sweep.sweep_diagnosis import CHANCE, NONE_NEEDED, DiagnosedTrial, fired_rules

INFO, WARNING, CRITICAL = Severity


def finding(rule=Rule.OSCILLATES, severity=WARNING, value=3.0, limit=2.0):
    return Finding(rule, severity, value, limit, 0, "")


def trials(values, fires, found=None):
    """Trials with these values; those for which `fires` have the finding."""
    return [
        DiagnosedTrial(f"{number:04}", each, [found or finding()] if fires(each) else [])
        for number, each in enumerate(values)
    ]


def space(count, seed=0):
    draw = random.Random(seed)
    return [
        {
            "alpha": draw.uniform(0.1, 0.9),
            "base_lr": 10 ** draw.uniform(-4, -1),
            "encoder.depth": draw.choice([1, 2, 4]),
            "weighting": draw.choice(["fixed", "famo"]),
        }
        for _ in range(count)
    ]


def where(found):
    """The only fired rule's place, without its counts."""
    [fired] = found
    return fired.where.partition(" (")[0]


def test_a_ratio_that_the_weights_make_up_for_calls_for_no_other_weights():
    made_up = Finding(Rule.RATIO_LOW, WARNING, 0.45, 0.5, 1, f"the static task is too easy; alpha {MADE_UP}")
    needed = Finding(Rule.RATIO_LOW, WARNING, 0.45, 0.5, 1, "the static task is too easy: raise alpha")
    [low] = fired_rules(trials(space(4), lambda x: True, made_up))
    assert low.remedy == NONE_NEEDED
    [mixed] = fired_rules([DiagnosedTrial("0000", {}, [made_up]), DiagnosedTrial("0001", {}, [needed])])
    assert mixed.remedy == "raise alpha (lower beta)"


@pytest.mark.parametrize(
    ("fires", "place", "avoided"),
    [
        (lambda x: x["alpha"] > 0.7, "alpha above 0.7", "search alpha only up to 0.7"),
        (lambda x: x["base_lr"] < 1e-3, "base_lr up to 0.0009", "search base_lr only above 0.0009"),
        (lambda x: x["encoder.depth"] == 4, "encoder.depth above 2", "search encoder.depth only up to 2"),
        (lambda x: x["weighting"] == "famo", "weighting = famo", "leave weighting = famo out of the search"),
    ],
)
def test_the_part_of_the_space_where_a_rule_fires_is_named_with_how_to_keep_out_of_it(fires, place, avoided):
    found = fired_rules(trials(space(40), fires))
    assert where(found) == place
    assert found[0].remedy == f"{avoided}; or lower base_lr"
    count = sum(map(fires, space(40)))
    assert found[0].where.endswith(f"({count} of {count} trials there; 0 of {40 - count} elsewhere)")
    assert found[0].trials == [t.name for t in trials(space(40), fires) if t.findings]


def test_a_place_with_exceptions_is_still_found_and_the_exceptions_are_counted():
    values = [{"alpha": 0.05 * step} for step in range(1, 20)]
    odd = {0.05 * 3, 0.05 * 18}  # one fires outside, one does not inside
    found = fired_rules(trials(values, lambda x: (x["alpha"] > 0.7) is not (x["alpha"] in odd)))
    assert where(found) == "alpha above 0.7"
    assert "(5 of 6 trials there; 1 of 13 elsewhere)" in found[0].where


def test_a_limit_lies_between_trials_and_has_as_few_digits_as_can_be():
    values = [{"lr": x} for x in (0.0011, 0.0013, 0.0021, 0.0034, 0.0047, 0.01234, 0.01299, 0.02, 0.03, 0.05)]
    found = fired_rules(trials(values, lambda x: x["lr"] > 0.0125))
    assert where(found) == "lr above 0.0127"


def test_the_static_share_may_be_too_high_in_one_part_and_too_low_in_another():
    high, low = finding(Rule.STATIC_SHARE, CRITICAL, 0.9, 0.7), finding(Rule.STATIC_SHARE, WARNING, 0.32, 0.35)
    values = space(40)
    both = [DiagnosedTrial("t", x, [high] if x["alpha"] > 0.7 else [low] if x["alpha"] < 0.3 else []) for x in values]
    found = fired_rules(both)
    assert [(f.severity, f.where.partition(" (")[0]) for f in found] == [
        (CRITICAL, "alpha above 0.7"),
        (WARNING, "alpha up to 0.3"),
    ]
    assert "lower alpha" in found[0].remedy
    assert "raise alpha" in found[1].remedy


def test_a_rule_that_fires_everywhere_or_nearly_so_is_all_over_the_space():
    assert where(fired_rules(trials(space(20), lambda x: True))) == "all over the space"
    one = iter([False] + [True] * 19)
    assert where(fired_rules(trials(space(20), lambda x: next(one)))) == "all over the space"


def test_a_rule_that_fires_here_and_there_is_all_over_the_space_and_that_no_parameter_tells_is_said():
    often = iter([True, True, False, False] * 10)
    found = fired_rules(trials([{"alpha": i / 40} for i in range(40)], lambda x: next(often)))
    assert found[0].where == "all over the space (20 of 40 trials; no parameter tells them from the others)"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_few_trials_do_not_tell_where(count):
    found = fired_rules(trials(space(count), lambda x: x["alpha"] == space(count)[0]["alpha"]))
    assert where(found) == "too few trials to tell"


def test_a_rule_counts_where_it_fires_above_info_if_it_does_anywhere():
    levels = [INFO, WARNING, INFO, CRITICAL]
    found = fired_rules([DiagnosedTrial(level, {"alpha": 0.5}, [finding(severity=level)]) for level in levels])
    assert (found[0].severity, found[0].trials) == (CRITICAL, ["warning", "critical"])
    mild = fired_rules([DiagnosedTrial("a", {}, [finding(severity=INFO)]), DiagnosedTrial("b", {}, [])])
    assert (mild[0].severity, mild[0].trials) == (INFO, ["a"])


def test_the_most_severe_comes_first_then_the_most_frequent():
    rare, often, severe = (
        finding(Rule.JUMPS),
        finding(Rule.OSCILLATES),
        finding(Rule.NOT_FINITE, CRITICAL, float("nan")),
    )
    found = fired_rules(
        [DiagnosedTrial("a", {}, [rare, often]), DiagnosedTrial("b", {}, [often]), DiagnosedTrial("c", {}, [severe])]
    )
    assert [f.rule for f in found] == [Rule.NOT_FINITE, Rule.OSCILLATES, Rule.JUMPS]


def test_nothing_fires_where_nothing_fires_and_where_there_is_no_trial():
    assert fired_rules([]) == []
    assert fired_rules(trials(space(5), lambda x: False)) == []


def test_values_of_any_kind_and_absent_ones_are_taken():
    values = [{"a": x, "gone": None, "only": 1} for x in (True, False, None, "x", 2, (3, 4))] * 5
    [fired] = fired_rules(trials(values, lambda x: x["a"] == (3, 4)))
    assert fired.where.startswith("a = (3, 4) (5 of 5 trials there; ")
    conditional = [{"b": number} if number % 2 else {"c": True} for number in range(30)]
    assert where(fired_rules(trials(conditional, lambda x: x.get("b", 0) > 15))) == "b above 15"


def test_chance_alone_hardly_ever_names_a_place():
    named = 0
    for seed in range(100):
        draw = random.Random(seed)
        found = fired_rules(trials(space(20, seed), lambda x, draw=draw: draw.random() < 0.4))
        named += any("there;" in each.where for each in found)
    assert named <= 100 * (CHANCE + 0.06)  # 2.8 standard deviations above


def test_ten_thousand_trials_are_placed_as_few_are():
    found = fired_rules(trials(space(10_000), lambda x: x["alpha"] > 0.7))
    assert found[0].where.startswith("alpha above 0.")
    inside = int(found[0].where.partition("(")[2].partition(" ")[0])
    assert inside == pytest.approx(2500, rel=0.1)


@given(
    st.lists(
        st.tuples(st.one_of(st.floats(allow_nan=False), st.integers(), st.booleans(), st.text()), st.booleans()),
        max_size=12,
    )
)
def test_every_space_gives_a_sentence_and_the_names_of_the_trials(given_trials):
    made = [
        DiagnosedTrial(str(number), {"x": value}, [finding()] if fires else [])
        for number, (value, fires) in enumerate(given_trials)
    ]
    for fired in fired_rules(made):
        assert fired.where
        assert fired.trials == [trial.name for trial in made if trial.findings]
