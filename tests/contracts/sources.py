"""The contract of a data source."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model.data.base import Fault, Source

SIZE = (12, 16)


class SourceContract:
    """What every `model.data.base.Source` keeps to.

    class TestMySource(SourceContract):
        @pytest.fixture
        def make_source(self, tmp_path: Path) -> Callable[[], Source]:
            write_frames(tmp_path)    # at least two sequences, nothing damaged
            return lambda: MySource(tmp_path)
    """

    @pytest.fixture
    def make_source(self) -> Callable[[], Source]:
        raise NotImplementedError

    def test_sequences_have_names_of_their_own_and_are_found_in_the_same_order(
        self, make_source: Callable[[], Source]
    ) -> None:
        names = make_source().sequences
        assert len(names) == len(set(names)) > 1
        assert make_source().sequences == names

    def test_frames_are_rgb_of_the_asked_size_in_order_of_their_positions(
        self, make_source: Callable[[], Source]
    ) -> None:
        source = make_source()
        for number in range(len(source.sequences)):
            found = read(source, number)
            positions = [position for position, _ in found]
            assert positions == sorted(set(positions))
            assert positions
            for _, frame in found:
                assert not isinstance(frame, Fault), frame
                assert (frame.shape, frame.dtype) == ((*SIZE, 3), np.uint8)

    def test_reading_again_gives_the_same_frames_by_any_number_of_threads(
        self, make_source: Callable[[], Source]
    ) -> None:
        one, two = read(make_source(), 0, threads=1), read(make_source(), 0, threads=3)
        assert [position for position, _ in one] == [position for position, _ in two]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one, two, strict=True))

    def test_the_identity_is_json_and_stays_while_nothing_changes(self, make_source: Callable[[], Source]) -> None:
        identity = make_source().identity()
        assert json.loads(json.dumps(identity)) == json.loads(json.dumps(make_source().identity()))

    def test_labels_are_one_value_or_one_for_each_position(self, make_source: Callable[[], Source]) -> None:
        source = make_source()
        for number in range(len(source.sequences)):
            last = read(source, number)[-1][0]
            for label in source.labels(number).values():
                assert not isinstance(label, list) or len(label) > last

    def test_the_number_of_frames_is_about_right(self, make_source: Callable[[], Source]) -> None:
        source = make_source()
        there = sum(len(read(source, number)) for number in range(len(source.sequences)))
        assert 0.5 * there <= source.num_frames() <= 2 * there
        assert source.num_units > 0


def read(source: Source, number: int, threads: int = 2) -> list:
    with ThreadPoolExecutor(threads) as pool:
        return list(source.read(number, SIZE, pool))
