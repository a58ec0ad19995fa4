"""The results of each comparison's last run, stored as JSON with their circumstances."""

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
"""A machine with more busy cores before a measurement is not quiet."""
SAMPLE_SECONDS = 2.0


@dataclass(slots=True)
class Outcome:
    """The result of one comparison."""

    circumstances: Mapping[str, Any]
    rows: list[Row]
    failure: str = ""


def circumstances(*, quick: bool, rounds: int) -> dict[str, Any]:
    """Return the circumstances of the comparison that is about to run."""
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
    """Return the results by comparison; none if there is no file yet."""
    if not file.exists():
        return {}
    return {
        name: Outcome(
            kept["circumstances"], [from_plain(row) for row in kept["rows"]], kept["failure"]
        )
        for name, kept in json.loads(file.read_text()).items()
    }


def keep(file: Path, name: str, outcome: Outcome) -> None:
    """Store the result of one comparison in place of its last."""
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
    """Return one table of all rows, and notes on how they were measured."""
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
