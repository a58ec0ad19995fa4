"""The start page and the list of carts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime

from msgspec import UNSET
from twisted.web.template import Tag, tags

from cartd.model import Outcome
from cartd.page.cart import bar, cart_url, command, done, name_of, state
from cartd.page.layout import Page, Visitor, base_of, find_form, form
from cartd.page.units import age, percent, size, utc
from cartd.status.document import Status

CARTS = "/-/carts"
REFRESH_SECONDS = "10"
STATUSES = ("waiting", "staging", "bundling", "ready", "partial", "error")
"""What the list can be filtered by."""


def start_page(visitor: Visitor, carts: Sequence[Status], now: datetime) -> Page:
    """Return the page at ``/``; ``carts``: the visitor's newest."""
    main = Tag("main")(
        tags.article(
            tags.h1("Files from the archive, as one tar"),
            tags.p(
                "A program posts a list of files. cartd fetches them from disk or tape, verifies"
                " them, and keeps them here for download.",
                class_="lead",
            ),
            find_form(),
        )
    )
    if carts:
        main(
            tags.article(
                tags.h2("Your newest carts"),
                _table(visitor, carts, now, delete=False),
                tags.p(tags.a("All carts", href=CARTS), class_="more"),
            )
        )
    elif visitor.tokens and visitor.user is None:
        sign_in = tags.a("Sign in", role="button", href=CARTS)
        main(
            tags.article(
                tags.h2("Your carts"),
                tags.p("The browser asks for your name and your token, as the password."),
                tags.p(sign_in, class_="action"),
            )
        )
    base = shlex.quote(visitor.base_url)
    main(
        tags.article(
            tags.h2("In a terminal"),
            tags.p(
                tags.code("cart"),
                " posts a manifest, waits, downloads, verifies and unpacks its files. The same line"
                " goes on if it was interrupted:",
            ),
            command(f"cart --url {base} fetch my-data.json"),
            tags.p(
                "Without it: post a manifest under a uid of your choice, poll its status, download"
                " its tar. The ",
                tags.a("API description", href="/-/openapi.json"),
                " has all requests.",
            ),
            command(f"curl -X POST --upload-file my-data.json {base}/my-cart"),
        )
    )
    return Page("Start", main(**base_of(visitor)), here="/")


def carts_page(
    visitor: Visitor,
    carts: Sequence[Status],
    now: datetime,
    filters: Mapping[str, str],
    url: str,
    following: str | None = None,
) -> Page:
    """Return the list of carts at ``url``.

    ``filters``: the wanted status, label and owner; ``following``: the address of the rest, if
    there is more.
    """
    status, label, owner = (filters.get(name, "") for name in ("status", "label", "owner"))
    select = tags.select(name="status", id="status")
    for value in ("", *STATUSES):
        option = tags.option(value or "all", value=value)
        select(option(selected="selected") if value == status else option)
    form_of_filters = tags.form(
        tags.label("Status", select, for_="status"),
        tags.label("Label", tags.input(type="text", name="label", value=label)),
        *(
            [tags.label("Owner", tags.input(type="text", name="owner", value=owner))]
            if visitor.admin
            else []
        ),
        tags.button("Filter", type="submit"),
        method="get", action=CARTS, class_="filters",
    )  # fmt: skip
    article = tags.article(tags.h1("Carts"), form_of_filters)
    if carts:
        article(_table(visitor, carts, now, delete=True))
    else:
        filtered = status or label or owner
        article(tags.p("No cart matches." if filtered else "There are no carts.", class_="empty"))
    if following is not None:
        article(tags.p(tags.a("Older carts", href=following), class_="more"))
    main = Tag("main")(article)
    main(**{"data-page": url, "data-every": REFRESH_SECONDS})
    return Page("Carts", main, refresh=url, here=CARTS)


def _table(visitor: Visitor, carts: Sequence[Status], now: datetime, *, delete: bool) -> Tag:
    columns = ["Cart", "State", "Progress", "Size", "Posted", *(["Delete"] if delete else [])]
    head = tags.thead(tags.tr(*(tags.th(name, scope="col") for name in columns)))
    body = tags.tbody(*(_row(visitor, status, now, delete=delete) for status in carts))
    return tags.table(head, body, class_="cards")


def _row(visitor: Visitor, status: Status, now: datetime, *, delete: bool) -> Tag:
    length = "" if status.bytes.total is UNSET else size(status.bytes.total)
    stamp = status.created.strftime("%Y-%m-%dT%H:%M:%SZ")
    posted = tags.time(age(status.created, now), datetime=stamp, title=utc(status.created))
    owner = [] if status.owner is UNSET or status.owner == visitor.user else [status.owner]
    notes = [*owner, *([] if status.name is UNSET else [status.uid])]
    failed = []
    if status.files.failed:
        what = "missing" if status.outcome is Outcome.PARTIAL else "failed"
        failed.append(tags.div(f"{status.files.failed:,} {what}", class_="quiet"))
    row = tags.tr(
        tags.th(
            tags.a(name_of(status), href=cart_url(status.uid)),
            *([tags.div(" \u00b7 ".join(notes), class_="quiet")] if notes else []),
            *(tags.span(label, class_="label") for label in status.labels),
            scope="row",
        ),
        tags.td(state(status), *failed),
        tags.td(bar(status, small=True), tags.span(percent(done(status)), class_="quiet")),
        tags.td(length, class_="number"),
        tags.td(posted(**{"data-age": "1"}), class_="number"),
    )
    if delete:
        question = tags.summary("Delete\u2026", **{"aria-label": f"Delete {name_of(status)}\u2026"})
        button = tags.button("Yes, delete it", type="submit", class_="danger")
        action = tags.input(type="hidden", name="action", value="delete")
        back = tags.input(type="hidden", name="back", value="list")
        target = f"{cart_url(status.uid)}/form"
        row(tags.td(tags.details(question, form(visitor, target, action, back, button))))
    return row
