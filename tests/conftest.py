"""What holds for every run of the tests."""

from __future__ import annotations

import gc
import os

import pytest

gc.disable()  # There is no garbage worth the search while modules are read.


def pytest_collection_finish() -> None:
    """Leave what all modules have made out of the garbage collection from now on.

    Many tests collect garbage to hear of Deferreds that failed unheard; looking through everything
    each time would take a fifth of a second.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: there is always a test that waits."""
    return len(os.sched_getaffinity(0)) + 1
