"""Ranges of a download, and revalidation by ETag and Last-Modified."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import Answer
from tests.support.wire import WireAnswer, assert_is_error, wire

FILES = {"a/one": b"first", "a/two": bytes(range(256)) * 4096}
NAME = "/ready?filename=my.tar"
WHOLE_HEADERS = {
    "server", "date", "content-type", "content-length", "content-disposition", "accept-ranges",
    "etag", "last-modified", "cache-control", "x-pacifica-status", "x-pacifica-message",
    "x-pacifica-files-total", "x-pacifica-files-staged", "x-pacifica-bytes-total",
    "x-pacifica-bytes-staged", "x-pacifica-tar-length", "x-pacifica-phase",
    "x-request-id",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        running.stage("ready", FILES)
        yield running


@pytest.fixture(scope="module")
def whole(site: CartSite) -> Answer:
    return site.cartd.get(NAME)


def get(site: CartSite, *headers: str) -> WireAnswer:
    with wire(site.port) as connection:
        connection.get(NAME, *headers)
        return connection.answer()


def test_a_download_has_a_length_validators_and_a_name(site: CartSite, whole: Answer) -> None:
    answer = get(site)
    assert answer.status == 200
    assert answer.headers.keys() == WHOLE_HEADERS
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(whole.body))
    assert answer.headers["content-disposition"] == 'attachment; filename="my.tar"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"].startswith('"') and answer.headers["etag"].endswith('"')
    modified = time.strptime(answer.headers["last-modified"], "%a, %d %b %Y %H:%M:%S GMT")
    [row] = [row for row in site.rows("cart") if row["cart_uid"] == "ready"]
    since = time.strptime(row["tar_date"].partition(".")[0], "%Y-%m-%d %H:%M:%S")
    assert calendar.timegm(modified) == calendar.timegm(since)


def test_another_name_is_another_tar(site: CartSite, whole: Answer) -> None:
    other = site.cartd.get("/ready?filename=other.tar")
    assert other.headers["etag"] != whole.headers["etag"]
    assert other.body != whole.body


LAST = 1_054_719
"""The last byte of the tar, which has 1 MiB of data, 3 headers and its padding."""

PARTS = {
    "the first byte": ("bytes=0-0", 0, 1),
    "from a byte on": ("bytes=1000000-", 1_000_000, LAST + 1),
    "across the files": ("bytes=1500-3000", 1500, 3001),
    "the last bytes": ("bytes=-10300", LAST - 10299, LAST + 1),
    "more than the last bytes": (f"bytes=-{10**30}", 0, LAST + 1),
    "to beyond the end": (f"bytes=5-{10**30}", 5, LAST + 1),
    "all": (f"bytes=0-{LAST}", 0, LAST + 1),
    "with spaces and capitals": ("Bytes= 7-9 ", 7, 10),
}


@pytest.mark.parametrize(("header", "start", "stop"), PARTS.values(), ids=PARTS.keys())
def test_a_range_is_the_slice_of_the_whole(
    site: CartSite, whole: Answer, header: str, start: int, stop: int
) -> None:
    assert len(whole.body) == LAST + 1
    answer = get(site, f"Range: {header}")
    assert answer.status == 206
    assert answer.headers.keys() == WHOLE_HEADERS | {"content-range"}
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{LAST + 1}"
    assert answer.headers["content-length"] == str(stop - start)
    assert answer.headers["etag"] == whole.headers["etag"]
    assert answer.body == whole.body[start:stop]


IGNORED = ["bytes=0-0,5-9", "bytes=9-5", "bytes=", "bytes=a-b", "lines=1-2", "bytes=--5", "0-5"]


@pytest.mark.parametrize("header", IGNORED)
def test_a_range_that_is_none_or_more_than_one_gives_the_whole(
    site: CartSite, whole: Answer, header: str
) -> None:
    answer = get(site, f"Range: {header}")
    assert (answer.status, answer.body) == (200, whole.body)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("header", [f"bytes={LAST + 1}-", f"bytes={10**40}-{10**41}", "bytes=-0"])
def test_a_range_beyond_the_end_gets_416_with_the_length(site: CartSite, header: str) -> None:
    answer = get(site, f"Range: {header}")
    message = f"The range {header} selects none of the {LAST + 1} bytes"
    assert_is_error(answer, 416, message)
    assert answer.headers["content-range"] == f"bytes */{LAST + 1}"
    assert not {"content-disposition", "etag", "accept-ranges"} & answer.headers.keys()


def test_if_range_selects_the_range_or_the_whole_tar(site: CartSite, whole: Answer) -> None:
    etag = whole.headers["etag"]
    assert get(site, "Range: bytes=1-2", f"If-Range: {etag}").status == 206
    later = "Tue, 01 Jan 2199 00:00:00 GMT"
    for validator in ('"another"', f"W/{etag}", later, "nonsense"):
        answer = get(site, "Range: bytes=1-2", f"If-Range: {validator}")
        assert (answer.status, answer.body) == (200, whole.body)


def test_an_unmodified_file_is_answered_with_304(site: CartSite, whole: Answer) -> None:
    etag = whole.headers["etag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        with wire(site.port) as connection:
            connection.get(NAME, f"If-None-Match: {header}", "Range: bytes=0-9")
            answer = connection.answer()
            assert answer.status == 304
            field_names = {name for name in answer.headers if not name.startswith("x-pacifica-")}
            assert field_names == {"server", "date", "etag", "cache-control", "x-request-id"}
            assert answer.headers["etag"] == etag
            connection.get("/")  # the connection stays usable: there was no body
            assert connection.answer().status == 200
    assert get(site, 'If-None-Match: "other"').status == 200


def test_a_cart_written_as_a_bundle_has_the_same_parts(site: CartSite) -> None:
    site.stage("bundled", FILES, bundle=True)
    assert [path.name for path in site.on_volume("bundled")] == ["bundled.tar"]
    whole = site.cartd.get("/bundled?filename=any.tar")
    assert whole.body.startswith(b"bundled/\0")
    assert whole.headers["content-disposition"] == 'attachment; filename="any.tar"'
    part = site.cartd.get(
        "/bundled?filename=other.tar", Range="bytes=1000-20000", If_Range=whole.headers["etag"]
    )
    assert (part.status, part.body) == (206, whole.body[1000:20001])
    assert part.headers["content-range"] == f"bytes 1000-20000/{len(whole.body)}"
