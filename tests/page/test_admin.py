"""The page for administrators."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from twisted.internet.defer import Deferred

from cartd.model import CartStatus
from cartd.page.admin import MAX_OWNERS, admin_page
from cartd.page.layout import Visitor, render
from cartd.status.health import CheckResult, HealthDocument, Level
from cartd.status.overview import Overview, OwnerUsage
from cartd.volume import DiskUsage

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
ROOT = Visitor("http://localhost", user="root", auth=True, lists=True, admin=True)
OVERVIEW = Overview(
    health=HealthDocument(
        status=Level.WARN,
        checks={"archive": CheckResult(status=Level.WARN, since=NOW, detail="refused")},
    ),
    disk=DiskUsage(total=1000 * 10**9, free=300 * 10**9),
    used=500 * 10**9,
    reserved=100 * 10**9,
    quota=None,
    reserve=50 * 10**9,
    owners=[
        OwnerUsage("alice", {CartStatus.READY: 3}, 400 * 10**9),
        OwnerUsage(None, {CartStatus.STAGING: 1}, 100 * 10**9),
    ],
    downloads=2,
    evicted=(4, 70 * 10**9),
    archive_url="http://archive:8080/",
)


def html(overview: Overview) -> str:
    found: list[bytes] = []
    page = admin_page(overview, ROOT)
    Deferred.fromCoroutine(render(page, ROOT)).addCallback(found.append)
    return found[0].decode()


def test_the_use_of_the_volume_adds_up_to_its_size() -> None:
    page = html(OVERVIEW)
    for text in ("500 GB</b> carts", "100 GB</b> promised", "200 GB</b> other", "300 GB</b> free"):
        assert text in page
    assert 'x="50.00%" width="10.00%"' in page and 'x="60.00%" width="20.00%"' in page
    assert "Of 1.00 TB. Quota for carts: none. Kept free: 50.0 GB." in page


def test_checks_downloads_and_evictions_are_shown() -> None:
    page = html(OVERVIEW)
    assert "warning" in page and "refused" in page
    assert "4 carts, 70.0 GB" in page
    assert "none</dd>" in html(replace(OVERVIEW, evicted=(0, 0)))


def test_carts_are_counted_by_owner_and_status() -> None:
    page = html(OVERVIEW)
    assert '<th scope="row">alice</th>' in page and "<i>no owner</i>" in page
    many = [OwnerUsage(f"u{number}", {}, 0) for number in range(MAX_OWNERS + 3)]
    assert "And 3 owners more." in html(replace(OVERVIEW, owners=many))
    assert "There are no carts." in html(replace(OVERVIEW, owners=[]))


def test_a_volume_that_cannot_be_used_is_said_so() -> None:
    assert "The volume cannot be used" in html(replace(OVERVIEW, disk=None))
