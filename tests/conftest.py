"""Settings of every run of the tests."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

settings.register_profile("cartd", deadline=None)  # tests share the cores with others
settings.load_profile("cartd")

gc.disable()  # Modules that are being imported create no garbage worth collecting.


def pytest_collection_finish() -> None:
    """Exclude the objects of all imported modules from garbage collection.

    Many tests collect garbage to detect failed Deferreds that nothing handled; traversing all
    objects would take a fifth of a second each time.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than there are cores, as there is always a test that waits."""
    return len(os.sched_getaffinity(0)) + 1
