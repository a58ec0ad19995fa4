"""Runs a module of the benchmark in a process of its own beside a measurement."""

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
    """Run a module from its first line of output until the block ends.

    Then its input is closed, and ``on_result`` receives its output, which is JSON.

    :raises MeasurementFailed: the process has failed.
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
            output, _ = process.communicate()
    if process.returncode != 0:
        raise MeasurementFailed(f"{module} failed")
    on_result(json.loads(output))
