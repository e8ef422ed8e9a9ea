"""`python -m sweep.report RESULTS`: the results folder of a sweep as one page, RESULTS/report.html.

    python -m sweep.report results/alpha_beta

The page needs no network and no other file. It is made of what the folder holds now, so it also tells of a sweep that
runs, was stopped or failed; what is missing or cannot be read is named on it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model.errors import UserError
from sweep.report.page import write_report


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.report`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.report",
        description="Write report.html, one page about a sweep that is done, stopped or still running.",
        epilog="example: python -m sweep.report results/alpha_beta",
    )
    result.add_argument("results", type=Path, help="results folder of the sweep")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 2 bad input."""
    options = parser().parse_args(arguments)
    try:
        print(write_report(options.results))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
