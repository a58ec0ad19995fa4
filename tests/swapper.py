"""``swapper.py VOLUME OUTSIDE``: somebody who exchanges directories for links, as fast as can be.

Each directory of a cart, and of what is incoming of it, is a link to OUTSIDE for a moment, and then
itself again.  It ends when its standard input does, and then says how often.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def directories(volume: Path) -> Iterator[Path]:
    """Those two levels below each cart, and each that is incoming."""
    for cart in (*volume.glob("[0-9]*"), *volume.glob("incoming/[0-9]*")):
        for found, below, _ in os.walk(cart):
            yield Path(found)
            below[:] = [name for name in below if "away" not in name]


def swap(directory: Path, outside: Path) -> bool:
    """Whether it was a link for a moment."""
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
