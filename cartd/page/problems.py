"""The pages about the problem types."""

from __future__ import annotations

import re
from collections.abc import Mapping

from twisted.web.template import Tag, tags

from cartd.page.layout import Page

PROBLEMS = "/-/problems"
"""The path of the list; the pages are below it."""


def problem_page(name: str, title: str, meaning: str, remedy: str) -> Page:
    """Return the page of one problem type; in the texts, code is between backticks."""
    return Page(
        _plain(title),
        Tag("main")(
            tags.article(
                tags.h1(*_marked_up(title)),
                tags.p(tags.code(name), class_="quiet"),
                tags.p(*_marked_up(meaning), class_="lead"),
                tags.h2("What to do"),
                tags.p(*_marked_up(remedy)),
                tags.p(tags.a("All problems", href=PROBLEMS), class_="more"),
            )
        ),
    )


def problems_page(titles: Mapping[str, str]) -> Page:
    """Return the list of all problem types, by their names."""
    rows = (
        tags.tr(
            tags.th(tags.a(*_marked_up(title), href=f"{PROBLEMS}/{name}"), scope="row"),
            tags.td(tags.code(name)),
        )
        for name, title in titles.items()
    )
    head = tags.thead(tags.tr(tags.th("Problem", scope="col"), tags.th("Name", scope="col")))
    table = tags.table(head, tags.tbody(*rows), class_="cards")
    text = "An error of the service names its problem; the page of each says what to do."
    return Page(
        "Problems",
        Tag("main")(tags.article(tags.h1("Problems"), tags.p(text, class_="lead"), table)),
    )


def _marked_up(text: str) -> list[Tag | str]:
    parts = re.split(r"`([^`]*)`", text)
    return [tags.code(part) if index % 2 else part for index, part in enumerate(parts)]


def _plain(text: str) -> str:
    return text.replace("`", "")
