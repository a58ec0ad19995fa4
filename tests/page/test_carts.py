"""The start page and the list of carts."""

from __future__ import annotations

import re
from datetime import timedelta

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from cartd.page.carts import carts_page, start_page
from cartd.page.layout import Page, Visitor, render, sign_in_page
from tests.page.test_cart import FAILED, NOW, PARTIAL, READY, STAGING, VISITOR

LATER = NOW + timedelta(hours=3)
ALICE = Visitor("https://carts.example.org", user="alice", auth=True, lists=True)


def html(page: Page, visitor: Visitor = VISITOR) -> str:
    found: list[bytes] = []
    Deferred.fromCoroutine(render(page, visitor)).addCallback(found.append)
    return found[0].decode()


def test_the_list_shows_state_size_and_age_of_each_cart() -> None:
    named = replace(STAGING, name="Mine", labels=["raw"], owner="bob")
    carts = [named, READY, FAILED, PARTIAL]
    page = html(carts_page(ALICE, carts, LATER, {}, "/-/carts"), ALICE)
    assert page.count("<tr>") == 5
    assert re.search("<td>partial<div[^>]*>3 missing</div></td>", page)
    assert '<a href="/-/carts/my-cart">Mine</a>' in page
    assert "bob \u00b7 my-cart" in page and '<span class="label">raw</span>' in page
    assert "3 hours ago" in page and "100 GB" in page
    for state in ("staging", "ready", "failed", "partial"):
        assert page.count(f"<td>{state}<") == 1
    assert 'content="10; url=/-/carts"' in page


def test_the_filters_are_kept_and_the_rest_is_linked() -> None:
    chosen = {"status": "ready", "label": 'a"b'}
    page = html(carts_page(ALICE, [READY], LATER, chosen, "/-/carts", "/-/carts?after=9"), ALICE)
    assert '<option value="ready" selected="selected">' in page
    assert 'value="a&quot;b"' in page and 'href="/-/carts?after=9"' in page
    assert 'name="owner"' not in page
    admin = replace_admin(ALICE)
    assert 'name="owner"' in html(carts_page(admin, [READY], LATER, {}, "/-/carts"), admin)


def replace_admin(visitor: Visitor) -> Visitor:
    return Visitor(visitor.base_url, user="root", auth=True, lists=True, admin=True)


def test_an_empty_list_says_so() -> None:
    assert "There are no carts." in html(carts_page(ALICE, [], LATER, {}, "/-/carts"))
    assert "No cart matches." in html(carts_page(ALICE, [], LATER, {"label": "x"}, "/-/carts"))


def test_the_start_page_shows_own_carts_or_how_to_sign_in() -> None:
    assert "Your newest carts" in html(start_page(ALICE, [READY], LATER), ALICE)
    stranger = Visitor("http://localhost", auth=True, tokens=True)
    signed_out = html(start_page(stranger, [], LATER), stranger)
    assert signed_out.count("Sign in") == 2 and "Your newest carts" not in signed_out
    assert "Sign in" not in html(start_page(VISITOR, [], LATER))


def test_the_start_page_has_the_line_that_fetches_a_manifest() -> None:
    line = "cart --url https://carts.example.org fetch my-data.json"
    assert line in html(start_page(ALICE, [], LATER), ALICE)


def test_the_navigation_has_what_the_visitor_may_see() -> None:
    assert "/-/admin" not in html(start_page(ALICE, [], LATER), ALICE)
    root = replace_admin(ALICE)
    page = html(start_page(root, [], LATER), root)
    assert 'href="/-/admin"' in page and 'title="Signed in">root</span>' in page


def test_the_page_for_a_client_that_is_not_authenticated_escapes_the_message() -> None:
    page = sign_in_page("<b>").decode()
    assert "&lt;b&gt;" in page and "<b>" not in page
