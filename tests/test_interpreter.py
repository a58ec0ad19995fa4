"""How Python is set once the service is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cartd.interpreter import SWITCH_INTERVAL

# In a process of its own: what is set holds for a whole process.
BUILD = """
import gc, sys
from twisted.internet import reactor
from cartd.service import Options, makeService

options = Options()
options.parseOptions(["--config", "empty.ini"])
makeService(options, reactor)
print(sys.getswitchinterval(), gc.get_freeze_count(), len(gc.get_objects()))
"""


def test_threads_take_short_turns_and_what_was_built_is_no_garbage(tmp_path: Path) -> None:
    (tmp_path / "empty.ini").touch()
    ran = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    interval, left_alone, looked_through = ran.stdout.split()
    assert float(interval) == SWITCH_INTERVAL
    assert int(left_alone) > 100 * int(looked_through)
