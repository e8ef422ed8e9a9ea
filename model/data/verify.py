"""`python -m model.data.verify [ROOT]`: read every byte of the frame stores in a folder and compare checksums.

    python -m model.data.verify                       # where stores go by default
    python -m model.data.verify /data/stores --repair

A line per store: ok, damaged (with the sequences), or unfinished (a build was stopped; the next one goes on). Stores
are made from the original files and may be removed while nothing runs: they are then decoded again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model.data.building import FRAMES, RECORDS
from model.data.config import DataConfig
from model.data.records import read_records
from model.data.store import BUILDING, StoreDamage, read_store, repair, store_root, verify
from model.errors import ConfigError, UserError

NAMED_SEQUENCES = 5  # how many damaged sequences a line names


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m model.data.verify`."""
    result = argparse.ArgumentParser(
        prog="python -m model.data.verify",
        description="Compare every frame of the frame stores in a folder with its checksum.",
        epilog="example: python -m model.data.verify /data/stores --repair. Exit code: 0 all whole, 1 one is damaged, "
        "2 bad input",
    )
    result.add_argument(
        "root",
        type=Path,
        nargs="?",
        help="folder of stores, such as data.store_dir, or one store (default: %(default)s)",
    )
    result.add_argument(
        "--repair",
        action="store_true",
        help="hand damaged stores back: the next run that needs one decodes its damaged sequences again",
    )
    result.set_defaults(root=store_root(DataConfig()))
    return result


def stores_in(root: Path) -> list[Path]:
    """The stores in a folder, unfinished ones included, or the folder itself. Raises ConfigError if it has none."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give the folder that holds the frame stores (data.store_dir)")
    if (root / FRAMES).exists():
        return [root]
    found = sorted(path.parent for path in root.glob(f"*/{FRAMES}"))
    if not found:
        raise ConfigError(f"{root}: holds no frame store; give the folder that holds them (data.store_dir)")
    return found


def report(folder: Path) -> tuple[str, bool]:
    """(what is to be said of a store, whether it is damaged)."""
    size = f"{(folder / FRAMES).stat().st_size / 1e6:.1f} MB"
    if folder.name.endswith(BUILDING):
        whole = _count_records(folder)
        return f"unfinished  {folder.name}: {size}, {whole} sequences; the next run that needs it goes on", False
    try:
        names = verify(folder)
    except StoreDamage as damage:
        return f"damaged     {folder.name}: {damage}", True
    records, frames = read_store(folder)
    if names:
        more = ", ..." if len(names) > NAMED_SEQUENCES else ""
        named = ", ".join(names[:NAMED_SEQUENCES]) + more
        return f"damaged     {folder.name}: {len(names)} of {len(records)} sequences ({named})", True
    return f"ok          {folder.name}: {size}, {len(frames)} frames, {len(records)} sequences", False


def _count_records(folder: Path) -> int:
    try:
        return len({record.number for record in read_records(folder / RECORDS) if record is not None})
    except OSError:  # it has only just begun
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 all whole, 1 one is damaged, 2 bad input)."""
    options = parser().parse_args(arguments)
    any_damaged = False
    try:
        for folder in stores_in(options.root.expanduser().absolute()):
            text, is_damaged = report(folder)
            print(text, flush=True)
            if is_damaged and options.repair:
                repair(folder)
                print("            handed back; the next run that needs it decodes what is damaged", flush=True)
            any_damaged = any_damaged or is_damaged
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if any_damaged and not options.repair:
        print("--repair hands damaged stores back: the next run decodes what is damaged, and keeps the rest.")
    return int(any_damaged)


if __name__ == "__main__":
    sys.exit(main())
