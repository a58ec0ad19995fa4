"""The pages are right, as far as a test can tell: links, files, modules, commands, requests."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cartd.cli.main import main as cartd_cmd
from cartd.config import load
from cartd.errors import InvalidInput
from cartd.http.paths import APPS
from cartd.manifest import parse
from cartd.options import Options
from cartd.options import main as pacifica_cartd

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
DECISIONS = sorted((DOCS / "adr").glob("*.md"))
DRAWING = DOCS / "architecture.svg"
COMMANDS = ("bind-volume", "dbchk", "dbsync", "dump", "fixit", "purge", "token", "verify")

each_page = pytest.mark.parametrize(
    "page", [*PAGES, *DECISIONS], ids=lambda page: page.relative_to(ROOT).as_posix()
)


# --- reading a page -----------------------------------------------------------------------------


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def code(page: Path) -> list[str]:
    """The spans between backticks in the page's prose."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def section(page: Path, heading: str) -> str:
    """The text between a heading and the next one, of whatever level."""
    parts = re.split(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading]


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of the tables in ``text``, the heads of the tables among them."""
    for line in re.findall(r"^\|(.+)\|$", text, flags=re.MULTILINE):
        yield [cell.strip() for cell in line.split(" | ")]


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help", "--version"}


def documented_options(heading: str) -> set[str]:
    """The options in the section's table; its prose may mention options of other commands."""
    return set().union(*(options(row[0]) for row in rows(section(DOCS / "commands.md", heading))))


# --- links and files ----------------------------------------------------------------------------


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_read_me_leads_to_every_page() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", prose(ROOT / "README.md"))

    assert {page.relative_to(ROOT).as_posix() for page in PAGES} <= {*linked, "README.md"}


def test_the_index_of_decisions_links_every_decision_once() -> None:
    index, *decisions = reversed(DECISIONS)
    linked = re.findall(r"\]\(([^)#]+)\)", prose(index))

    assert linked == [page.name for page in reversed(decisions)]


@each_page
def test_every_file_of_the_repository_that_is_named_is_there(page: Path) -> None:
    for name in code(page):
        if re.fullmatch(r"(cartd|contrib|tests|docs|demo|twisted|\.ci)/[\w./-]+", name):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "page",
    [DOCS / "architecture.md", DRAWING, DOCS / "glossary.md", DOCS / "performance.md"],
    ids=lambda page: page.name,
)
def test_every_module_that_the_architecture_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    modules = set(re.findall(r"(?<![\w/.])[a-z_]+(?:/[a-z_]+)*\.py\b", text))
    assert modules

    for module in modules:
        assert (ROOT / "cartd" / module).is_file(), module


def test_the_layers_name_every_module() -> None:
    named = set(code(DOCS / "architecture.md"))
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "cartd").iterdir()
        if (path / "__init__.py").is_file() or (path.suffix == ".py" and path.stem != "__init__")
    }

    assert there <= named


def test_the_drawing_is_well_formed_and_has_a_description() -> None:
    drawing = ElementTree.parse(DRAWING).getroot()

    assert drawing.tag.endswith("svg")
    assert drawing.find("{*}title") is not None
    assert drawing.find("{*}desc") is not None


# --- commands -----------------------------------------------------------------------------------


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return set(" ".join(re.findall(r"^\.PHONY:(.+)$", makefile, flags=re.MULTILINE)).split())


@each_page
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    spans = [*code(page), *"".join(blocks(page, "sh")).splitlines()]
    named = {match[1] for span in spans if (match := re.match(r"make ([\w-]+)", span))}

    assert named <= make_targets()


def test_every_make_target_is_explained() -> None:
    explained = {row[0] for row in rows(section(DOCS / "development.md", "Make targets"))}

    assert {f"`make {target}`" for target in make_targets() - {"help"}} <= explained


@pytest.fixture
def help_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What a command prints with --help."""

    def ask(main: Callable[[], Any], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *arguments, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return ask


def test_every_admin_command_is_explained(help_of: Callable[..., str]) -> None:
    there = re.findall(r"^    ([a-z-]+) {2,}", help_of(cartd_cmd), flags=re.MULTILINE)
    headings = re.findall(r"^### cartd-cmd (.+)$", prose(DOCS / "commands.md"), flags=re.MULTILINE)

    assert sorted(there) == sorted(headings) == sorted(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_options_of_an_admin_command_are_those_explained(
    command: str, help_of: Callable[..., str]
) -> None:
    there = options(help_of(cartd_cmd, *command.split()))

    assert there == documented_options(f"cartd-cmd {command}".strip())


def test_the_options_of_pacificas_command_are_those_explained(help_of: Callable[..., str]) -> None:
    assert options(help_of(pacifica_cartd)) == documented_options("pacifica-cartd")


def test_the_options_of_the_service_are_those_explained() -> None:
    there = {f"--{name.rstrip('=')}" for name in Options().longOpt}

    assert there - {"--help", "--version"} == documented_options("twistd -n cartd")


@each_page
def test_every_admin_command_in_an_example_exists(page: Path, help_of: Callable[..., str]) -> None:
    examples = "".join(blocks(page, "sh")).splitlines() + code(page)
    for example in examples:
        if used := re.search(r"cartd-cmd(?: --config \S+)? ([a-z][\w-]+)(.*)", example):
            assert used[1] in COMMANDS, example
            there = options(help_of(cartd_cmd, used[1]))
            assert options(used[2]) <= there, example


@each_page
def test_every_configuration_that_is_shown_is_accepted(page: Path) -> None:
    for block in blocks(page, "ini"):
        if "[Service]" not in block and "[cartd]\nenabled" not in block:  # not of cartd
            load(options={}, environ={}, ini=block, ini_name=page.name)


# --- requests -----------------------------------------------------------------------------------


def test_the_requests_are_those_explained() -> None:
    explained = {row[0].strip("`") for row in rows(section(DOCS / "rest.md", "REST reference"))}
    there = {
        f"{method} {re.sub('<(.*?)>', lambda name: name[1].upper(), rule.rule)}"
        for app in APPS
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        # werkzeug takes every GET for a HEAD as well.
        if method != "HEAD" or rule.rule == "/<uid>"
        if method != "OPTIONS"
    }

    assert explained - {"request", "---"} == there


def refused_entries() -> list[tuple[str, str]]:
    table = rows(section(DOCS / "rest.md", "The manifest"))
    return [(row[0].strip("`"), row[1].strip("`")) for row in table if row[0].startswith("`[")]


@pytest.mark.parametrize(("entries", "message"), refused_entries())
def test_a_manifest_is_refused_as_explained(entries: str, message: str) -> None:
    good = {"id": 1, "path": "a", "hashtype": "sha1", "hashsum": ""}
    posted = {"fileids": [{**good, **entry} for entry in json.loads(entries)]}

    with pytest.raises(InvalidInput) as refused:
        parse(json.dumps(posted).encode())
    assert str(refused.value) == message


def test_the_manifest_that_is_shown_is_accepted() -> None:
    [shown] = [block for block in blocks(DOCS / "rest.md", "json") if "fileids" in block]

    assert len(parse(shown.encode()).entries) == 2
