"""Batches of rows: how many go into one statement."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
BATCH = 2000
"""Rows per statement: few round trips, and none that blocks the reactor while it is prepared."""


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield ``items`` in lists of at most ``size``."""
    while batch := list(islice(items, size)):
        yield batch
