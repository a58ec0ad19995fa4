"""What holds for every run of the tests."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Take what all modules have made out of the garbage collection.

    Many tests collect garbage to hear of Deferreds that failed unheard; looking through everything
    each time would take a fifth of a second.
    """
    gc.collect()
    gc.freeze()
