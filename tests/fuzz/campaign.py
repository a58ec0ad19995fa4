"""``python -m tests.fuzz.campaign --minutes 10``: fuzz all targets, guided by coverage; a report.

The targets run alternately, each from what it has reached before, which is kept in ``.fuzz/``
beside the findings.  A finding ends the runs of its target, and makes the exit status 1: its input,
as a line for the corpus, is in the report.  ``--keep`` then adds the smallest inputs that reached
something new to the corpora of the repository.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.corpus import escaped, load, save
from tests.fuzz.mutation import LIMIT
from tests.fuzz.targets import NAMES, target

PLACE = Path(__file__).parent.parent.parent / ".fuzz"
SLICE_SECONDS = 60.0
"""Maximum seconds of one run of a target."""
HANG_SECONDS = 10
"""An input that takes so many seconds counts as a hang."""
MEMORY_LIMIT = 1024
"""An input that takes so many MiB counts as a leak."""
MAX_KEPT = 20
"""Inputs that ``--keep`` adds to a corpus; few and small, as the suite reads all of them."""

_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+([0-9]+)")
_NEW = re.compile(r"stat::new_units_added:\s+([0-9]+)")
_COVERED = re.compile(r"cov: ([0-9]+)")


@dataclass
class TargetRun:
    """Results of one target so far."""

    name: str
    executions: int = 0
    new: int = 0
    """Inputs that reached something new."""
    first: int = 0
    """Places covered at the beginning; ``last``: at the end."""
    last: int = 0
    findings: list[bytes] = field(default_factory=list)

    @property
    def corpus(self) -> Path:
        return PLACE / "corpus" / self.name

    def prepare(self) -> None:
        self.corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(load(self.name)):
            (self.corpus / f"kept-{number}").write_bytes(data)
        words = [f'"{_quoted(word)}"\n' for word in target(self.name).words]
        (PLACE / f"{self.name}.dict").write_text("".join(words), "ascii")

    def fuzz(self, seconds: float) -> None:
        """Fuzz the target for that time; ``findings`` may have grown afterwards."""
        found = PLACE / "findings" / self.name
        found.mkdir(parents=True, exist_ok=True)
        before = {*found.iterdir()}
        output = self._run(
            f"-max_total_time={max(1, round(seconds))}",
            f"-max_len={LIMIT}",
            f"-timeout={HANG_SECONDS}",
            f"-rss_limit_mb={MEMORY_LIMIT}",
            f"-artifact_prefix={found}/",
            f"-dict={PLACE / self.name}.dict",
            "-print_final_stats=1",
            str(self.corpus),
        )
        (PLACE / f"{self.name}.log").write_text(output)
        self.executions += sum(map(int, _EXECUTED.findall(output)))
        self.new += sum(map(int, _NEW.findall(output)))
        covered = [int(number) for number in _COVERED.findall(output)]
        if covered:
            self.first = self.first or covered[0]
            self.last = covered[-1]
        self.findings += [file.read_bytes() for file in sorted({*found.iterdir()} - before)]
        assert covered or self.findings, output

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", self.name, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.stdout.decode(errors="replace")

    def save_new_inputs(self) -> None:
        """Add the smallest inputs that reached something new to the corpus of the repository."""
        reached = [file.read_bytes() for file in self.corpus.iterdir()]
        new = sorted({*reached} - {*load(self.name)}, key=len)
        save(self.name, [*load(self.name), *new[:MAX_KEPT]])


def _quoted(word: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in word)


def report(runs: list[TargetRun]) -> str:
    lines = ["target    executions   new inputs   places covered   findings"]
    for one in runs:
        covered = f"{one.first} -> {one.last}"
        counts = f"{one.executions:>10,} {one.new:>12,} {covered:>16} {len(one.findings):>10}"
        lines.append(f"{one.name:<9} {counts}")
    lines += [f"{one.name}: {escaped(data)}" for one in runs for data in one.findings]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--targets", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    runs = [TargetRun(name) for name in given.targets]
    for one in runs:
        one.prepare()
    end = time.monotonic() + given.minutes * 60
    while (going := [one for one in runs if not one.findings]) and time.monotonic() < end:
        share = (end - time.monotonic()) / len(going)
        for one in going:
            one.fuzz(min(share, SLICE_SECONDS))
            print(report([one]).splitlines()[1], flush=True)
    if given.keep:
        for one in runs:
            one.save_new_inputs()
    print(report(runs))
    print(f"\nInputs, findings and the log of each target's last run are in {PLACE}")
    return any(one.findings for one in runs)


if __name__ == "__main__":
    sys.exit(main())
