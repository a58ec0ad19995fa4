"""Rows as Markdown, and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.figures import Figures, Row, Target

_HEAD = (
    ("work", False),
    ("measure", False),
    ("cartd", True),
    ("min to max", True),
    ("CPU s", True),
    ("against", False),
    ("median", True),
    ("min to max", True),
    ("CPU s", True),
    ("ratio", True),
    ("target", True),
    ("holds", False),
)
_VERDICTS = {True: "yes", False: "**no**"}


def number(value: float) -> str:
    """Format with three significant digits, without scientific notation."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    for limit, places in ((10, 1), (1, 2), (0.1, 3)):
        if size >= limit:
            return f"{value:.{places}f}"
    return f"{value:.4f}"


def markdown(rows: Iterable[Row]) -> str:
    """Return a GitHub Markdown table, with a line for each row."""
    lines = [
        _line([name for name, _ in _HEAD]),
        _line(["---:" if right else "---" for _, right in _HEAD]),
    ]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def plain(row: Row) -> dict[str, Any]:
    """Return the row with all its rounds, and values derived from them."""
    return {
        "work": row.work,
        "measure": row.measure,
        "cartd": _plain_figures(row.ours),
        "peer": row.peer,
        "theirs": _plain_figures(row.theirs),
        "absent": row.absent,
        "ratio": row.ratio,
        "target": _plain_target(row.target),
        "holds": row.holds,
    }


def from_plain(values: dict[str, Any]) -> Row:
    """Return the row that was passed to :func:`plain`."""
    target = values["target"]
    return Row(
        values["work"],
        values["measure"],
        _figures(values["cartd"]),
        values["peer"],
        _figures(values["theirs"]),
        values["absent"],
        None
        if target is None
        else Target(target["limit"], target["at_least"], target["ratio"], target["aim"]),
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _cells(row: Row) -> list[str]:
    if row.absent:
        theirs = [f"**not available: {row.absent}**", "", ""]
    else:
        theirs = _figure_cells(row.theirs)
    return [
        row.work,
        row.measure,
        *_figure_cells(row.ours),
        row.peer,
        *theirs,
        "" if row.ratio is None else f"{number(row.ratio)} ×",
        "" if row.target is None else str(row.target),
        _verdict(row),
    ]


def _verdict(row: Row) -> str:
    if row.target is None:
        return ""
    return "**not compared**" if row.holds is None else _VERDICTS[row.holds]


def _figure_cells(figures: Figures | None) -> list[str]:
    if figures is None:
        return ["", "", ""]
    cpu = figures.median_cpu
    return [
        number(figures.median),
        f"{number(figures.least)} to {number(figures.most)}",
        "" if cpu is None else number(cpu),
    ]


def _plain_figures(figures: Figures | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    return {
        "median": figures.median,
        "min": figures.least,
        "max": figures.most,
        "cpu": figures.median_cpu,
        "rounds": list(figures.values),
        "cpu_rounds": list(figures.cpu),
    }


def _figures(values: dict[str, Any] | None) -> Figures | None:
    return None if values is None else Figures(tuple(values["rounds"]), tuple(values["cpu_rounds"]))


def _plain_target(target: Target | None) -> dict[str, Any] | None:
    if target is None:
        return None
    return {
        "limit": target.limit,
        "at_least": target.at_least,
        "ratio": target.ratio,
        "aim": target.aim,
    }
