"""The report of a soak test: figures, and a plot of the service's resources over time."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from bench import peers

_ROOT = Path(__file__).parent.parent.parent
_BENCH = _ROOT / ".bench"
_DRAW = _ROOT / "bench" / "draw.py"
LONG = 20
"""Processes that lived at least so many seconds are in the table."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Resources of the service at one moment."""

    minutes: float
    memory: float
    """Resident memory, in MiB."""
    threads: int
    files: int
    """Open files, sockets included."""
    process: int
    kills: int
    """Kills so far."""

    def values(self) -> dict[str, float]:
        return asdict(self)


def draw(samples: Path, directory: Path) -> str:
    """Return the line of the report with the plot, or with the reason why there is none."""
    try:
        python = peers.pictures(_BENCH) / "python"
        command = [str(python), str(_DRAW), str(samples), str(directory), "--soak"]
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (peers.PeerUnavailable, OSError, subprocess.CalledProcessError) as error:
        return f"No plot could be drawn: {error}"
    return "![Memory, threads, open files and kills over time](soak.svg)"


def report(
    done: Mapping[str, int],
    kills: int,
    samples: Sequence[Sample],
    picture: str,
    *,
    seed: str,
    fault: str,
) -> str:
    minutes = samples[-1].minutes if samples else 0
    figures = {
        "minutes": f"{minutes:.1f}",
        "kills survived": f"{kills:,}",
        "downloads compared": f"{done['downloads compared']:,}",
        "ranges compared": f"{done['ranges compared']:,}",
        "bytes compared": f"{done['bytes compared']:,}",
        "manifests posted": f"{done['post'] + done['post_again']:,}",
        "carts deleted while they were read": f"{done['delete_while_reading']:,}",
        "carts read while others needed space": f"{done['evict_while_reading']:,}",
        "files removed": f"{done['remove_a_file']:,}",
    }
    lines = [
        "# Soak",
        f"Something was wrong (`--seed {seed}` runs it again):\n\n```\n{fault}\n```"
        if fault
        else f"Nothing was wrong. Seed: {seed}",
        _table(("what", "how many"), figures.items()),
        picture,
        "The processes that lived longest without a kill:",
        _table(
            ("from minute", "to", "MiB at first", "at last", "at most", "threads", "open files"),
            _processes(samples),
        ),
        "Kills, by where they met the service:",
        _table(
            ("point", "kills"),
            sorted((what, str(n)) for what, n in done.items() if what.startswith("killed ")),
        ),
    ]
    return "\n\n".join(lines) + "\n"


def _processes(samples: Sequence[Sample]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for _, of_process in groupby(samples, key=lambda sample: sample.process):
        lived = list(of_process)
        if len(lived) < LONG:
            continue
        tenth = max(len(lived) // 10, 1)
        rows.append(
            (
                f"{lived[0].minutes:.1f}",
                f"{lived[-1].minutes:.1f}",
                # Over the first tenth, in which the process starts to work.
                f"{max(one.memory for one in lived[:tenth]):.0f}",
                f"{statistics.median(one.memory for one in lived[-tenth:]):.0f}",
                f"{max(one.memory for one in lived):.0f}",
                _range([one.threads for one in lived]),
                _range([one.files for one in lived]),
            )
        )
    return rows


def _range(numbers: list[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
