"""``swapper.py VOLUME OUTSIDE``: swaps directories for links, as fast as possible.

Each directory of a cart and of its incoming files is briefly replaced by a link to OUTSIDE.  The
program ends at the end of its standard input, and prints how often it has swapped.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def directories(volume: Path) -> Iterator[Path]:
    """Return the two levels below each cart and below incoming/."""
    for cart in (*volume.glob("[0-9]*"), *volume.glob("incoming/[0-9]*")):
        for found, below, _ in os.walk(cart):
            yield Path(found)
            below[:] = [name for name in below if "away" not in name]


def swap(directory: Path, outside: Path) -> bool:
    """Swap it for a link and back; return whether that succeeded."""
    away = directory.with_name(f"{directory.name}.away")
    try:
        directory.rename(away)
    except OSError:
        return False
    swapped = False
    with suppress(OSError):
        directory.symlink_to(outside)
        swapped = True
    with suppress(OSError):
        if directory.is_symlink():
            directory.unlink()
        away.rename(directory)
    return swapped


def main() -> None:
    volume, outside = map(Path, sys.argv[1:])
    swaps = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        for directory in directories(volume):
            swaps += swap(directory, outside)
    sys.stdout.write(f"{swaps}\n")


if __name__ == "__main__":
    main()
