"""Reconstructions for the page: the pictures that the best trial and the equal weights left, or make from checkpoints.

A trial that trains to its end leaves `pictures/reconstruction.png` in its folder. Where it did not (`trainer.pictures`
was 0), `draw_missing` makes the picture from its checkpoint, once: it is kept in the results folder's `pictures/`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from model.errors import UserError, one_line
from sweep.report.data import SweepResults, TrialResult

PICTURE = Path("pictures") / "reconstruction.png"  # in a trial's folder
CHECKPOINT = Path("checkpoint") / "last.pt"
CLIPS = 4  # of a picture that is drawn here
LARGE = 1_500_000  # bytes: a larger picture is packed smaller, so that the page stays a page
MAX_WIDTH = 2400  # pixels of such a one
NO_PICTURE = "left no picture of its reconstructions: it has not trained to its end, or trainer.pictures is 0"


@dataclass(frozen=True)
class Picture:
    """An image of the page, or in its place a sentence. `source` is a data URI, empty where there is no image."""

    title: str
    text: str
    source: str = ""


def pictures(results: SweepResults) -> list[Picture]:
    """What the best trial makes of held-out clips, and beside it the equal weights; empty before there is a best."""
    return [_picture(results, trial, title) for trial, title in _shown(results)]


def draw_missing(results: SweepResults) -> Iterator[str]:
    """Draw the pictures that are missing and can be made from a checkpoint; a sentence before and about each.

    It needs the data and imports torch. A failure is a sentence too.
    """
    for trial, _ in _shown(results):
        checkpoint = results.folder / "trials" / trial.name / CHECKPOINT
        if _file(results, trial) is not None or not checkpoint.is_file():
            continue
        yield f"drawing reconstructions of trial {trial.name} from its checkpoint"
        try:
            _draw(checkpoint, _drawn(results, trial))
        except Exception as error:  # whatever torch or the data run into: the page goes without
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            yield f"no picture of trial {trial.name}: {kind}{one_line(error)}"


def _shown(results: SweepResults) -> list[tuple[TrialResult, str]]:
    """Trials with titles: the one that is the answer, and the equal weights."""
    if results.answered is None:
        return []
    best, what = results.answered
    equal = results.equal
    shown = [(best, f"Trial {best.name}, {what}" + (": the equal weights" if equal is best else ""))]
    return shown if equal is None or equal is best else [*shown, (equal, f"Trial {equal.name}, equal weights")]


def _picture(results: SweepResults, trial: TrialResult, title: str) -> Picture:
    file = _file(results, trial)
    if file is None:
        return Picture(title, f"It {_why_none(results, trial)}.")
    try:
        return Picture(title, "", _data_uri(file))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # PIL's for a damaged file
        return Picture(title, f"{file} cannot be shown ({error}).")


def _why_none(results: SweepResults, trial: TrialResult) -> str:
    if not (results.folder / "trials" / trial.name / CHECKPOINT).is_file():
        return f"{NO_PICTURE}; there is no checkpoint either to make one from"
    return (
        f"{NO_PICTURE}. python -m sweep.report {results.folder} makes one from its checkpoint, where the data are there"
    )


def _file(results: SweepResults, trial: TrialResult) -> Path | None:
    """The picture of a trial: its own, or one that was drawn since its checkpoint was written."""
    folder = results.folder / "trials" / trial.name
    if (folder / PICTURE).is_file():
        return folder / PICTURE
    try:
        drawn = _drawn(results, trial)
        return drawn if drawn.stat().st_mtime >= (folder / CHECKPOINT).stat().st_mtime else None
    except OSError:
        return None


def _drawn(results: SweepResults, trial: TrialResult) -> Path:
    return results.folder / "pictures" / f"{trial.name}.png"


def _data_uri(file: Path) -> str:
    content, kind = file.read_bytes(), "png"
    with Image.open(io.BytesIO(content)) as image:
        image.load()  # a damaged one is found here, not by the reader
        if len(content) > LARGE:
            smaller = image.convert("RGB")
            smaller.thumbnail((MAX_WIDTH, 16 * MAX_WIDTH))
            packed = io.BytesIO()
            smaller.save(packed, "webp", quality=85)
            content, kind = packed.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _draw(checkpoint: Path, out: Path) -> None:
    """The picture of a trained model. Raises UserError where its checkpoint or the data cannot be used."""
    from dataclasses import replace

    import numpy as np
    import torch

    from model.batches import Batches
    from model.data.clips import load_clips
    from model.export import read_run
    from model.pictures import reconstructions
    from model.sinks import write_picture

    run = read_run(checkpoint)
    # on the CPU: an accelerator may be busy with the sweep, and these are a few clips
    config = run.config.model_copy(update={"pictures": run.config.pictures or CLIPS, "device": "cpu"})
    clips = replace(load_clips(config.data), mean=np.array(run.mean, np.float32), std=np.array(run.std, np.float32))
    batches = Batches(config, clips, torch.device("cpu"))
    write_picture(out, reconstructions(run.model, config, clips, batches.held_out, clips.mean, clips.std))
