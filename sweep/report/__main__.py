"""`python -m sweep.report RESULTS`: the results folder of a sweep as one page, RESULTS/report.html.

    python -m sweep.report results/alpha_beta
    python -m sweep.report results/alpha_beta --watch
    python -m sweep.report results/alpha_beta --png

The page needs no network and no other file. It is made of what the folder holds now, so it also tells of a sweep that
runs, was stopped or failed; what is missing or cannot be read is named on it.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from pathlib import Path
from typing import Any

from model.errors import UserError
from sweep.report.data import read_results
from sweep.report.page import drawn_sections, write_page
from sweep.report.pictures import draw_missing
from sweep.report.pngs import FOLDER, write_pngs
from sweep.report.watch import watch

EVERY_S = 15.0


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.report`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.report",
        description="Write report.html, one page about a sweep that is done, stopped or still running. "
        "Exit code: 0 done, 2 bad input or, with --png, nothing to draw with.",
        epilog="example: python -m sweep.report results/alpha_beta",
    )
    result.add_argument("results", type=Path, metavar="RESULTS", help="results folder of the sweep")
    result.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=EVERY_S,
        metavar="SECONDS",
        help=f"keep the page up to date while the sweep runs; it reloads itself (every {EVERY_S:.0f} s)",
    )
    result.add_argument(
        "--png", action="store_true", help=f"write each figure as {FOLDER}/*.png too; needs Chromium and kaleido"
    )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 2 bad input or no browser for --png, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    folder: Path = options.results.expanduser()
    try:
        if options.watch is not None:
            signal.signal(signal.SIGTERM, _interrupt)
            watch(folder, options.watch, _say)
        _write(folder, options.png)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {folder}: cannot be written to ({error})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _write(folder: Path, png: bool) -> None:
    """The page, once more with the pictures that can be drawn only now, and the images."""
    results = read_results(folder)
    drawn = drawn_sections(results)
    print(write_page(results, drawn), flush=True)
    lines = 0
    for line in draw_missing(results):
        lines += 1
        print(line, file=sys.stderr, flush=True)
    if lines:
        write_page(results, drawn)
    if png:
        written = write_pngs(folder, drawn)
        print(f"{len(written)} images in {folder / FOLDER}" if written else "no figure to draw yet")


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _seconds(text: str) -> float:
    """Seconds of an option; argparse shows the error."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}; give seconds from 1 to 86400, for example --watch 30")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
