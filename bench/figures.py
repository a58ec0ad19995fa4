"""Measured values: medians, ratios, targets and whether they are met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least ``share`` (0 to 1) of all do not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values, no percentile")
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


@dataclass(frozen=True, slots=True)
class Figures:
    """The values of one side in each round, and its CPU seconds, if measured."""

    values: tuple[float, ...]
    cpu: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a figure needs at least one round")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    @property
    def median_cpu(self) -> float | None:
        return statistics.median(self.cpu) if self.cpu else None


@dataclass(frozen=True, slots=True)
class Target:
    """The limit of a figure, or of its ratio to the other side's."""

    limit: float
    at_least: bool = False
    """Whether a higher value is better."""
    ratio: bool = False
    aim: float | None = None
    """A better value to aim for; it does not decide whether the target is met."""

    def holds(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        unit = " ×" if self.ratio else ""
        text = f"{'≥' if self.at_least else '≤'} {self.limit:g}{unit}"
        return text if self.aim is None else f"{text} (aim {self.aim:g}{unit})"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: cartd, and at most one other side."""

    work: str
    measure: str
    """The unit, and what is measured where the unit does not say it."""
    ours: Figures | None
    """``None`` if the measurement was not possible."""
    peer: str = ""
    theirs: Figures | None = None
    absent: str = ""
    """Why the other side was not available."""
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """The ratio of the medians, cartd's to the peer's."""
        if self.ours is None or self.theirs is None or self.theirs.median == 0:
            return None
        return self.ours.median / self.theirs.median

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; ``None`` if there is none, or nothing to compare with."""
        if self.target is None or self.ours is None:
            return None
        figure = self.ratio if self.target.ratio else self.ours.median
        return None if figure is None else self.target.holds(figure)
