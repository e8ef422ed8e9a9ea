"""Counts of an epoch, and what is said where a config does not fit the training set."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model.errors import ConfigError
from model.plan import EpochPlan
from tests.tiny import tiny_config


@given(clips=st.integers(1, 500), batch_size=st.integers(1, 40), accum_iter=st.integers(1, 9))
def test_whole_updates_are_counted_and_leftovers_dropped(clips, batch_size, accum_iter):
    assume(batch_size * accum_iter <= clips)
    plan = EpochPlan.of(tiny_config(batch_size=batch_size, accum_iter=accum_iter), clips)
    left = list(range(clips))
    micro_batches = 0
    while len(left) >= batch_size:
        left, micro_batches = left[batch_size:], micro_batches + 1
    updates = 0
    while (updates + 1) * accum_iter <= micro_batches:
        updates += 1
    assert (plan.clips, plan.micro_batches, plan.updates) == (clips, micro_batches, updates)


def test_clips_per_epoch_shortens_the_epoch():
    plan = EpochPlan.of(tiny_config(data={"clips_per_epoch": 20}), 50)
    assert (plan.clips, plan.micro_batches, plan.updates) == (20, 2, 2)


def test_more_clips_per_epoch_than_there_are_says_how_many_there_are():
    with pytest.raises(ConfigError, match=r"data\.clips_per_epoch = 60, but the training set has 50 clips"):
        EpochPlan.of(tiny_config(data={"clips_per_epoch": 60}), 50)


def test_a_batch_larger_than_the_training_set_says_which_would_fit():
    with pytest.raises(ConfigError, match=r"batch_size = 64 is larger than the 50 training clips.*batch_size <= 50"):
        EpochPlan.of(tiny_config(batch_size=64), 50)


def test_an_accumulation_longer_than_an_epoch_says_which_would_fit():
    with pytest.raises(
        ConfigError, match=r"accum_iter = 7 is longer than an epoch of 6 micro-batches.*accum_iter <= 6"
    ):
        EpochPlan.of(tiny_config(accum_iter=7), 50)
