"""Clips: where they start, how they are split, what is said where there are none."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.clips import clip_starts, frame_span, load_clips
from model.data.config import DataConfig, SyntheticConfig
from model.data.split import split
from model.data.store import Sequence, open_store
from model.errors import DataError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "gelsight_mini"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real GelSight frames are not beside the checkout")


def synthetic(tmp_path: Path, sequences: int = 6, frames: int = 8, **changes) -> DataConfig:
    config = SyntheticConfig(sequences=sequences, frames=frames)
    return DataConfig(**{"synthetic": config, "image_size": 16, "store_dir": tmp_path / "store", **changes})


def frame_folders(
    tmp_path: Path, sequences: dict[str, int], level=lambda sequence, index: index, **changes
) -> DataConfig:
    for number, (name, length) in enumerate(sequences.items()):
        (tmp_path / "root" / name).mkdir(parents=True)
        for index in range(length):
            Image.new("L", (8, 8), level(number, index)).save(tmp_path / "root" / name / f"{index}.png")
    given = {"source": "frames", "root": tmp_path / "root", "image_size": 8, "store_dir": tmp_path / "store"}
    return DataConfig(**{**given, **changes})


def names(clips) -> set[str]:
    return {clips.clip_id(number).rpartition(":")[0] for number in range(len(clips))}


def runs(*sequence_names: str) -> list[Sequence]:
    return [Sequence(name, 0, 10 * number, 10) for number, name in enumerate(sequence_names)]


@given(length=st.integers(0, 60), stride=st.integers(1, 8), step=st.integers(1, 8))
def test_clips_stay_within_their_sequence_and_every_start_that_fits_is_used(length, stride, step):
    data = DataConfig(frame_stride=stride, clip_step=step)
    starts = clip_starts(length, data).tolist()
    assert frame_span(data) == 3 * stride + 1
    assert starts == [start for start in range(0, length, step) if start + 3 * stride < length]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=4, max_size=8),
    stride=st.integers(1, 2),
    step=st.integers(1, 3),
)
@settings(deadline=None, max_examples=15)
def test_gathered_clips_are_frames_of_one_sequence_in_order(lengths, stride, step, tmp_path_factory):
    lengths = [*lengths, 9, 9]
    data = frame_folders(
        tmp_path_factory.mktemp("clips"),
        {f"s{number}": length for number, length in enumerate(lengths)},
        level=lambda sequence, index: 16 * sequence + index,
        frame_stride=stride,
        clip_step=step,
    )
    clips = load_clips(data)
    for side in (clips.train, clips.held_out):
        frames = side.gather(np.arange(len(side)))
        assert frames.shape == (len(side), 4, 8, 8, 3)
        assert frames.dtype == np.uint8
        for number, clip in enumerate(frames[:, :, 0, 0, 0].astype(int)):
            name, _, start = side.clip_id(number).rpartition(":")
            first = 16 * int(name[1:]) + int(start)
            assert clip.tolist() == [first + stride * frame for frame in range(4)]
    num_clips = sum(len(range(0, length - 3 * stride, step)) for length in lengths)
    assert len(clips.train) + len(clips.held_out) == num_clips


@given(
    sequence_names=st.sets(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=20),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_the_split_is_disjoint_whole_and_does_not_depend_on_the_order_of_files(sequence_names, fraction, seed):
    data = DataConfig(eval_fraction=fraction, split_seed=seed)
    ordered = sorted(sequence_names)
    train, held_out = split(runs(*ordered), data)
    assert train
    assert held_out
    assert sorted(s.name for s in train + held_out) == ordered
    assert abs(len(held_out) - fraction * len(ordered)) <= 1
    again = split(list(reversed(runs(*ordered))), data)[1]
    assert {s.name for s in again} == {s.name for s in held_out}


def test_another_split_seed_gives_another_split():
    sequences = runs(*(f"s{number}" for number in range(20)))
    splits = {tuple(s.name for s in split(sequences, DataConfig(split_seed=seed))[1]) for seed in range(5)}
    assert len(splits) > 1


@given(seed=st.integers(0, 200))
def test_a_group_stays_on_one_side(seed):
    sequences = runs(*(f"{item}__exp{number}" for item in ("cup", "pen", "box") for number in range(3)))
    sides = split(sequences, DataConfig(group_pattern="^(.+?)__", split_seed=seed))
    train, held_out = ({s.name.partition("__")[0] for s in side} for side in sides)
    assert train.isdisjoint(held_out)
    assert train | held_out == {"cup", "pen", "box"}


def test_a_pattern_without_a_group_uses_all_of_its_match():
    train, held_out = split(runs("a1_x", "a2_x", "b1_x"), DataConfig(group_pattern="^[a-z]"))
    assert {frozenset(s.name for s in side) for side in (train, held_out)} == {
        frozenset({"a1_x", "a2_x"}),
        frozenset({"b1_x"}),
    }


def test_runs_of_one_sequence_stay_on_one_side(tmp_path):
    data = frame_folders(tmp_path, {"a": 20, "b": 20, "c": 20})
    for name in "abc":
        (tmp_path / "root" / name / "9.png").unlink()
    for seed in range(6):
        clips = load_clips(data.model_copy(update={"split_seed": seed}))
        assert names(clips.train).isdisjoint(names(clips.held_out))
        assert {clips.train.clip_id(0).partition(":")[2], clips.train.clip_id(6).partition(":")[2]} == {"0", "10"}


def test_held_out_clips_are_cut_to_an_even_spread_of_at_most_eval_clips(tmp_path):
    data = synthetic(tmp_path, sequences=10, frames=13, eval_fraction=0.5)
    everything = load_clips(data.model_copy(update={"eval_clips": 1000})).held_out
    cut = load_clips(data.model_copy(update={"eval_clips": 7})).held_out
    assert (len(everything), len(cut)) == (50, 7)
    order = [everything.clip_id(number) for number in range(50)]
    places = [order.index(cut.clip_id(number)) for number in range(7)]
    assert set(np.diff(places)) <= {7, 8}
    np.testing.assert_array_equal(cut.gather(np.arange(7)), everything.gather(np.array(places)))


def test_labels_of_a_clip_are_those_of_its_sequence_and_of_its_four_frames(tmp_path):
    data = synthetic(tmp_path, frame_stride=2)
    clips = load_clips(data)
    sequences = {s.name: s for s in open_store(data).sequences}
    for number in range(len(clips.train)):
        name, _, start = clips.train.clip_id(number).rpartition(":")
        labels, whole = clips.train.labels(number), sequences[name].labels
        assert labels["indenter"] == whole["indenter"]
        assert labels["depth_mm"] == whole["depth_mm"][int(start) : int(start) + 7 : 2]
    assert load_clips(frame_folders(tmp_path, {"a": 5, "b": 5})).train.labels(0) == {}


def test_statistics_are_those_of_the_training_frames_alone(tmp_path):
    data = synthetic(tmp_path)
    clips, store = load_clips(data), open_store(data)
    kept = [s for s in store.sequences if s.name in names(clips.train)]
    frames = np.concatenate([store.frames[s.first : s.first + s.length] for s in kept]) / 255
    np.testing.assert_allclose(clips.mean, frames.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(clips.std, frames.std(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(clips.mean_frame, frames.mean(axis=0), rtol=1e-5)
    assert clips.mean.dtype == clips.std.dtype == clips.mean_frame.dtype == np.float32


def test_statistics_are_kept_beside_the_frames_and_computed_again_where_damaged(tmp_path):
    data = synthetic(tmp_path)
    first = load_clips(data)
    (kept,) = open_store(data).folder.glob("statistics-*.npy")
    moments = np.load(kept)
    np.save(kept, moments * 0 + 0.25)
    assert load_clips(data).mean == pytest.approx(0.25)
    kept.write_bytes(b"damaged")
    np.testing.assert_array_equal(load_clips(data).mean_frame, first.mean_frame)


def test_constant_images_have_a_standard_deviation_that_can_be_divided_by(tmp_path):
    clips = load_clips(frame_folders(tmp_path, {"a": 5, "b": 5}, level=lambda *_: 77))
    assert clips.mean == pytest.approx(77 / 255)
    assert clips.std == pytest.approx(1 / 255)


def test_sequences_that_are_too_short_are_left_out_and_counted_in_one_message(tmp_path, caplog):
    data = frame_folders(tmp_path, {"a": 4, "b": 5, "c": 3, "d": 1})
    with caplog.at_level(logging.WARNING):
        clips = load_clips(data)
    assert names(clips.train) | names(clips.held_out) == {"a", "b"}
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 sequences are shorter than the 4 frames of a clip and are left out"
    ]


def test_only_short_sequences_are_refused_with_the_longest_length_and_the_remedy(tmp_path):
    data = frame_folders(tmp_path, {"a": 6, "b": 9}, frame_stride=3)
    with pytest.raises(DataError, match=r"spans 10 frames.*'b', has 9 .*smaller data\.frame_stride \(now 3\)"):
        load_clips(data)


def test_a_single_sequence_cannot_be_split_and_the_error_says_so(tmp_path):
    with pytest.raises(DataError, match=r"only one sequence, 'a'.*record more"):
        load_clips(frame_folders(tmp_path, {"a": 10}))


def test_a_pattern_that_makes_one_group_or_does_not_match_is_refused():
    with pytest.raises(
        DataError, match=r"'\^\(\.\)' puts all sequences into one group, 'a'.*another data\.group_pattern"
    ):
        split(runs("a1", "a2"), DataConfig(group_pattern="^(.)"))
    with pytest.raises(DataError, match="does not match the sequence 'pen'"):
        split(runs("cup__1", "pen"), DataConfig(group_pattern="^(.+?)__"))


def test_a_clip_beyond_the_last_is_an_index_error(tmp_path):
    clips = load_clips(synthetic(tmp_path))
    with pytest.raises(IndexError):
        clips.train.gather(np.array([len(clips.train)]))


@needs_real
def test_all_real_sequences_load_and_split_by_object(tmp_path):
    data = DataConfig(
        source="frames",
        root=REAL / "frames",
        image_size=32,
        store_dir=tmp_path,
        group_pattern="^(.+?)__",
        eval_clips=10_000,
    )
    clips = load_clips(data)
    assert len(names(clips.train) | names(clips.held_out)) == 53
    assert len(clips.train) + len(clips.held_out) == 5010 - 53 * 3
    objects = [{name.partition("__")[0] for name in names(side)} for side in (clips.train, clips.held_out)]
    assert objects[0].isdisjoint(objects[1])
    np.testing.assert_allclose(clips.mean * 255, [68, 98, 115], atol=8)
