"""``python -m tests.support.configuration_page``: write the tables of ``docs/configuration.md``.

They are those of :data:`cartd.config.settings.SETTINGS`; a test fails if they differ.
"""

from __future__ import annotations

import re
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from cartd.config.settings import SETTINGS, Setting

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
HEADER = (
    "| key | option | environment | default | unit | what it does |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)
_TABLE = r"(?m)(^## `\[{}\]`.*\n(?:(?!## ).*\n)*?)\| key \|.*\n(?:\|.*\n)*"


def row(setting: Setting) -> str:
    """Return the line of one setting."""

    def code(*names: str | None) -> str:
        return "".join(f" `{name}`" for name in names if name)

    option = code(setting.option and f"--{setting.option}", setting.short and f"-{setting.short}")
    return (
        f"| `{setting.key}` |{option} |{code(setting.environment)} | `{setting.default}` |"
        f" {setting.unit} | {setting.description} |\n"
    )


def with_tables(page: str) -> str:
    """Return the page with the table of every section; raise ValueError if one has no table."""
    for section, settings in groupby(SETTINGS, attrgetter("section")):
        parts = re.split(_TABLE.format(section), page)
        if len(parts) != 3:
            raise ValueError(f"{PAGE} needs one table below ## `[{section}]`")
        before, heading, after = parts
        page = before + heading + HEADER + "".join(map(row, settings)) + after
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
