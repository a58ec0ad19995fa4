"""The figures of each comparison's last run, kept as JSON, with the circumstances of that run."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Row
from bench.tables import from_plain, markdown, plain
from bench.usage import busy_cores

BUSY = 0.2
"""Cores that a quiet machine does not have at work while nothing is measured yet."""
SAMPLE_SECONDS = 2.0


@dataclass(slots=True)
class Outcome:
    """What came of one comparison."""

    circumstances: Mapping[str, Any]
    rows: list[Row]
    failure: str = ""


def circumstances(*, quick: bool, rounds: int) -> dict[str, Any]:
    """Under what a comparison is about to run."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "busy": busy_cores(SAMPLE_SECONDS),
        "load": os.getloadavg()[0],
        "quick": quick,
        "rounds": rounds,
    }


def read(file: Path) -> dict[str, Outcome]:
    """The comparisons by their names; none if there are no results yet."""
    if not file.exists():
        return {}
    return {
        name: Outcome(
            kept["circumstances"], [from_plain(row) for row in kept["rows"]], kept["failure"]
        )
        for name, kept in json.loads(file.read_text()).items()
    }


def keep(file: Path, name: str, outcome: Outcome) -> None:
    """Put one comparison's outcome in the place of its last."""
    outcomes = {**read(file), name: outcome}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps(
            {
                name: {
                    "circumstances": dict(it.circumstances),
                    "failure": it.failure,
                    "rows": [plain(row) for row in it.rows],
                }
                for name, it in outcomes.items()
            },
            indent=1,
        )
    )


def report(outcomes: Mapping[str, Outcome]) -> str:
    """One table of all rows, and below it what a reader must know of how they came about."""
    rows = [row for outcome in outcomes.values() for row in outcome.rows]
    notes = [f"- {note}" for name, it in outcomes.items() for note in _notes(name, it)]
    return "\n".join([markdown(rows), *notes])


def _notes(name: str, outcome: Outcome) -> list[str]:
    at = outcome.circumstances
    notes = [
        f"{name}: {at['when']}, commit {at['commit']}, Python {at['python']}, {at['cores']} cores,"
        f" {at['rounds']} rounds."
    ]
    if at["quick"]:
        notes.append(f"**{name}: of quick sizes, not to be quoted.**")
    if at["busy"] > BUSY:
        notes.append(
            f"**{name}: others had {at['busy']:.1f} cores at work when it began (load"
            f" {at['load']:.1f}): not to be quoted.**"
        )
    if outcome.failure:
        notes.append(f"**{name} could not be made: {outcome.failure}**")
    return notes
