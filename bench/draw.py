"""``draw.py CURVES.json DIRECTORY``: draw the curves, with the peers' Python, which can."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

SPEED = ("files/s staged", "files/s sent")
MEMORY = ("MiB at peak, staging", "MiB at peak, sending")


def draw(points: list[dict[str, float]], measures: tuple[str, ...], unit: str, to: Path) -> None:
    """One picture: a line for each measure, over the number of files in the cart."""
    figure, axes = plt.subplots(figsize=(7, 4))
    files = [point["files"] for point in points]
    for measure in measures:
        axes.plot(files, [point[measure] for point in points], marker="o", label=measure)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("files of 4 KiB in the cart")
    axes.set_ylabel(unit)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(to, metadata={"Date": None})


def main(curves: Path, directory: Path) -> None:
    """The same points give the same bytes."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cartd"
    points: Any = json.loads(curves.read_text())
    directory.mkdir(parents=True, exist_ok=True)
    draw(points, SPEED, "files a second", directory / "speed.svg")
    draw(points, MEMORY, "MiB resident", directory / "memory.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
