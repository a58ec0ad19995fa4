"""A program of the benchmark's own that works beside what is measured, and tells how that went."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.processes import MeasurementFailed


@contextmanager
def helper_process(
    module: str, *arguments: str, on_result: Callable[[Any], None]
) -> Iterator[None]:
    """Run a module from its first line of output until the block has ended.

    Then its input ends, and ``on_result`` gets what it prints, which is JSON.

    :raises MeasurementFailed: it has failed.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            told, _ = process.communicate()
    if process.returncode != 0:
        raise MeasurementFailed(f"{module} failed")
    on_result(json.loads(told))
