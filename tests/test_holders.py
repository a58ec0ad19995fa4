"""A process is alive for as long as it holds the lock of its name, however it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cartd.holders import Holders

HOLD = """
import sys
from pathlib import Path
from cartd.holders import Holders
holders = Holders(Path(sys.argv[1]))
holders.start()
print(holders.name, flush=True)
sys.stdin.read()
"""


def test_a_killed_process_is_known_to_be_dead(tmp_path: Path) -> None:
    mine = Holders(tmp_path)
    mine.start()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert mine.dead_among({name, mine.name}) == set()
        other.kill()
        other.wait()
        assert mine.dead_among({name, mine.name}) == {name}
        assert mine.dead_among({name}) == {name}
    mine.stop()


def test_the_locks_of_the_dead_are_swept_away_at_a_start(tmp_path: Path) -> None:
    first = Holders(tmp_path)
    first.start()
    stale = tmp_path / f"{first.name[:-1]}x.lock"
    stale.touch()
    second = Holders(tmp_path)
    second.start()
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted([first.name, second.name])
    first.stop()
    second.stop()
    assert not list(tmp_path.iterdir())


def test_nothing_is_said_of_a_process_on_another_machine(tmp_path: Path) -> None:
    holders = Holders(tmp_path)
    holders.start()
    assert holders.dead_among({"elsewhere-1-0badcafe"}) == set()
    holders.stop()
