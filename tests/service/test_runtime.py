"""Process-wide tuning of Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cartd.runtime import MAX_ARENAS, SWITCH_INTERVAL

# In another process, as the settings are process-wide.
BUILD = """
import gc, sys
from twisted.internet import reactor
from cartd.service import Options, makeService

options = Options()
options.parseOptions(["--config", "empty.ini"])
makeService(options, reactor)
print(sys.getswitchinterval(), gc.get_freeze_count(), len(gc.get_objects()))
"""
ALLOCATE = """
import ctypes
from threading import Barrier, Thread

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = Barrier(8)

def allocate():
    libc.malloc(1000)
    together.wait()

threads = [Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


def test_switch_interval_and_frozen_garbage_collector(tmp_path: Path) -> None:
    (tmp_path / "empty.ini").touch()
    ran = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    interval, left_alone, looked_through = ran.stdout.split()
    assert float(interval) == SWITCH_INTERVAL
    assert int(left_alone) > 100 * int(looked_through)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
def test_threads_share_few_heaps(tmp_path: Path) -> None:
    (tmp_path / "empty.ini").touch()
    ran = subprocess.run(
        [sys.executable, "-c", BUILD + ALLOCATE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1 <= ran.stderr.count("Arena ") <= MAX_ARENAS
