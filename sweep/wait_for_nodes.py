"""`python -m sweep.wait_for_nodes HOST:PORT N`: wait until a Ray cluster that is being started has N nodes.

How many trials run at a time is decided when a sweep starts, so its nodes should be there (scripts/cluster/ray.sbatch).
"""

from __future__ import annotations

import argparse
import sys
import time

from model.errors import UserError
from sweep.cluster import named, ray_cluster

PAUSE_S = 1.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.wait_for_nodes",
        description="Wait until a Ray cluster has so many nodes. Exit code: 0 it has, 2 it has not in time.",
        epilog="example: python -m sweep.wait_for_nodes 10.0.0.7:6379 2 --limit 60",
    )
    result.add_argument("address", help="HOST:PORT of its head")
    result.add_argument("nodes", type=int, help="how many")
    result.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="wait so long (default: 300)")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(arguments)
    give_up = time.monotonic() + options.limit
    found, last = 0, ""
    while True:
        try:
            with named(options.address), ray_cluster() as cluster:
                found = len(cluster.nodes)
                if found >= options.nodes:
                    print(cluster.summary)
                    return 0
        except UserError as error:
            last = f" ({error})"
        if time.monotonic() > give_up:
            print(
                f"error: after {options.limit:g} s the Ray cluster {options.address} has {found} of {options.nodes} "
                f"nodes{last}; see the logs of the nodes that are missing",
                file=sys.stderr,
            )
            return 2
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    sys.exit(main())
