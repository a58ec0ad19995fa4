"""What was measured, as values: medians, ratios, targets and whether they hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values, no percentile")
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one side did in each round, and the CPU seconds that it took for it, if counted."""

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
    """Whether more is better."""
    ratio: bool = False
    aim: float | None = None
    """What would be better still; it does not decide whether the target holds."""

    def holds(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        unit = " ×" if self.ratio else ""
        text = f"{'≥' if self.at_least else '≤'} {self.limit:g}{unit}"
        return text if self.aim is None else f"{text} (aim {self.aim:g}{unit})"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: cartd, and at most one other side."""

    work: str
    measure: str
    """The unit, with what is measured where the unit alone does not say it."""
    ours: Figures | None
    """``None`` if what cartd was to be measured with could not be had."""
    peer: str = ""
    theirs: Figures | None = None
    absent: str = ""
    """Why the other side could not be had."""
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """Of the medians, cartd's to the peer's."""
        if self.ours is None or self.theirs is None or self.theirs.median == 0:
            return None
        return self.ours.median / self.theirs.median

    @property
    def holds(self) -> bool | None:
        """Whether the target holds; ``None`` if there is none, or nothing to compare with."""
        if self.target is None or self.ours is None:
            return None
        figure = self.ratio if self.target.ratio else self.ours.median
        return None if figure is None else self.target.holds(figure)
