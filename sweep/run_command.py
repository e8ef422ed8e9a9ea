"""The command line of `python -m sweep.run`; who sends a sweep elsewhere (sweep/submit.py) reads it too."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.run`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.run",
        description="Run a hyperparameter sweep of the joint tactile MAE: Ray Tune, Optuna, Weights & Biases.",
        epilog="example: python -m sweep.run sweeps/alpha_beta.yaml --set run_cap=32 --results results/first",
    )
    result.add_argument("spec", type=Path, help="sweep file, in W&B's sweep language and ours")
    result.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the spec, repeatable",
    )
    result.add_argument(
        "--results",
        metavar="PLACE",
        help="results folder, or s3://bucket/folder, or gs://... (default: the spec's results, else results/<name>)",
    )
    result.add_argument("--resume", action="store_true", help="go on with the sweep in the results folder")
    result.add_argument(
        "--resume-or-start",
        action="store_true",
        help="go on where the results folder holds the sweep, else start it: for schedulers that start a job again",
    )
    result.add_argument(
        "--address",
        metavar="ADDRESS",
        help="join a running Ray cluster: auto, or HOST:PORT of its head; absent: RAY_ADDRESS, else this machine alone",
    )
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print the plan with time, memory and disk measured by a few updates; start nothing",
    )
    result.add_argument("--no-measure", action="store_true", help="with --dry-run: measure nothing")
    result.add_argument(
        "--verbose", action="store_true", help="print what Ray and its workers say, which is else in RESULTS/logs only"
    )
    return result
