"""``python -m tests.crash.soak --minutes 60``: load and kills for that time, and a report.

For a quarter of the time the service is killed again and again, at named points, at any moment and
at its starts; for the rest it runs without a kill, and its resources are sampled every second.  The
first fault ends the soak test; the report says what it was and how to run it again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event, Thread

from bench.usage import resident
from tests.crash.harness import Harness, crash_harness
from tests.crash.kill_points import POINTS
from tests.crash.report import Sample, draw, report

PLACE = Path(__file__).parent.parent.parent / ".soak"
CYCLES = 6
"""Number of times that kills alternate with work."""
KILL_SHARE = 0.25
SAMPLE_INTERVAL = 1.0


@dataclass
class Sampler:
    """Samples the service's resources in a thread while the block runs."""

    it: Harness
    samples: list[Sample] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _ended: Event = field(default_factory=Event)

    def __enter__(self) -> Sampler:
        self._thread = Thread(target=self._sample_periodically, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample_periodically(self) -> None:
        while not self._ended.wait(SAMPLE_INTERVAL):
            process = self.it.cartd.process
            if process is not None and process.poll() is None:
                try:
                    self.samples.append(self._sample(process.pid))
                except (OSError, StopIteration):
                    continue  # it was killed meanwhile

    def _sample(self, pid: int) -> Sample:
        proc = Path(f"/proc/{pid}")
        return Sample(
            minutes=(time.monotonic() - self._began) / 60,
            memory=resident(pid) / 2**20,
            threads=len(list((proc / "task").iterdir())),
            files=len(list((proc / "fd").iterdir())),
            process=pid,
            kills=self.it.kills,
        )


def soak(it: Harness, seconds: float) -> None:
    """Alternate kills and work until the time is over."""
    random = Random(f"{it.seed}/soak")
    cycle = seconds / CYCLES
    points: list[str] = []
    for _ in range(CYCLES):
        end = time.monotonic() + cycle * KILL_SHARE
        while time.monotonic() < end:
            points = points or random.sample(POINTS, len(POINTS))
            kill(it, points, random)
        it.work(cycle * (1 - KILL_SHARE))
        it.stop_cleanly()


def kill(it: Harness, points: list[str], random: Random) -> None:
    way = random.random()
    if way < 0.6:
        it.kill_at(points.pop(), random.randint(1, 5))
    elif way < 0.8:
        it.kill_within(random.uniform(0.05, 5.0))
    else:
        it.kill_at_start(random.choice(POINTS))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", default=str(int(time.time())))
    options = parser.parse_args(arguments)
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    print(f"soaking for {options.minutes:g} minutes, seed {options.seed}", file=sys.stderr)
    fault = ""
    with crash_harness(PLACE / "run", seed=options.seed, fail_rate=0.002) as it:
        with Sampler(it) as sampler:
            try:
                soak(it, options.minutes * 60)
            except AssertionError as error:
                fault = "\n".join([str(error), *getattr(error, "__notes__", [])])
        (PLACE / "samples.json").write_text(json.dumps([one.values() for one in sampler.samples]))
        picture = draw(PLACE / "samples.json", PLACE)
        text = report(it.done, it.kills, sampler.samples, picture, seed=options.seed, fault=fault)
        (PLACE / "report.md").write_text(text)
    if not fault:
        shutil.rmtree(PLACE / "run")
    print(text)
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
