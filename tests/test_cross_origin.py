"""Requests of a browser for a page of another site: what they may not do, and for whom they may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.web.http_headers import Headers

from cartd.server.cross_origin import is_forbidden
from tests.cart_site import CartSite, cart_site
from tests.directory_archive_client import directory_archive
from tests.wire import ask, assert_is_error

PORTAL = "https://portal.example.org"
FILES = {"a": b"data"}
REASON = (
    "A page of another site may not change anything here, unless [server] origins names it; a"
    " proxy in front must pass the header Host on"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = f"[server]\norigins = {PORTAL}\n"
    with cart_site(tmp_path_factory.mktemp("site"), ini=ini) as running:
        running.stage("kept", FILES)
        yield running


FORBIDDEN = {
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "an unknown site": {"Sec-Fetch-Site": "elsewhere"},
    "an empty site": {"Sec-Fetch-Site": ""},
    "cross-site, of the host": {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8081"},
    "another origin": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://localhost:8082"},
    "no port": {"Origin": "http://localhost"},
    "null": {"Origin": "null"},
    "an empty origin": {"Origin": ""},
    "no URL": {"Origin": "localhost:8081"},
    "no ASCII": {"Origin": "http://localhost:8081\xe9"},
    "half of a bracket": {"Origin": "http://[::1"},
    "the host as a user": {"Origin": "http://localhost:8081@evil.example"},
    "like the portal": {"Origin": f"{PORTAL}.evil.example"},
    "the portal without TLS": {"Origin": "http://portal.example.org"},
}
ALLOWED = {
    "no browser": {},
    "the user": {"Sec-Fetch-Site": "none"},
    "the same origin": {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxied.example"},
    "the host": {"Origin": "http://localhost:8081"},
    "the host behind TLS": {"Origin": "https://LOCALHOST:8081"},
    "the portal": {"Origin": PORTAL},
    "the portal, cross-site": {"Origin": PORTAL, "Sec-Fetch-Site": "cross-site"},
}


def headers(given: dict[str, str]) -> Headers:
    return Headers({name.encode(): [value.encode("latin-1")] for name, value in given.items()})


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"PUT", b"PATCH", b"UNKNOWN"])
@pytest.mark.parametrize("given", FORBIDDEN.values(), ids=FORBIDDEN)
def test_pages_of_others_change_nothing(given: dict[str, str], method: bytes) -> None:
    assert is_forbidden(method, b"localhost:8081", headers(given), {PORTAL})


@pytest.mark.parametrize("given", ALLOWED.values(), ids=ALLOWED)
def test_its_own_pages_and_named_ones_may(given: dict[str, str]) -> None:
    assert not is_forbidden(b"POST", b"localhost:8081", headers(given), {PORTAL})


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
@pytest.mark.parametrize("given", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_changes_nothing_may_be_asked_by_all(given: dict[str, str], method: bytes) -> None:
    assert not is_forbidden(method, b"localhost:8081", headers(given), ())


def test_an_origin_is_not_that_of_a_host_that_is_not_named() -> None:
    for origin in ("null", "", "http://", "http://localhost"):
        assert is_forbidden(b"POST", None, headers({"Origin": origin}), ())


def test_of_two_headers_both_count() -> None:
    two = Headers({b"Origin": [b"http://localhost", b"https://evil.example"]})
    assert is_forbidden(b"POST", b"localhost", two, ())
    two = Headers({b"Sec-Fetch-Site": [b"same-origin", b"cross-site"]})
    assert is_forbidden(b"POST", b"localhost", two, ())


FORM = "Origin: https://evil.example\r\nContent-Type: text/plain"
NO_CORS = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nOrigin: https://evil.example"


@pytest.mark.parametrize("sent", [FORM, NO_CORS, "Origin: null"])
def test_a_cart_is_neither_posted_nor_deleted_for_a_page_of_another_site(
    site: CartSite, sent: str
) -> None:
    before = len(site.cartd.log)
    body = site.manifest(FILES)
    more = f"Host: localhost:{site.port}\r\n{sent}\r\n"
    head = f"POST /forged HTTP/1.1\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    assert_is_error(ask(site.port, head.encode() + body), 403, REASON)
    expecting = head.replace("Content-Length", "Expect: 100-continue\r\nContent-Length")
    assert ask(site.port, expecting.encode()).status == 403
    assert ask(site.port, f"DELETE /kept HTTP/1.1\r\n{more}\r\n".encode()).status == 403
    assert site.cartd.request("HEAD", "/forged").status == 404
    assert site.cartd.status("kept") == ("ready", "")
    assert "Refused 403" not in site.cartd.log[before:]  # or a page could have its reader banned


def test_a_cart_is_posted_for_the_pages_that_are_named_and_for_its_own(site: CartSite) -> None:
    for origin in (PORTAL, f"http://localhost:{site.port}"):
        body = site.manifest(FILES)
        more = f"Host: localhost:{site.port}\r\nOrigin: {origin}\r\nContent-Length: {len(body)}"
        answer = ask(site.port, f"POST /page HTTP/1.1\r\n{more}\r\n\r\n".encode() + body)
        assert answer.status == 201


@pytest_twisted.ensureDeferred
async def test_no_file_of_the_archive_is_changed_for_a_page_of_another_site(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_bytes(b"data")
    async with directory_archive(tmp_path) as client:
        for method, body in (
            ("PUT", b"evil"), ("PATCH", b'{"path": "x"}'), ("POST", b""), ("DELETE", b"")
        ):  # fmt: skip
            for given in ({"sec_fetch_site": "cross-site"}, {"origin": "https://evil.example"}):
                assert (await client.ask(method, "/file", body, **given)).status == 403
        assert (await client.ask("PUT", "/file", b"new")).status == 201
    assert (tmp_path / "file").read_bytes() == b"new"
