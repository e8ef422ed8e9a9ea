"""Mixtures: parts that are the same as alone, one numbering of clips over all, and draws by weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.configfile import validated
from model.data.clips import Clips, ClipSet, load_clips
from model.data.config import DataConfig
from model.data.mixture import PartClips, draw, parts_of, shares
from model.data.store import open_store
from model.errors import ConfigError, DataError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "gelsight_mini"
PRESSES = {"source": "synthetic", "synthetic": {"sequences": 5, "frames": 9}}


def folders(root: Path, lengths: dict[str, int], level: int) -> Path:
    """Frames whose grey level is `level` plus their index."""
    for name, length in lengths.items():
        (root / name).mkdir(parents=True)
        for index in range(length):
            Image.new("L", (8, 8), level + index).save(root / name / f"{index}.png")
    return root


def mixture(tmp_path: Path, **changes) -> DataConfig:
    """Frames of levels 0-9 (10 a sequence), 50-62 (13 a sequence, every second frame), and presses."""
    parts = [
        {"source": "frames", "root": folders(tmp_path / "low", dict.fromkeys("abcd", 10), 0)},
        {
            "name": "high",
            "source": "frames",
            "root": folders(tmp_path / "high", dict.fromkeys(("x_1", "x_2", "y_1", "y_2"), 13), 50),
            "frame_stride": 2,
            "clip_step": 3,
            "group_pattern": "^(.)",
            "sensor": "digit",
        },
        PRESSES,
    ]
    given = {"source": "mixture", "parts": parts, "image_size": 8, "store_dir": tmp_path / "store"}
    return DataConfig.model_validate({**given, **changes})


def refusal(**changes) -> str:
    content = {"source": "mixture", "parts": [PRESSES], **changes}
    with pytest.raises(ConfigError) as caught:
        validated(DataConfig, content, "run.yaml", "data")
    return str(caught.value)


def ids(side: ClipSet) -> list[str]:
    return [side.clip_id(number) for number in range(len(side))]


# --- the config ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parts": []}, "source = 'mixture' needs parts, the list of its sources (at least one)"),
        ({"source": "synthetic"}, "parts are given, but source = 'synthetic'; set source to 'mixture'"),
        ({"parts": [{"source": "mixture"}]}, "source = 'mixture' within a mixture"),
        ({"parts": [{**PRESSES, "name": "a"}, {**PRESSES, "name": "a"}]}, "two parts have the name 'a'"),
        ({"parts": [PRESSES, {**PRESSES, "name": "synthetic"}]}, "two parts have the name 'synthetic'"),
        ({"parts": [{**PRESSES, "name": "a/b"}]}, "parts.0.name: 'a/b' begins the names of sequences; use letters"),
        ({"parts": [{**PRESSES, "weight": 0}]}, "parts.0.weight = 0; must be greater than 0"),
        ({"parts": [{**PRESSES, "weight": 2}, PRESSES]}, "give each part a weight, or none"),
        ({"parts": [{"source": "tacquad"}]}, "source = 'tacquad' needs root, the folder that holds the data set"),
        ({"root": "x", "frame_stride": 2}, "root, frame_stride given beside source = 'mixture'"),
        ({"sensor": "x"}, "sensor given beside source = 'mixture', which has no frames of its own; put it into"),
        ({"labels": "x.csv"}, "labels given beside"),
        ({"group_pattern": "^(.)"}, "group_pattern given beside"),
        ({"synthetic": {"frames": 9}}, "synthetic given beside"),
        ({"clip_step": 2}, "clip_step given beside"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused_with_the_remedy(changes, said):
    message = refusal(**changes)
    assert message.startswith("run.yaml: data")
    assert said in message


def test_parts_have_their_names_or_those_of_their_kinds():
    named = [PRESSES, {**PRESSES, "name": "mine"}, PRESSES]
    assert DataConfig(source="mixture", parts=named).part_names == ("synthetic", "mine", "synthetic_3")


def test_a_mixture_survives_being_written_and_read(tmp_path):
    data = mixture(tmp_path)
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data
    assert DataConfig.model_validate_json(data.model_dump_json()) == data


# --- clips ---


def test_a_part_has_the_store_and_the_clips_that_it_has_alone(tmp_path):
    data = mixture(tmp_path, eval_clips=10_000)
    clips = load_clips(data)
    at = 0
    for part in parts_of(data):
        alone = load_clips(part.data)
        count = len(alone.train)
        assert [part.prefix + name for name in ids(alone.train)] == ids(clips.train)[at : at + count]
        np.testing.assert_array_equal(
            alone.train.gather(np.arange(count)), clips.train.gather(np.arange(at, at + count))
        )
        at += count
    assert at == len(clips.train)
    stores = [path.name for path in (tmp_path / "store").iterdir() if not path.name.startswith(".")]
    assert len(stores) == 3
    assert clips.num_sequences == 4 + 4 + 5
    assert clips.skipped == ()


def test_a_batch_over_several_parts_holds_the_frames_that_its_ids_name(tmp_path):
    clips = load_clips(mixture(tmp_path))
    numbers = np.random.default_rng(0).permutation(len(clips.train))
    frames = clips.train.gather(numbers)
    assert frames.shape == (len(numbers), 4, 8, 8, 3)
    seen = set()
    for number, levels in zip(numbers, frames[:, :, 0, 0, 0].tolist(), strict=True):
        sequence, _, start = clips.train.clip_id(number).rpartition(":")
        part = sequence.partition("/")[0]
        seen.add(part)
        if part == "frames":
            assert levels == [int(start) + frame for frame in range(4)]
        elif part == "high":
            assert int(start) % 3 == 0
            assert levels == [50 + int(start) + 2 * frame for frame in range(4)]
    assert seen == {"frames", "high", "synthetic"}


def test_every_part_is_split_by_its_own_groups_and_labels_and_sensors_stay_with_their_part(tmp_path):
    clips = load_clips(mixture(tmp_path, eval_fraction=0.4, eval_clips=1000))
    sides = [{name.partition(":")[0] for name in ids(side)} for side in (clips.train, clips.held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert {len({name for name in side if name.startswith("high/")}) for side in sides} == {2}
    for side in sides:
        assert {name.partition("/")[0] for name in side} == {"frames", "high", "synthetic"}
        assert len({name[5] for name in side if name.startswith("high/")}) == 1
    assert clips.sensors == ("default", "digit")
    for number, name in enumerate(ids(clips.train)):
        (place,) = clips.train.sensor_of(np.array([number]))
        assert clips.sensors[place] == ("digit" if name.startswith("high/") else "default")
        assert ("indenter" in clips.train.labels(number)) == name.startswith("synthetic/")


def test_held_out_clips_lie_evenly_over_all_parts(tmp_path):
    data = mixture(tmp_path)
    everything = ids(load_clips(data.model_copy(update={"eval_clips": 1000})).held_out)
    cut = ids(load_clips(data.model_copy(update={"eval_clips": 5})).held_out)
    places = [everything.index(name) for name in cut]
    assert len(cut) == 5
    assert max(np.diff(places)) - min(np.diff(places)) <= 1
    assert {name.partition("/")[0] for name in cut} == {"frames", "high", "synthetic"}


def test_statistics_are_over_all_training_frames_of_all_parts(tmp_path):
    data = mixture(tmp_path)
    clips = load_clips(data)
    names = {name.partition(":")[0] for name in ids(clips.train)}
    frames = []
    for part in parts_of(data):
        store = open_store(part.data)
        runs = [run for run in store.sequences if part.prefix + run.name in names]
        frames += [store.frames[run.first : run.first + run.length] for run in runs]
    frames = np.concatenate(frames) / 255
    np.testing.assert_allclose(clips.mean, frames.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(clips.std, frames.std(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(clips.mean_frame, frames.mean(axis=0), rtol=1e-5)


def test_a_mixture_of_one_differs_from_the_part_alone_in_its_names_only(tmp_path):
    alone = load_clips(DataConfig.model_validate({**PRESSES, "image_size": 8, "store_dir": tmp_path}))
    only = load_clips(
        DataConfig.model_validate({"source": "mixture", "parts": [PRESSES], "image_size": 8, "store_dir": tmp_path})
    )
    assert ids(only.train) == [f"synthetic/{name}" for name in ids(alone.train)]
    for name in ("mean", "std", "mean_frame"):
        np.testing.assert_array_equal(getattr(only, name), getattr(alone, name))


def test_what_is_wrong_with_a_part_is_said_with_its_name(tmp_path):
    data = mixture(tmp_path)
    broken = [part.model_copy(update={"frame_stride": 9}) if part.name == "high" else part for part in data.parts]
    with pytest.raises(DataError, match=r"^high: a clip spans 28 frames.*longest sequence, 'x_1', has 13"):
        load_clips(data.model_copy(update={"parts": tuple(broken)}))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real GelSight frames are not beside the checkout")
def test_real_frames_and_presses_mix(tmp_path):
    (tmp_path / "root").mkdir()
    for folder in sorted((REAL / "frames").iterdir())[:6]:
        (tmp_path / "root" / folder.name).symlink_to(folder)
    real = {"source": "frames", "root": tmp_path / "root", "group_pattern": "^(.+?)__", "sensor": "gelsight_mini"}
    content = {"source": "mixture", "parts": [real, PRESSES], "image_size": 16, "store_dir": tmp_path / "store"}
    clips = load_clips(DataConfig.model_validate(content))
    assert clips.sensors == ("default", "gelsight_mini")
    assert [name.partition("/")[0] for name in ids(clips.train)[:: len(clips.train) - 1]] == ["frames", "synthetic"]
    levels = clips.train.gather(np.arange(0, len(clips.train), 7)).mean(axis=(1, 2, 3))
    assert np.abs(levels / 255 - clips.mean).max() < 0.15  # no clip is blank or of something else


# --- the clips of an epoch ---


class Shuffled:
    """A seeded permutation function."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    def __call__(self, count: int) -> np.ndarray:
        return self._random.permutation(count)


PARTS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 100)), min_size=1, max_size=5)


def consecutive(parts: list[tuple[int, float | None]]) -> list[PartClips]:
    firsts = np.cumsum([0, *(clips for clips, _ in parts)]).tolist()
    return [PartClips(first, clips, weight) for first, (clips, weight) in zip(firsts, parts, strict=False)]


@given(total=st.integers(0, 10_000), weights=st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=8))
def test_shares_sum_to_the_whole_and_each_is_within_one_of_its_exact_share(total, weights):
    counts = shares(total, weights)
    assert sum(counts) == total
    largest = max(weights)
    whole = sum(weight / largest for weight in weights)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * (weight / largest) / whole) < 1 + 1e-6


def test_shares_give_what_is_left_to_the_largest_remainders():
    assert shares(10, [1, 1, 1]) == [4, 3, 3]
    assert shares(7, [0.5, 0.3, 0.2]) == [4, 2, 1]  # 3.5, 2.1, 1.4


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=5), share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_without_weights_the_draw_is_the_permutation_of_all_clips(counts, share, seed):
    num_clips = sum(counts)
    clips = max(1, int(share * num_clips))
    parts = consecutive([(count, None) for count in counts])
    expected = Shuffled(seed)(num_clips)[:clips]
    np.testing.assert_array_equal(draw(parts, clips, Shuffled(seed)), expected)


@given(
    parts=PARTS,
    clips=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_with_weights_every_part_has_its_share_and_no_clip_comes_again_before_all_of_its_part_came(parts, clips, seed):
    drawn = draw(consecutive(parts), clips, Shuffled(seed))
    assert drawn.dtype == np.int64
    expected = shares(clips, [weight for _, weight in parts])
    assert len(drawn) == clips
    for part, count in zip(consecutive(parts), expected, strict=True):
        of_part = drawn[(drawn >= part.first) & (drawn < part.first + part.clips)]
        assert len(of_part) == count
        uses = np.bincount(of_part - part.first, minlength=part.clips)
        assert uses.max() - uses.min() <= 1


def test_weighted_parts_are_mixed_throughout_the_epoch():
    drawn = draw(consecutive([(300, 1.0), (20, 1.0)]), 400, Shuffled())
    second = (drawn >= 300).reshape(8, 50).mean(axis=1)
    assert (np.abs(second - 0.5) < 0.3).all()


def test_clips_draw_by_the_weights_of_their_parts(tmp_path):
    data = mixture(tmp_path)
    plain = load_clips(data)
    np.testing.assert_array_equal(plain.draw(9, Shuffled(3)), Shuffled(3)(len(plain.train))[:9])
    weights = (3.0, 2.0, 1.0)
    parts = [part.model_copy(update={"weight": weight}) for part, weight in zip(data.parts, weights, strict=True)]
    clips: Clips = load_clips(data.model_copy(update={"parts": tuple(parts)}))
    drawn = clips.draw(100, Shuffled())
    names = [clips.train.clip_id(number).partition("/")[0] for number in drawn]
    counts = [names.count(name) for name in ("frames", "high", "synthetic")]
    assert counts == shares(100, [3, 2, 1])
