"""``python -m tests.support.problems_page``: write ``docs/problems.md``.

It has every problem of :data:`cartd.http.problem_types.PROBLEM_TYPES`; a test fails if they differ.
"""

from __future__ import annotations

from pathlib import Path

from cartd.http.problem_types import PROBLEM_TYPES, as_markdown

PAGE = Path(__file__).parents[2] / "docs" / "problems.md"
_HEAD = """\
# Problems

Each [error of the service](rest.md#errors) has one of these problem types, and so has each cart and
each file that could not be staged. An error has the URL of its type, `/-/problems/NAME`, in `type`;
carts and files have the name in `problem`. The service serves these texts, too: `GET /-/problems`
lists all types.

Names and titles are stable: programs may depend on them, but not on the sentences in `detail` and
`error`.
"""


def page() -> str:
    """Return the text of the page."""
    parts = (f"\n## {name}\n\n{as_markdown(name)}" for name in PROBLEM_TYPES)
    return _HEAD + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
