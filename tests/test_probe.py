"""model/probe.py on features whose classes are known; model/probe_task.py on procedural clips and small folders."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from tiny import tiny_config

from model.batches import Batch, Batches
from model.data.clips import load_clips
from model.errors import ConfigError
from model.mae import JointTactileMAE
from model.probe import L2_GRID, L2_UNCHOSEN, AttentivePooling, Probe, attentive_probe, choose_l2, linear_probe, scores
from model.probe_task import UNSEEN, ProbeTask

LINEAR = ("probe/linear_accuracy", "probe/linear_balanced_accuracy")
ATTENTIVE = ("probe/attentive_accuracy", "probe/attentive_balanced_accuracy")


def blobs(per_class: int, distance: float, seed: int = 0, width: int = 6) -> tuple[torch.Tensor, np.ndarray]:
    """Features [3 * per_class, width] of 3 classes, whose centres are so far apart."""
    generator = torch.Generator().manual_seed(seed)
    classes = np.arange(3 * per_class) % 3
    centres = distance * torch.eye(3, width)
    return centres[torch.from_numpy(classes)] + torch.randn(3 * per_class, width, generator=generator), classes


# --- the classifiers -----------------------------------------------------------------------------------------------


def test_the_linear_probe_tells_separate_classes_apart_whatever_the_scale_of_the_features():
    features, classes = blobs(40, 8.0)
    test, truth = blobs(20, 8.0, seed=1)
    told = linear_probe(features, classes, np.arange(len(classes)), 3, test)
    assert (told == truth).all()
    scale, offset = torch.logspace(-4, 4, 6), torch.linspace(-50, 50, 6)
    moved = linear_probe(features * scale + offset, classes, np.arange(len(classes)), 3, test * scale + offset)
    assert np.array_equal(moved, told)


def test_a_feature_that_never_varies_does_no_harm():
    features, classes = blobs(40, 8.0)
    test, truth = blobs(20, 8.0, seed=1)
    features[:, 5], test[:, 5] = 3.0, 3.0
    assert (linear_probe(features, classes, np.arange(len(classes)), 3, test) == truth).all()


def test_the_penalty_is_weak_where_a_small_direction_tells_all():
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(120) % 3
    loud = 30 * torch.randn(120, 1, generator=generator).double()
    hidden = torch.cat([torch.nn.functional.one_hot(classes, 3) + loud, loud], dim=1)
    assert choose_l2(hidden, classes, np.repeat(np.arange(20), 6), 3) < 0.1


def test_of_penalties_that_do_equally_well_the_strongest_is_chosen():
    features, classes = blobs(40, 20.0)
    assert choose_l2(features.double(), torch.from_numpy(classes), np.repeat(np.arange(20), 6), 3) == max(L2_GRID)


def test_the_penalty_is_chosen_on_whole_groups_and_not_at_all_where_there_is_one():
    features, classes = blobs(12, 1.0)
    targets = torch.from_numpy(classes)
    assert choose_l2(features.double(), targets, np.zeros(len(classes), np.int64), 3) == L2_UNCHOSEN
    assert choose_l2(features.double(), targets, np.arange(len(classes)) // 4, 3) in L2_GRID


def test_the_penalty_is_chosen_where_the_groups_are_the_classes():
    features, classes = blobs(12, 1.0)  # no class of the left-out group is fitted
    assert choose_l2(features.double(), torch.from_numpy(classes), classes, 3) == L2_UNCHOSEN


def test_the_attentive_probe_finds_the_token_that_tells_the_class_and_the_mean_does_not():
    generator = torch.Generator().manual_seed(0)

    def clips(count):
        classes = torch.arange(count) % 2
        tokens = torch.randn(count, 16, 32, generator=generator)
        tokens[:, :, 1] *= 4
        tokens[:, :, 0] = 0.0
        place = torch.randint(16, (count,), generator=generator)
        tokens[torch.arange(count), place, 0] = 12.0  # marks the one that tells
        tokens[torch.arange(count), place, 1] = 8.0 * classes - 4.0
        return tokens, classes.numpy()

    (tokens, classes), (test, truth) = clips(600), clips(200)
    attentive = scores(attentive_probe(tokens, classes, 2, test), truth)[0]
    told = linear_probe(tokens.mean(dim=1), classes, np.arange(600), 2, test.mean(dim=1))
    linear = scores(told, truth)[0]
    assert attentive > 0.8
    assert attentive > linear + 0.1


def test_the_pooling_is_multi_head_attention_of_one_query():
    torch.manual_seed(0)
    pooling = AttentivePooling(96, 5)
    attention = torch.nn.MultiheadAttention(96, pooling.heads, bias=True, batch_first=True)
    torch.nn.init.zeros_(attention.in_proj_bias)
    with torch.no_grad():
        identity = torch.eye(96)
        attention.in_proj_weight.copy_(torch.cat((identity, pooling.key.weight, pooling.value.weight)))
        attention.in_proj_bias[2 * 96 :] = pooling.value.bias
        attention.out_proj.weight.copy_(identity)
        tokens = torch.randn(7, 11, 96)
        query = pooling.query.flatten().expand(7, 1, 96)
        read = attention(query, tokens, tokens)[0][:, 0]
        assert pooling.heads == 3
        assert torch.allclose(pooling(tokens), pooling.classify(pooling.norm(read)), atol=1e-5)


@pytest.mark.parametrize("width", [8, 32, 36, 96])
def test_equal_tokens_give_equal_answers_and_the_global_generator_is_left_alone(width):
    tokens = torch.randn(20, 4, width, generator=torch.Generator().manual_seed(0))
    classes = np.arange(20) % 3
    before = torch.get_rng_state()
    first = attentive_probe(tokens, classes, 3, tokens)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert np.array_equal(attentive_probe(tokens, classes, 3, tokens), first)


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(*(npst.arrays(np.int64, n, elements=st.integers(low, 3)) for low in (0, UNSEEN)))
    )
)
def test_balanced_accuracy_is_the_mean_recall_and_an_unseen_class_has_recall_0(pair):
    told, truth = pair
    accuracy, balanced = scores(told, truth)
    assert accuracy == pytest.approx(sum(a == b for a, b in zip(told, truth, strict=True)) / len(truth))
    recalls = [sum(told[truth == c] == c) / sum(truth == c) for c in set(truth.tolist())]
    assert balanced == pytest.approx(sum(recalls) / len(recalls))
    assert UNSEEN not in truth or recalls[sorted(set(truth.tolist())).index(UNSEEN)] in (0, *recalls)


# --- the probe of a model ------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Gives its input as tokens."""

    def encode_tokens(self, patches, sensors=None):
        return patches[:, :, 0]


def probed(config, model=None):
    clips = load_clips(config.data)
    batches = Batches(config, clips, torch.device("cpu"))
    return Probe(config, clips)(model or JointTactileMAE(config), batches.plain, batches.held_out)


def test_without_a_label_there_is_no_probe():
    assert probed(tiny_config()) == {}


def test_the_attentive_probe_can_be_left_out_and_changes_nothing_of_the_linear_one():
    both = probed(tiny_config(probe={"label": "motion"}))
    linear = probed(tiny_config(probe={"label": "motion", "attentive": False}))
    assert tuple(both) == (*LINEAR, *ATTENTIVE, "probe/chance_accuracy")
    assert tuple(linear) == (*LINEAR, "probe/chance_accuracy")
    assert linear == pytest.approx({name: both[name] for name in linear})
    assert all(0 <= value <= 1 for value in both.values())


def test_features_that_hold_the_label_are_told_right_and_chance_is_the_largest_training_class():
    config = tiny_config(probe={"label": "motion"}, data={"synthetic": {"sequences": 24}})
    clips = load_clips(config.data)
    motions = ("press", "slide", "twist")

    def labelled(side):
        def load(numbers):
            codes = [motions.index(side.labels(int(number))["motion"]) for number in numbers]
            return Batch(torch.nn.functional.one_hot(torch.tensor(codes), 12).float()[:, None, None].repeat(1, 2, 4, 1))

        return load

    row = Probe(config, clips)(Oracle(), labelled(clips.train), labelled(clips.held_out))
    assert {row[name] for name in LINEAR + ATTENTIVE} == {1.0}
    train, test = ([side.labels(n)["motion"] for n in range(len(side))] for side in (clips.train, clips.held_out))
    largest = max(motions, key=train.count)
    assert row["probe/chance_accuracy"] == pytest.approx(test.count(largest) / len(test))


# --- the task ------------------------------------------------------------------------------------------------------


def task_of(config):
    return ProbeTask.of(config.probe, load_clips(config.data))


def test_a_label_per_frame_is_that_of_the_last_frame_of_the_tube():
    config = tiny_config(probe={"label": "slip"})
    clips = load_clips(config.data)
    task = ProbeTask.of(config.probe, clips)
    assert task.names == ("False", "True")
    assert task.train.classes.tolist() == [int(clips.train.labels(n)["slip"][2]) for n in range(len(clips.train))]


def test_at_most_so_many_training_clips_are_used_from_all_over_the_set():
    task = task_of(tiny_config(probe={"label": "motion", "clips": 10}))
    assert task.train.numbers.tolist() == list(range(2, 50, 5))


def test_clips_of_one_sequence_are_one_group():
    task = task_of(tiny_config(probe={"label": "motion"}))
    assert task.groups.tolist() == [n // 5 for n in range(50)]


def test_an_unknown_label_is_refused_with_a_guess_and_the_choices():
    with pytest.raises(ConfigError) as caught:
        task_of(tiny_config(probe={"label": "slipp"}))
    message = str(caught.value)
    assert "probe.label = 'slipp': no clip has such a label; did you mean 'slip'?" in message
    assert "Known: indenter, motion, slip (depth_mm: measurements, which have no classes)" in message


def test_a_measurement_is_refused_and_the_labels_with_classes_are_named():
    with pytest.raises(ConfigError, match=r"'depth_mm' is a measurement .* use indenter, motion, slip"):
        task_of(tiny_config(probe={"label": "depth_mm"}))


def folder(root: Path, sequences: dict[str, str | None]) -> dict[str, object]:
    """Data fields of a folder of frames: sequence -> its `object`, None for a sequence without a label."""
    rows = ["sequence,object"]
    for place, (name, label) in enumerate(sequences.items()):
        (root / "frames" / name).mkdir(parents=True)
        for index in range(5):
            shade = np.full((16, 16, 3), 40 * place + 3 * index, np.uint8)
            Image.fromarray(shade).save(root / "frames" / name / f"{index}.png")
        if label is not None:
            rows.append(f"{name},{label}")
    if len(rows) > 1:
        (root / "labels.csv").write_text("\n".join(rows) + "\n")
    labels = root / "labels.csv" if len(rows) > 1 else None
    return {"source": "frames", "root": root / "frames", "labels": labels, "eval_fraction": 0.3}


def held_out_last(data: dict[str, object], name: str) -> dict[str, object]:
    """`data` with a split_seed that holds out the sequences (or group) of this name."""
    for seed in range(200):
        found = tiny_config(data=data | {"split_seed": seed})
        clips = load_clips(found.data)
        held_out = {clips.held_out.clip_id(n).partition(":")[0] for n in range(len(clips.held_out))}
        if all(sequence.startswith(name) for sequence in held_out):
            return data | {"split_seed": seed}
    raise AssertionError("no seed holds it out")


def test_frames_without_labels_cannot_be_probed(tmp_path):
    data = folder(tmp_path, {"a": None, "b": None})
    with pytest.raises(ConfigError, match=r"the clips have no labels; give them in a CSV file \(data\.labels\)"):
        task_of(tiny_config(data=data, probe={"label": "object"}))


def test_a_split_by_the_label_itself_is_refused_and_another_split_is_named(tmp_path):
    data = folder(tmp_path, {"cup_1": "cup", "cup_2": "cup", "pen_1": "pen", "can_1": "can"})
    data = held_out_last(data | {"group_pattern": "^(.+?)_"}, "cup")
    with pytest.raises(ConfigError, match=r"no training clip has \(cup\).*another data\.group_pattern"):
        task_of(tiny_config(data=data, probe={"label": "object"}))


def test_some_held_out_classes_that_training_lacks_are_counted_as_wrong_with_a_warning(tmp_path, caplog):
    sequences = {"a1": "cup", "a2": "cup", "b1": "pen", "b2": "pen", "z1": "can", "z2": "cup"}
    data = held_out_last(folder(tmp_path, sequences) | {"group_pattern": "^."}, "z")
    with caplog.at_level(logging.WARNING):
        task = task_of(tiny_config(data=data, probe={"label": "object"}))
    assert task.names == ("cup", "pen")
    assert task.held_out.classes.tolist() == [UNSEEN, UNSEEN, 0, 0]
    assert "2 of 4 held-out clips are of classes of 'object' that no training clip has (can)" in caplog.text


def test_sequences_without_a_label_are_left_out(tmp_path):
    data = folder(tmp_path, {"a1": "cup", "a2": None, "b1": "pen", "z1": "pen"})
    data = held_out_last(data | {"group_pattern": "^."}, "z")
    task = task_of(tiny_config(data=data, probe={"label": "object"}))
    assert (len(task.train.numbers), len(task.held_out.numbers)) == (4, 2)


def test_one_class_is_nothing_to_tell_apart(tmp_path):
    data = held_out_last(folder(tmp_path, {"a1": "cup", "a2": "cup", "z1": "cup"}), "z")
    with pytest.raises(ConfigError, match=r"'cup' in all 4 training clips: there is nothing to tell apart"):
        task_of(tiny_config(data=data, probe={"label": "object"}))


def test_a_label_on_one_side_only_is_refused(tmp_path):
    data = held_out_last(folder(tmp_path, {"a1": "cup", "a2": "pen", "z1": None}), "z")
    with pytest.raises(ConfigError, match="only one side of the split has clips with this label"):
        task_of(tiny_config(data=data, probe={"label": "object"}))
