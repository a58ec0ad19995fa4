"""The page for administrators: the state of the whole service, read only."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from twisted.web.template import Tag, tags

from cartd import __version__
from cartd.model import CartStatus
from cartd.page.layout import Page, Visitor, moment
from cartd.page.units import count, size
from cartd.status.health import Level
from cartd.status.overview import Overview, OwnerUsage

ADMIN = "/-/admin"
MAX_OWNERS = 100
_STATUSES = tuple(status for status in CartStatus if status is not CartStatus.DELETED)
_LEVELS = {Level.OK: "passes", Level.WARN: "warning", Level.FAIL: "fails"}
_KINDS = {Level.OK: "complete", Level.WARN: "partial", Level.FAIL: "failed"}


def admin_page(overview: Overview, visitor: Visitor) -> Page:
    """Return the page."""
    number, freed = overview.evicted
    evicted = f"{count(number, 'cart')}, {size(freed)}" if number else "none"
    main = Tag("main")(
        tags.article(
            tags.div(
                tags.h1("Service"),
                _level(overview.health.status),
                class_="heading",
            ),
            tags.dl(
                *(
                    tags.div(tags.dt(name), tags.dd(value))
                    for name, value in (
                        ("Version", __version__),
                        ("Downloads now", f"{overview.downloads:,}"),
                        ("Evicted in 24 hours", evicted),
                        ("Archive", overview.archive_url),
                    )
                ),
                class_="facts wide",
            ),
            _checks(overview),
        ),
        tags.article(tags.h2("Volume"), *_volume(overview)),
        tags.article(tags.h2("Carts"), _owners(overview.owners)),
    )
    return Page(
        "Service", main(**{"data-page": ADMIN, "data-every": "10"}), refresh=ADMIN, here=ADMIN
    )


def _level(level: Level) -> Tag:
    return tags.strong(_LEVELS[level], class_=f"state {_KINDS[level]}")


def _checks(overview: Overview) -> Tag:
    rows = []
    for name, check in overview.health.checks.items():
        detail = "" if check.detail is UNSET else check.detail
        rows.append(
            tags.tr(
                tags.th(name, scope="row"),
                tags.td(_level(check.status)),
                tags.td(moment(check.since)),
                tags.td(detail),
            )
        )
    names = ("Check", "Result", "Since", "Detail")
    head = tags.thead(tags.tr(*(tags.th(name, scope="col") for name in names)))
    return tags.table(head, tags.tbody(*rows), class_="cards")


def _volume(overview: Overview) -> list[Tag]:
    disk = overview.disk
    if disk is None:
        return [tags.p("The volume cannot be used; see the check above.")]
    other = max(0, disk.total - disk.free - overview.used)
    kept = min(overview.reserve, disk.free)
    parts = [
        ("staged", "carts", overview.used),
        ("fetching", "promised to carts", min(overview.reserved, disk.free)),
        ("other", "other files", other),
        ("waiting", "free", disk.free),
    ]
    drawing = Tag("svg")(class_="bar", role="img")(**{"aria-label": "Use of the volume"})
    at = 0.0
    for kind, _, number in parts[:-1]:
        width = min(100 * number / max(1, disk.total), 100 - at)
        drawing(
            Tag("rect")(
                class_=f"{kind} still", x=f"{at:.2f}%", width=f"{width:.2f}%", height="100%"
            )
        )
        at += width
    legend = tags.ul(class_="legend")
    for kind, name, number in parts:
        legend(tags.li(tags.i(class_=kind), tags.b(size(number)), f" {name}"))
    quota = "none" if overview.quota is None else size(overview.quota)
    limits = tags.p(
        f"Of {size(disk.total)}. Quota for carts: {quota}. Kept free: {size(overview.reserve)}",
        "" if kept == overview.reserve else ", which is more than is free",
        ".",
        class_="quiet",
    )
    return [drawing, legend, limits]


def _owners(owners: Sequence[OwnerUsage]) -> Tag:
    if not owners:
        return tags.p("There are no carts.", class_="empty")
    names = ("Owner", *(status.value for status in _STATUSES), "on the volume")
    head = tags.thead(tags.tr(*(tags.th(name, scope="col") for name in names)))
    body = tags.tbody()
    for usage in owners[:MAX_OWNERS]:
        owner = tags.i("no owner") if usage.owner is None else usage.owner
        numbers = (f"{usage.carts.get(status, 0):,}" for status in _STATUSES)
        body(
            tags.tr(
                tags.th(owner, scope="row"),
                *(tags.td(number, class_="number") for number in (*numbers, size(usage.bytes))),
            )
        )
    table = tags.table(head, body)
    scroll = tags.div(table, class_="scroll", tabindex="0", role="region")
    scroll(**{"aria-label": "Carts by owner"})
    if len(owners) > MAX_OWNERS:
        scroll(tags.p(f"And {count(len(owners) - MAX_OWNERS, 'owner')} more.", class_="quiet"))
    return scroll
