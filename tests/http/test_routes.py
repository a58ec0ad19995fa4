"""The REST interface as a client sees it, request by request."""

from __future__ import annotations

import calendar
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import entry, manifest, unpacked, wait_for
from tests.support.wire import ask, assert_is_error, wire

FILES = {"a/one": b"first", "a/b/two": b"second" * 1000, "empty": b""}
BEGUN = {"message": "Cart Processing has begun"}
NOT_THERE = "The cart does not exist or has already been deleted"
NEVER = "--tape-delay=1e8"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        running.stage("ready", FILES)
        yield running


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """A site whose files are never recalled from tape."""
    with cart_site(tmp_path_factory.mktemp("tapes"), NEVER) as running:
        yield running


def fail(site: CartSite, uid: str, path: str = "gone") -> str:
    """Post a cart that ends in error; return the reason."""
    site.cartd.post(uid, manifest([entry("no-such-id", path, b"")]))
    return site.cartd.wait_until(uid, "error")


def test_the_root_reports_that_the_service_runs(site: CartSite) -> None:
    answer = site.cartd.get("/")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == {"message": "Pacifica Cartd Interface Up and Running"}


def test_a_head_of_the_root_has_the_same_headers_and_no_body(site: CartSite) -> None:
    with wire(site.port) as connection:
        connection.send(
            b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        head, get = connection.answer(to_head=True), connection.answer()
    assert head.status == get.status == 200
    of_each = {"date": "", "x-request-id": ""}
    assert {**head.headers, **of_each} == {**get.headers, **of_each}


@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain",
    "application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=x",
    "nonsense"])  # fmt: skip
def test_manifest_of_any_content_type_is_accepted(site: CartSite, content_type: str | None) -> None:
    body = site.manifest(FILES)
    headers = {} if content_type is None else {"content_type": content_type}
    uid = re.sub("[^a-z]", "", f"type{content_type}")
    answer = site.cartd.request("POST", f"/{uid}", body, **headers)
    assert (answer.status, answer.json) == (201, BEGUN)
    assert answer.headers["content-type"] == "application/json"
    site.cartd.wait_until(uid, "ready")
    assert site.cartd.download(uid) == FILES


def test_status_of_ready_cart_is_in_headers_only(site: CartSite) -> None:
    answer = ask(site.port, b"HEAD /ready HTTP/1.1\r\nHost: localhost\r\n\r\n", to_head=True)
    assert answer.status == 204
    fields = {
        name: value for name, value in answer.headers.items() if name.startswith("x-pacifica")
    }
    assert fields == {
        "x-pacifica-status": "ready",
        "x-pacifica-phase": "ready",
        "x-pacifica-message": "",
        "x-pacifica-files-total": "3",
        "x-pacifica-files-staged": "3",
        "x-pacifica-bytes-total": "6005",
        "x-pacifica-bytes-staged": "6005",
        "x-pacifica-tar-length": "20480",
    }
    assert not {"content-length", "content-type", "transfer-encoding"} & answer.headers.keys()


def test_new_cart_is_staging_and_not_ready_for_download(
    tapes: CartSite,
) -> None:
    assert tapes.cartd.post("taped", tapes.manifest(FILES)).status == 201
    assert tapes.cartd.status("taped")[0] == "staging"
    wait_for(lambda: "x-pacifica-bytes-total" in tapes.cartd.request("HEAD", "/taped").headers)
    fields = tapes.cartd.request("HEAD", "/taped").headers
    assert (fields["x-pacifica-bytes-total"], fields["x-pacifica-bytes-staged"]) == ("6005", "0")
    assert (fields["x-pacifica-files-total"], fields["x-pacifica-files-staged"]) == ("3", "0")
    answer = tapes.cartd.get("/taped?filename=x.tar")
    assert (answer.status, answer.body) == (202, b"The cart is not ready for download.")
    assert answer.headers["content-type"] == "text/plain"
    assert int(answer.headers["retry-after"]) > 0
    assert not {"content-range", "etag", "content-disposition"} & answer.headers.keys()


def test_bundling_cart_is_staging_with_phase_header(
    tapes: CartSite,
) -> None:
    assert tapes.cartd.post("bundled", tapes.manifest(FILES, bundle=True)).status == 201
    assert tapes.cartd.request("HEAD", "/bundled").headers["x-pacifica-phase"] == "staging"
    file = tapes.cartd.directory / "cartd.sqlite3"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE cart SET status = 'bundling' WHERE cart_uid = 'bundled'")
    for target in ("/bundled", "/bundled?filename=x"):
        head = tapes.cartd.request("HEAD", target)
        fields = head.headers["x-pacifica-status"], head.headers["x-pacifica-phase"]
        assert (head.status, *fields) == (204, "staging", "bundling")
    assert tapes.cartd.get("/bundled").headers["x-pacifica-phase"] == "bundling"
    assert tapes.cartd.delete("bundled").status == 200


def test_cart_in_error_gives_its_reason_to_head_and_get(site: CartSite) -> None:
    reason = fail(site, "failed")
    assert reason.startswith("Failed to stage gone (archive id no-such-id): ")
    with wire(site.port) as connection:
        connection.send(b"HEAD /failed HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = connection.answer(to_head=True)
        connection.get("/failed")
        get = connection.answer()
    assert_is_error(get, 500, reason)
    assert head.status == 500 and head.headers["content-type"] == "application/json"
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.headers["x-pacifica-files-staged"] == "0"


def test_non_ascii_reason_is_escaped(
    site: CartSite,
) -> None:
    reason = fail(site, "foreign", "é\r\nX-Evil: 1/€")
    assert r"\xe9\r\nX-Evil: 1/\u20ac " in reason
    assert r"é\r\nX-Evil: 1/€ " in site.cartd.get("/foreign").json["message"]
    head = ask(site.port, b"HEAD /foreign HTTP/1.1\r\nHost: localhost\r\n\r\n", to_head=True)
    assert "x-evil" not in head.headers


def test_a_cart_that_is_not_there_is_not_found(site: CartSite) -> None:
    with wire(site.port) as connection:
        connection.send(b"HEAD /nobody HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = connection.answer(to_head=True)
    assert (head.status, head.headers["x-pacifica-status"]) == (404, "error")
    assert head.headers["x-pacifica-message"] == "No cart with uid nobody found"
    assert_is_error(site.cartd.get("/nobody"), 404, NOT_THERE)
    assert_is_error(site.cartd.delete("nobody"), 404, "Not Found")


def test_deleted_cart_is_gone_from_rest_and_volume(site: CartSite) -> None:
    site.stage("short-lived", FILES)
    answer = site.cartd.delete("short-lived")
    assert (answer.status, answer.json) == (200, {"message": "Cart Deleted Successfully"})
    assert site.on_volume("short-lived") == []
    assert not (site.cartd.volume / "cartuids/short-lived").is_symlink()
    assert site.cartd.status("short-lived")[0] == "error"
    assert_is_error(site.cartd.get("/short-lived"), 404, NOT_THERE)
    assert_is_error(site.cartd.delete("short-lived"), 404, "Not Found")


def test_a_cart_can_be_deleted_while_it_is_staged(tapes: CartSite) -> None:
    tapes.cartd.post("given-up", tapes.manifest(FILES))
    assert tapes.cartd.delete("given-up").status == 200
    assert tapes.cartd.request("HEAD", "/given-up").status == 404
    assert tapes.on_volume("given-up") == []


def test_a_cart_of_no_files_is_ready_and_an_empty_folder(site: CartSite) -> None:
    site.stage("empty", {})
    answer = site.cartd.get("/empty?filename=nothing.tar")
    assert answer.status == 200 and unpacked(answer.body) == {}
    assert answer.body.startswith(b"nothing/\0")


def test_default_filename_is_the_time_of_posting(site: CartSite) -> None:
    before = int(time.time())
    site.stage("unnamed", FILES)
    first, second = site.cartd.get("/unnamed"), site.cartd.get("/unnamed")
    named = re.fullmatch(
        r'attachment; filename="(data_\d{4}(?:_\d\d){5})\.tar"',
        first.headers["content-disposition"],
    )
    assert named
    posted = calendar.timegm(time.strptime(named[1], "data_%Y_%m_%d_%H_%M_%S"))
    assert before <= posted <= time.time()
    assert first.body.startswith(f"{named[1]}/\0".encode())
    assert first.body == second.body
    assert unpacked(first.body) == FILES


# Posting again


def test_the_same_manifest_posted_again_changes_nothing(site: CartSite) -> None:
    body = site.manifest(FILES)
    assert site.cartd.post("twice", body).status == 201
    site.cartd.wait_until("twice", "ready")
    again = site.cartd.post("twice", body + b"\n")
    assert (again.status, again.json) == (201, BEGUN)
    assert site.cartd.status("twice") == ("ready", "")
    assert len(site.on_volume("twice")) == 1


def test_concurrent_posts_of_one_manifest_create_one_cart(site: CartSite) -> None:
    body = site.manifest(FILES)
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda _: site.cartd.post("crowd", body), range(12)))
    assert [(answer.status, answer.json) for answer in answers] == [(201, BEGUN)] * 12
    assert [row["cart_uid"] for row in site.rows("cart")].count("crowd") == 1
    site.cartd.wait_until("crowd", "ready")


def test_repost_during_staging_changes_nothing(tapes: CartSite) -> None:
    body = tapes.manifest(FILES)
    for _ in range(3):
        assert tapes.cartd.post("impatient", body).status == 201
    assert [row["cart_uid"] for row in tapes.rows("cart")].count("impatient") == 1


def test_repost_after_an_error_stages_again(site: CartSite) -> None:
    data = b"late"
    body = manifest([entry("late-id", "file", data)])
    site.cartd.post("hopeful", body)
    site.cartd.wait_until("hopeful", "error")
    site.archive.put("late-id", data)
    assert site.cartd.post("hopeful", body).status == 201
    wait_for(lambda: site.cartd.status("hopeful")[0] == "ready")
    assert site.cartd.download("hopeful") == {"file": data}


def test_newest_cart_of_a_uid_is_served_and_delete_removes_all(site: CartSite) -> None:
    for version in (b"old", b"newer", b"newest"):
        site.stage("many", {"file": version})
        assert site.cartd.download("many") == {"file": version}
    assert len(site.on_volume("many")) == 3
    assert site.cartd.delete("many").status == 200
    assert site.on_volume("many") == []
    assert site.cartd.request("HEAD", "/many").status == 404
    assert site.cartd.delete("many").status == 404
