"""The contract of a sink."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from model.metrics import BATCH_NAMES, EPOCH_COLUMNS, Level
from model.sinks import Event, Sink

Rows = list[dict[str, float]]


class Kept(NamedTuple):
    """What a closed sink has kept."""

    batch: Rows
    epoch: Rows
    summary: dict[str, float]


class SinkContract:
    """What every `model.sinks.Sink` keeps to: each event once, in order, to the last bit.

    class TestMySink(SinkContract):
        @pytest.fixture
        def sink(self, tmp_path: Path) -> Sink:
            return MySink(tmp_path)

        @pytest.fixture
        def kept(self, tmp_path: Path) -> Callable[[], Kept]:
            return lambda: Kept(*my_reader(tmp_path))
    """

    @pytest.fixture
    def sink(self) -> Sink:
        raise NotImplementedError

    @pytest.fixture
    def kept(self) -> Callable[[], Kept]:
        raise NotImplementedError

    def test_each_event_is_kept_once_in_order_and_exactly(self, sink: Sink, kept: Callable[[], Kept]) -> None:
        events = [batch(0), batch(1), epoch(0), batch(2), batch(3), epoch(1), SUMMARY]
        for event in events:
            sink.log(event)
        sink.close(0)
        assert kept() == Kept(
            [dict(event.values) for event in events if event.level is Level.BATCH],
            [dict(event.values) for event in events if event.level is Level.EPOCH],
            dict(SUMMARY.values),
        )

    def test_a_metric_that_was_not_computed_is_absent(self, sink: Sink, kept: Callable[[], Kept]) -> None:
        sink.log(Event(Level.BATCH, {"batch/iteration": 0, "batch/loss_total": 0.5}))
        sink.log(Event(Level.EPOCH, {"epoch": 0}))
        sink.close(0)
        assert kept()[:2] == ([{"batch/iteration": 0, "batch/loss_total": 0.5}], [{"epoch": 0}])

    def test_the_row_of_a_diverged_update_is_kept(self, sink: Sink, kept: Callable[[], Kept]) -> None:
        sink.log(Event(Level.BATCH, {"batch/iteration": 0, "batch/loss_total": math.nan, "batch/loss_pred": math.inf}))
        sink.close(1)
        [row] = kept().batch
        assert math.isnan(row["batch/loss_total"])
        assert row["batch/loss_pred"] == math.inf

    def test_what_a_failed_trial_logged_is_kept(self, sink: Sink, kept: Callable[[], Kept]) -> None:
        sink.log(batch(0))
        sink.close(1)
        assert kept().batch == [dict(batch(0).values)]

    def test_pictures_are_taken_and_are_no_rows(self, sink: Sink, kept: Callable[[], Kept]) -> None:
        sink.log(epoch(0))
        for shade in (0, 200):
            sink.picture("reconstructions", np.full((4, 6, 3), shade, np.uint8))
        sink.close(0)
        assert kept().epoch == [dict(epoch(0).values)]

    def test_the_event_stays_as_it_was_for_the_next_sink(self, sink: Sink) -> None:
        event = batch(0)
        before = dict(event.values)
        sink.log(event)
        sink.close(0)
        assert event.values == before


def batch(iteration: int) -> Event:
    """A full row, with values that differ in every column and are no short decimals."""
    values: dict[str, float] = {name: (iteration + 1) / (column + 3) for column, name in enumerate(BATCH_NAMES)}
    return Event(Level.BATCH, {**values, "batch/iteration": iteration, "batch/epoch": iteration // 2})


def epoch(number: int) -> Event:
    values: dict[str, float] = {name: math.sqrt(number + column + 2) for column, name in enumerate(EPOCH_COLUMNS)}
    return Event(Level.EPOCH, {**values, "epoch": number})


SUMMARY = Event(Level.SUMMARY, {"summary/best_epoch": 1, "summary/best_loss": 1 / 3})
