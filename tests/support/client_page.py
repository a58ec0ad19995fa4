"""``python -m tests.support.client_page``: write the commands and tables of ``docs/client.md``.

They are those of :mod:`cartd_client.cli`; a test fails if they differ.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from cartd_client.cli.main import cart
from cartd_client.cli.options import CartGroup, CommonOption

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
COMMON = "They may be given before the command or after it; the last one counts.\n\n"
WIDTH = 120
_SECTION = r"(?ms)(^## {}\n\n)(.*?)(?=^## )"


def table(options: Iterable[click.Parameter]) -> str:
    """Return a table of options."""
    rows = ["| option | description |\n| --- | --- |\n"]
    for option in options:
        if isinstance(option, click.Option):
            names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            value = _value(option)
            text = (option.help or "") + _default(option)
            rows.append(f"| {names}{f' `{value}`' if value else ''} | {text} |\n")
    return "".join(rows)


def _value(option: click.Option) -> str:
    if option.is_flag or option.count:
        return ""
    if isinstance(option.type, click.Choice):
        return "\\|".join(option.type.choices)
    return (option.metavar or "TEXT").replace("|", "\\|")


def _default(option: click.Option) -> str:
    return f" Default: {option.default}." if option.show_default else ""


def prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; those that keep their lines become blocks."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if not paragraph.startswith("\b\n"):
            yield textwrap.fill(" ".join(paragraph.split()), WIDTH) + "\n\n"
            continue
        first, *lines = paragraph[2:].splitlines()
        if first == "Examples:":
            yield "```sh\n" + "".join(f"{line.strip()}\n" for line in lines) + "```\n\n"
        else:
            rows = "\n".join([first, *lines])
            yield f"```\n{inspect.cleandoc(rows)}\n```\n\n"


def commands() -> str:
    """Return the section about all commands."""
    parts = []
    for name in (name for _, names in CartGroup.parts for name in names):
        command = cart.commands[name]
        usage = command.collect_usage_pieces(click.Context(command, info_name=name))
        parts.append(f"### cart {name}\n\n```\ncart {name} {' '.join(usage)}\n```\n\n")
        parts.extend(prose(command.help or ""))
        own = [param for param in command.params if not isinstance(param, CommonOption)]
        if any(isinstance(param, click.Option) for param in own):
            parts.append(table(own) + "\n")
    return "".join(parts)


def with_tables(page: str) -> str:
    """Return the page with the generated sections; raise ValueError if one is missing."""
    common = [param for param in cart.params if isinstance(param, CommonOption)]
    sections = {"Commands": commands(), "Common options": COMMON + table(common) + "\n"}
    for heading, text in sections.items():
        parts = re.split(_SECTION.format(heading), page)
        if len(parts) != 4:
            raise ValueError(f"{PAGE} needs one section ## {heading}")
        page = parts[0] + parts[1] + text + parts[3]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
