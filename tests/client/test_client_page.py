"""docs/client.md and client/README.md: commands, options and statuses are those of ``cart``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cartd_client import ClientError, ExitStatus
from cartd_client.cli.main import cart
from tests.support.client_page import PAGE, with_tables

README = Path(__file__).parents[2] / "client" / "README.md"
each_page = pytest.mark.parametrize("page", [PAGE, README], ids=lambda page: page.name)


def examples(text: str) -> list[str]:
    """Return the command lines of ``cart`` in blocks for a shell."""
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    return re.findall(r"(?<![\w'/-])cart ([a-z][^|>&;)\n#]*)", blocks)


def test_the_page_has_the_commands_of_the_command() -> None:
    page = PAGE.read_text("utf-8")

    assert with_tables(page) == page, "make docs writes them"
    with pytest.raises(ValueError, match="one section ## Common options"):
        with_tables(page.replace("## Common options", "## Options"))


@each_page
def test_every_example_is_a_right_command_line(page: Path) -> None:
    found = examples(page.read_text("utf-8"))
    assert len(found) > 5

    for example in found:
        name, *arguments = shlex.split(example)
        cart.commands[name].make_context(name, arguments)


@each_page
def test_every_exit_status_is_explained(page: Path) -> None:
    rows = re.findall(r"^\|(.*)\|$", page.read_text("utf-8"), re.MULTILINE)
    numbers = {cell.strip() for row in rows for cell in row.split("|")}

    assert {str(int(status)) for status in ExitStatus} <= numbers


def test_every_problem_of_the_client_is_explained() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    kinds: list[type[ClientError]] = [ClientError, *ClientError.__subclasses__()]
    documented = [kind for kind in kinds if kind.__module__ == ClientError.__module__]

    assert sorted(rows) == sorted((kind.name, str(int(kind.exit_status))) for kind in documented)


def test_the_read_me_has_no_links_that_break_on_pypi() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text("utf-8")):
        assert target.startswith("https://")
