"""``draw.py CURVES.json DIRECTORY``: plot the curves, with the Python that has matplotlib.

``draw.py SAMPLES.json DIRECTORY --soak`` plots a service's resources over time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

SPEED = (("files/s staged",), ("files/s sent",))
MEMORY = (("MiB at peak, staging", "MiB at peak, sending"),)
TAKEN = (("memory",), ("threads", "files"), ("kills",))
"""A panel for each group of lines."""

LABELS = {"memory": "MiB resident", "files": "open files", "kills": "kills survived"}


def draw(
    points: list[dict[str, float]],
    panels: tuple[tuple[str, ...], ...],
    to: Path,
    *,
    over: tuple[str, str] = ("files", "files of 4 KiB in the cart"),
    scale: str = "log",
    marker: str = "o",
) -> None:
    """Write one plot: lines over the number of files in the cart, or over what ``over`` says."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(9, 3.6), squeeze=False)
    key, label = over
    places = [point[key] for point in points]
    for axes, measures in zip(all_axes[0], panels, strict=True):
        for measure in measures:
            values = [point[measure] for point in points]
            axes.plot(places, values, marker=marker, label=LABELS.get(measure, measure))
        axes.set_xscale(scale)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(to, metadata={"Date": None})


def main(curves: Path, directory: Path, *options: str) -> None:
    """Equal points give equal bytes."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cartd"
    points: Any = json.loads(curves.read_text())
    directory.mkdir(parents=True, exist_ok=True)
    if "--soak" in options:
        over = ("minutes", "minutes")
        draw(points, TAKEN, directory / "soak.svg", over=over, scale="linear", marker="")
        return
    draw(points, SPEED, directory / "speed.svg")
    draw(points, MEMORY, directory / "memory.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
