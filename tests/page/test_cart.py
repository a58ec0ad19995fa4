"""The page of a cart shows what its status document says, and nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace
from twisted.internet.defer import Deferred

from cartd.http.headers import check_filename
from cartd.model import CartStatus, Outcome
from cartd.page.cart import NO_HASHES, Hashes, cart_page, done, download_name, segments
from cartd.page.layout import Visitor, render
from cartd.status.document import (
    Basis,
    Bytes,
    Download,
    Eta,
    FailedFile,
    Files,
    Phase,
    Queue,
    Rate,
    Status,
)

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
STAGING = Status(
    uid="my-cart",
    labels=[],
    status=CartStatus.STAGING,
    outcome=None,
    phase=Phase.FETCHING,
    message="Files are fetched",
    created=NOW,
    updated=NOW,
    version=7,
    files=Files(total=1200, staged=581, failed=1, linked=0, waiting=400, recalling=210, fetching=8),
    bytes=Bytes(total=100_000_000_000, staged=48_230_000_000, fetched=48_230_000_000, linked=0),
    progress=48.4,
    links={"self": "/-/carts/my-cart", "events": "/-/carts/my-cart/events"},
)
READY = replace(
    STAGING,
    status=CartStatus.READY,
    outcome=Outcome.COMPLETE,
    phase=Phase.DONE,
    files=Files(total=3, staged=3, failed=0, linked=0, waiting=0),
    progress=100.0,
    download=Download(url="/my-cart", length=12_500_000_000, formats=["tar"]),
)
FAILED = replace(READY, status=CartStatus.ERROR, outcome=Outcome.FAILED, progress=66.0)
PARTIAL = replace(
    READY,
    outcome=Outcome.PARTIAL,
    files=Files(total=1610, staged=1607, failed=3, linked=0, waiting=0),
)
BAGGED = replace(
    READY,
    download=Download(url="/my-cart", formats=["tar", "bag"]),
    links={**READY.links, "checksums": "/-/carts/my-cart/checksums"},
)
MISSING = FailedFile(
    position=41, id="9", path="a/b", error="it is not there", problem="file-not-in-archive"
)
HALF = Files(total=4, staged=2, failed=2, linked=0, waiting=0)
VISITOR = Visitor("http://localhost:8081")


def html(
    status: Status,
    *failed: FailedFile,
    more: int = 0,
    visitor: Visitor = VISITOR,
    hashes: Hashes = NO_HASHES,
) -> str:
    found: list[bytes] = []
    page = cart_page(status, visitor, failed, more, hashes)
    Deferred.fromCoroutine(render(page, visitor)).addCallback(found.append)
    return found[0].decode()


def fact(page: str, name: str) -> str | None:
    """Return a fact that is shown, None if it is hidden."""
    found = re.search(rf'<div( hidden="")?><dt>{name}</dt><dd[^>]*>([^<]*)</dd>', page)
    assert found
    return None if found[1] else found[2]


def test_the_title_has_percentage_state_and_name() -> None:
    assert "<title>48 % staging \u00b7 my-cart \u2013 cartd</title>" in html(STAGING)
    assert "<title>Ready \u00b7 Mine \u2013 cartd</title>" in html(replace(READY, name="Mine"))


def test_what_is_not_known_is_not_shown() -> None:
    page = html(replace(STAGING, bytes=replace(STAGING.bytes, total=UNSET)))
    assert (fact(page, "Files"), fact(page, "Data")) == ("581 of 1,200", "48.2 GB")
    assert [fact(page, name) for name in ("Rate", "Time to go", "In the queue")] == [None] * 3


def test_what_is_known_is_shown_as_a_span() -> None:
    page = html(
        replace(
            STAGING,
            rate=Rate(recent=81_000_000),
            eta=Eta(seconds=900, low=700, high=1500, basis=Basis.RATE),
            queue=Queue(carts_ahead=3, files_ahead=5120),
        )
    )
    assert fact(page, "Data") == "48.2 GB of 100 GB"
    assert fact(page, "Rate") == "81.0 MB/s"
    assert fact(page, "Time to go") == "about 12 to 25 minutes"
    assert fact(page, "In the queue") == "3 carts before yours"


def test_only_a_ready_cart_can_be_downloaded() -> None:
    assert 'href="/my-cart?filename=my-cart.tar"' in html(READY)
    page = html(STAGING)
    assert 'href="/my-cart?' not in page
    assert re.search(r'<button class="download" disabled="" aria-describedby="why">', page)
    assert "Download" not in html(FAILED)


def test_a_partial_cart_says_what_is_missing_and_is_offered_all_the_same() -> None:
    page = html(PARTIAL, MISSING)
    assert "<title>Partial \u00b7 my-cart" in page and "99 %, partial" in page
    assert "<h2>3 of 1,610 files are missing</h2>" in page
    assert "it is not there" in page
    assert 'href="/-/problems/file-not-in-archive"' in page
    assert "Retry the missing files" in page
    download = 'href="/my-cart?filename=my-cart.tar"'
    assert 0 < page.index(download) < page.index("are missing</h2>")
    one = replace(PARTIAL.files, total=1, staged=0, failed=1)
    assert "<h2>1 of 1 file is missing</h2>" in html(replace(PARTIAL, files=one))


def test_a_bag_is_offered_where_there_is_one() -> None:
    page = html(BAGGED, hashes=Hashes(common=True))
    for path in ("format=tar&amp;filename=my-cart.tar", "format=bag&amp;filename=my-cart-bag.tar"):
        assert f'href="/my-cart?{path}"' in page
    for status in (READY, STAGING, FAILED):
        assert "format=bag" not in html(status, hashes=Hashes(common=True))
    assert "format=bag" not in html(BAGGED)


@pytest.mark.parametrize(
    ("hash_types", "program"),
    [(["sha256"], "sha256sum"), (["md5"], "md5sum"), (["blake2b"], "b2sum"),
     (["sha1", "sha512"], "cksum"), (["sha3_256"], None), (["sha1", "sha3_256"], None), ([], None)],
)  # fmt: skip
def test_the_checksums_are_checked_by_the_program_for_them(
    hash_types: list[str], program: str | None
) -> None:
    page = html(BAGGED, hashes=Hashes(frozenset(hash_types)))
    line = "curl -sf http://localhost:8081/-/carts/my-cart/checksums | "
    assert (f"{line}{program} -c --quiet" in page) is (program is not None)
    assert ("How to check" in page) is (program is not None)


def test_only_an_unfinished_cart_refreshes_itself_and_has_events() -> None:
    assert 'content="10; url=/-/carts/my-cart"' in html(STAGING)
    assert 'data-events="/-/carts/my-cart/events"' in html(STAGING)
    assert "http-equiv" not in html(READY) + html(FAILED)
    assert "data-events" not in html(READY) + html(FAILED)


def test_the_times_of_a_download_follow_from_its_length() -> None:
    assert "about 17 minutes at 100 Mbit/s, about 100 seconds" not in html(READY)
    assert "about 17 minutes at 100 Mbit/s, about 2 minutes at 1 Gbit/s" in html(READY)


def test_failed_files_are_listed_with_their_reasons_and_the_next_page() -> None:
    files = replace(FAILED.files, failed=60)
    one = FailedFile(position=41, id="9", path="a/b", error="not in the archive")
    page = html(replace(FAILED, files=files), one, more=59)
    assert "<h2>60 files failed</h2>" in page
    assert '<th scope="row">a/b</th><td>not in the archive</td>' in page
    assert 'href="/-/carts/my-cart?after=41"' in page


def test_below_the_path_of_a_proxy_all_addresses_begin_with_it() -> None:
    visitor = Visitor("https://example.org/carts", prefix="/carts", auth=True)
    page = html(STAGING, visitor=visitor) + html(READY, visitor=visitor)
    page += html(BAGGED, visitor=visitor) + html(PARTIAL, MISSING, visitor=visitor)
    addresses = re.findall(r'(?:href|src|action|data-[a-z]+)="(/[^"]*)|url=([^"]*)', page)
    assert len(addresses) > 20
    assert all((one or other).startswith("/carts/") for one, other in addresses)
    assert "https://example.org/carts/my-cart?" in page and "data-base" not in page


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_text_from_outside_is_escaped(text: str) -> None:
    text += "</h1><script>'\"&"
    failed = FailedFile(position=1, id="9", path=text, error=text)
    visitor = Visitor("http://localhost", user=text)
    dirty = replace(FAILED, uid=text, name=text, owner=text, labels=[text], message=text)
    for page in (html(dirty, failed, visitor=visitor), html(replace(READY, uid=text, name=text))):
        assert page.count("<script") == 1
        body = page.partition("\n")[2]
        with_doctype: Any = ElementTree.fromstring(body)
        assert with_doctype.find(".//h1").text == text


def test_the_command_asks_for_a_token_where_users_have_one() -> None:
    for tokens, option in ((True, "curl -f -u alice -C"), (False, "curl -f -C")):
        visitor = Visitor("http://localhost", user="alice", auth=True, tokens=tokens)
        assert option in html(READY, visitor=visitor)


def test_curl_is_offered_for_ready_carts_only() -> None:
    """Before, it would save the status in the file that it resumes later."""
    assert "curl -f" in html(READY) and "curl -f" in html(PARTIAL)
    assert "curl -f" not in html(STAGING)


def test_the_command_is_one_word_for_the_shell() -> None:
    page = html(replace(READY, uid="a'b"))
    assert "-o 'a'\"'\"'b.tar'" in page.replace("&quot;", '"')


def test_the_client_is_told_where_the_cart_is() -> None:
    line = "cart --url http://localhost:8081 get my-cart -x ."
    for status in (READY, STAGING, PARTIAL):
        assert f"{line}<" in html(status)
    assert f"{line} --name 'a b'<" in html(replace(READY, name="a b"))
    assert "cart --url" not in html(FAILED)


@given(text=st.text(min_size=1, max_size=300))
@example(text="--")
@example(text="-.x")
def test_the_name_of_the_tar_is_valid(text: str) -> None:
    name = download_name(replace(READY, name=text))
    assert check_filename(name) == name and not name.startswith("-")


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_the_parts_of_the_bar_fill_at_most_all_of_it(
    staged: int, fetching: int, recalling: int, failed: int
) -> None:
    files = Files(
        total=10, staged=staged, failed=failed, linked=0, waiting=0,
        recalling=recalling, fetching=fetching,
    )  # fmt: skip
    parts = segments(replace(STAGING, files=files, progress=UNSET))
    assert [name for name, _, _ in parts] == ["staged", "fetching", "recalling", "failed"]
    assert all(width >= 0 for _, _, width in parts)
    assert sum(width for _, _, width in parts) <= 100.05


def test_a_failed_file_is_visible_however_much_is_fetched() -> None:
    files = replace(STAGING.files, total=100, staged=50, fetching=20, recalling=40, failed=1)
    parts = {name: width for name, _, width in segments(replace(STAGING, files=files))}
    assert parts == {"staged": 48.4, "fetching": 16.53, "recalling": 33.07, "failed": 2.0}
    parts = {name: width for name, _, width in segments(PARTIAL)}
    assert parts == {"staged": 98.0, "fetching": 0, "recalling": 0, "failed": 2.0}


@pytest.mark.parametrize(
    ("status", "percentage"),
    [(STAGING, 48.4), (READY, 100), (replace(READY, progress=UNSET), 100),
     (replace(FAILED, progress=UNSET, files=HALF), 50), (replace(PARTIAL, files=HALF), 50)],
)  # fmt: skip
def test_the_percentage_follows_from_the_files_where_it_is_not_told(
    status: Status, percentage: float
) -> None:
    assert done(status) == percentage
