"""Counts the files and directories that this process has open below a directory."""

from __future__ import annotations

from pathlib import Path


def open_below(root: Path) -> int:
    """Count only below ``root``: the test process opens and closes other files."""
    root = root.resolve()
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += descriptor.readlink().is_relative_to(root)
        except FileNotFoundError:  # Closed since it was listed.
            continue
    return count
