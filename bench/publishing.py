"""Writes table and plots of the results into docs/performance.md."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from bench import peers
from bench.results import Outcome, report

_DRAW = Path(__file__).with_name("draw.py")
_DOCS = Path(__file__).parent.parent / "docs"
_BEGIN = "<!-- The figures: python -m bench publish -->\n"
_END = "<!-- End of the figures -->"
_PICTURES = """
![Files staged and sent a second, over the number of files in the cart](pictures/speed.svg)

![Memory at its peak, over the number of files in the cart](pictures/memory.svg)
"""


def publish(outcomes: Mapping[str, Outcome], place: Path) -> None:
    """Draw the plots into ``docs/pictures``, and put the table into ``docs/performance.md``.

    :raises SystemExit: the results are of ``--quick`` sizes, which mean nothing.
    """
    quick = [name for name, outcome in outcomes.items() if outcome.circumstances["quick"]]
    if quick or not outcomes:
        raise SystemExit(f"nothing to publish; of quick sizes: {', '.join(quick) or 'none'}")
    figures = report(outcomes)
    if "curves" in outcomes:
        python = peers.environment(place) / "python"
        subprocess.run([python, _DRAW, place / "curves.json", _DOCS / "pictures"], check=True)
        figures += "\n" + _PICTURES
    page = _DOCS / "performance.md"
    page.write_text(with_figures(page.read_text(), figures))


def with_figures(page: str, figures: str) -> str:
    """Return the page with its figures replaced."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError("the page has no place for the figures")
    return f"{before}{begin}\n{figures.strip()}\n\n{end}{after}"
