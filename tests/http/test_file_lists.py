"""The lists of a cart's files: pages of JSON, and all files as lines, from the real service."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from cartd.http.carts import MAX_FILES, NDJSON
from cartd.store import sync
from tests.support.cart_site import CartSite, cart_site
from tests.support.databases import Postgres
from tests.support.running_cartd import RunningCartd, entry, manifest, running_cartd, wait_for
from tests.support.slow_reader import SlowReader

pytest_plugins = ("tests.support.database_fixtures",)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site"), ini=SHORT_RETRIES) as running:
        yield running


SHORT_RETRIES = "[archiveinterface]\nmax_attempts = 1\n"


def lines(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines()]


def pages(cartd: RunningCartd, url: str, key: str = "files") -> list[Any]:
    """Return the pages of a list, from ``url`` on."""
    found = []
    following: str | None = url
    while following is not None:
        answer = cartd.get(following)
        assert answer.status == 200, answer
        found.append(answer.json[key])
        following = answer.json.get("next")
    return found


def test_a_page_has_what_is_known_of_each_file(site: CartSite) -> None:
    site.stage("known", {"a/b": b"data"})

    answer = site.cartd.get("/-/carts/known/files")

    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["cache-control"] == "no-store" and answer.headers["vary"] == "Accept"
    assert answer.json.keys() == {"files"}
    [file] = answer.json["files"]
    assert file.pop("id").startswith("id") and file.pop("mtime").endswith("Z")
    assert file == {
        "position": 0,
        "path": "a/b",
        "size": 4,
        "hashtype": "sha1",
        "hashsum": entry(1, "", b"data")["hashsum"],
        "status": "staged",
    }


def test_pages_follow_each_other(site: CartSite) -> None:
    site.stage("paged", {f"f{n}": b"" for n in range(5)})

    found = pages(site.cartd, "/-/carts/paged/files?limit=2")

    assert [[file["path"] for file in page] for page in found] == [
        ["f0", "f1"],
        ["f2", "f3"],
        ["f4"],
    ]
    assert site.cartd.get("/-/carts/paged/files?after=3").json["files"] == found[2]
    assert site.cartd.get("/-/carts/paged/files?after=4").json == {"files": []}


def test_a_page_that_ends_with_the_last_file_has_no_next(site: CartSite) -> None:
    site.stage("exact", {"a": b"", "b": b""})
    assert site.cartd.get("/-/carts/exact/files?limit=2").json.keys() == {"files"}


def test_lines_are_all_files(site: CartSite) -> None:
    site.stage("lined", {f"f{n}": b"" for n in range(1234)})

    answer = site.cartd.get("/-/carts/lined/files", accept=f"text/html, {NDJSON};q=0.5")

    assert answer.headers["content-type"] == NDJSON
    assert [file["path"] for file in lines(answer.body)] == [f"f{n}" for n in range(1234)]
    some = site.cartd.get("/-/carts/lined/files?after=9&limit=600", accept=NDJSON)
    assert [file["position"] for file in lines(some.body)] == list(range(10, 610))
    paged = [file for page in pages(site.cartd, "/-/carts/lined/files") for file in page]
    assert paged == lines(answer.body)


@pytest.mark.parametrize("accept", ["application/json", "*/*", f"{NDJSON};q=0", f"{NDJSON}2"])
def test_lines_are_sent_only_to_who_asks_for_them(site: CartSite, accept: str) -> None:
    site.stage("asked", {"a": b""})
    answer = site.cartd.get("/-/carts/asked/files", accept=accept)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("status", ["failed", "error"])
def test_failed_files_have_their_errors(site: CartSite, status: str) -> None:
    uid = f"bad-{status}"
    site.archive.put("there", b"data")
    entries = [entry("there", "a", b"data"), *(entry(f"no{n}", f"b{n}", b"") for n in range(3))]
    site.cartd.post(uid, manifest(entries))
    site.cartd.wait_until(uid, "error")

    found = pages(site.cartd, f"/-/carts/{uid}/files?status={status}&limit=2")

    assert [[file["path"] for file in page] for page in found] == [["b0", "b1"], ["b2"]]
    assert all("404" in file["error"] for page in found for file in page)
    assert {file["problem"] for page in found for file in page} == {"file-not-in-archive"}
    assert all(file["status"] == "error" and "size" not in file for file in found[0])
    [right] = site.cartd.get(f"/-/carts/{uid}/files?status=staged").json["files"]
    assert right["path"] == "a" and "error" not in right


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("status=lost", "status: must be one of deleted, error, failed, staged, staging, waiting"),
        ("limit=0", f"limit: must be from 1 to {MAX_FILES}"),
        (f"limit={MAX_FILES + 1}", f"limit: must be from 1 to {MAX_FILES}"),
        ("limit=ten", f"limit: must be a whole number from 1 to {MAX_FILES}"),
        ("after=-1", f"after: must be from 0 to {2**31 - 1}"),
        ("after=" + "9" * 5000, f"after: must be a whole number from 0 to {2**31 - 1}"),
        ("after=%D9%A3", f"after: must be a whole number from 0 to {2**31 - 1}"),
        ("status=%FF", "status: must be UTF-8"),
    ],
)
def test_an_invalid_parameter_is_named(site: CartSite, query: str, message: str) -> None:
    site.stage("any", {})
    answer = site.cartd.get(f"/-/carts/any/files?{query}")
    assert (answer.status, answer.json["detail"]) == (400, message)


def test_a_page_belongs_to_one_cart(site: CartSite) -> None:
    site.stage("twice", {"a": b"", "b": b""})
    following = site.cartd.get("/-/carts/twice/files?limit=1").json["next"]
    site.stage("twice", {"c": b"", "d": b""})

    answer = site.cartd.get(following)

    assert answer.status == 404 and "posted again" in answer.json["detail"]


def test_a_cart_that_is_not_there_has_no_files(site: CartSite) -> None:
    answer = site.cartd.get("/-/carts/nobody/files")
    assert (answer.status, answer.json["detail"]) == (404, "No cart with uid nobody found")
    assert site.cartd.get("/-/carts/nobody/files", accept=NDJSON).status == 404


def test_a_head_has_no_body(site: CartSite) -> None:
    site.stage("headed", {"a": b""})
    for accept in ("application/json", NDJSON):
        answer = site.cartd.request("HEAD", "/-/carts/headed/files", accept=accept)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"] == accept


def test_another_users_files_are_not_there(tmp_path: Path) -> None:
    ini = "[auth]\nproxy_header = X-User\ntrusted_proxies = 127.0.0.1\n"
    with cart_site(tmp_path, ini=ini) as site:
        body = site.manifest({"a": b"data"})
        assert site.cartd.request("POST", "/mine", body, x_user="alice").status == 201
        for accept in ("*/*", NDJSON):
            path = "/-/carts/mine/files"
            assert site.cartd.get(path, accept=accept, x_user="alice").status == 200
            assert site.cartd.get(path, accept=accept, x_user="bob").status == 404


def test_files_are_listed_from_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    postgres.execute("CREATE DATABASE file_lists")
    url = postgres.url("file_lists")
    sync(url)
    with running_cartd(tmp_path / "cartd", archive="http://127.0.0.1:1/", database=url) as cartd:
        cartd.post("u", manifest([entry(n, f"f{n}", b"") for n in range(700)]))
        answer = cartd.get("/-/carts/u/files?status=waiting", accept=NDJSON)
        assert [file["position"] for file in lines(answer.body)] == list(range(700))
        found = pages(cartd, "/-/carts/u/files?limit=300")
        assert [len(page) for page in found] == [300, 300, 100]


FILES = 200_000
"""Files whose lines exceed all buffers between the service and a client."""


@pytest.fixture
def large(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningCartd]:
    """A service with a cart of many files."""
    ini = getattr(request, "param", "")
    with running_cartd(tmp_path / "cartd", archive="http://127.0.0.1:1/", ini=ini) as cartd:
        cartd.post("large", manifest([entry(1, "a", b"")]))
        with closing(sqlite3.connect(tmp_path / "cartd" / "cartd.sqlite3")) as store, store:
            store.execute(
                "INSERT INTO file (cart_id, file_name, bundle_path, hash_type, hash_value, status,"
                " error, position)"
                " WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)"
                " SELECT f.cart_id, 'id' || n, 'directory/file' || n, 'sha1', f.hash_value,"
                " 'staged', '', n FROM n, file f WHERE f.position = 0",
                (FILES - 1,),
            )
        yield cartd


def memory(cartd: RunningCartd) -> int:
    assert cartd.process is not None
    size: int = psutil.Process(cartd.process.pid).memory_info().rss
    return size


def read_lines(cartd: RunningCartd) -> SlowReader:
    return SlowReader(cartd, "/-/carts/large/files", Accept=NDJSON)


def test_a_large_cart_takes_little_memory(large: RunningCartd) -> None:
    before = memory(large)

    reader = read_lines(large)
    rest = reader.rest()

    assert rest.count(b"\n") == FILES and len(rest) > 25e6
    assert memory(large) - before < 10e6
    reader.close()


def test_a_list_is_read_from_the_store_as_the_client_reads(large: RunningCartd) -> None:
    before = memory(large)
    readers = [read_lines(large) for _ in range(5)]

    # While they do not read, others are served.
    for _ in range(20):
        assert large.get("/-/carts/large/files?limit=1").status == 200
    assert memory(large) - before < 20e6
    assert [reader.rest().count(b"\n") for reader in readers] == [FILES] * 5
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("large", ["[server]\nstall_timeout = 2\n"], indirect=True)
def test_a_client_that_reads_nothing_is_disconnected(large: RunningCartd) -> None:
    reader = read_lines(large)
    wait_for(lambda: "stall_timeout" in large.log)
    with pytest.raises(OSError):
        reader.rest()
    reader.close()
    assert large.terminate() == 0
    assert "Traceback" not in large.log and "Unhandled" not in large.log


def test_a_client_may_leave_and_the_service_stop(large: RunningCartd) -> None:
    readers = [read_lines(large) for _ in range(3)]
    readers[0].close()

    assert large.terminate() == 0

    assert "Traceback" not in large.log and "Unhandled" not in large.log
    for reader in readers[1:]:
        with pytest.raises(OSError):
            reader.rest()
        reader.close()
