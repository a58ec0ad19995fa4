"""The checksums of a cart, from the real service, read by the programs of coreutils."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cartd.http.carts import NDJSON
from cartd.store import sync
from tests.support.cart_site import CartSite, cart_site
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import Postgres
from tests.support.running_cartd import entry, manifest, running_cartd, wait_for
from tests.support.served_directory import served_directory
from tests.support.slow_reader import SlowReader

pytest_plugins = ("tests.support.database_fixtures",)

ODD = {
    "plain": b"1",
    "a b/c": b"2",
    "back\\slash": b"3",
    "line\nfeed\rboth": b"4",
    "*": b"5",
    "-": b"6",
    "ü": b"",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = "[archiveinterface]\nmax_attempts = 1\n"
    with cart_site(tmp_path_factory.mktemp("site"), ini=ini) as running:
        yield running


def mixed(site: CartSite, files: dict[str, tuple[str, bytes]]) -> bytes:
    """Return a manifest of files with a hash type each, in capitals on every second one."""
    entries = []
    for number, (path, (hash_type, data)) in enumerate(files.items()):
        archive_id = f"mixed-{hashlib.md5(path.encode() + data).hexdigest()}"
        site.archive.put(archive_id, data)
        entries.append(
            {
                **entry(archive_id, path, data),
                "hashtype": hash_type.upper() if number % 2 else hash_type,
                "hashsum": hashlib.new(hash_type, data).hexdigest(),
            }
        )
    return manifest(entries)


def tar_of(body: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(body))


def unpacked(site: CartSite, uid: str, directory: Path) -> Path:
    tar_of(site.cartd.get(f"/{uid}?filename=my-data.tar").body).extractall(directory, filter="data")
    return directory / "my-data"


def verify(directory: Path, program: str, lines: bytes) -> bytes:
    done = subprocess.run(
        [program, "--check", "--strict"],
        cwd=directory,
        input=lines,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), (done, lines)
    return done.stdout


@pytest.mark.parametrize("query", ["", "?type=sha1", "?type=SHA-1"])
def test_the_unpacked_files_are_verified(site: CartSite, query: str, tmp_path: Path) -> None:
    uid = f"odd{len(query)}"
    site.stage(uid, ODD)

    answer = site.cartd.get(f"/-/carts/{uid}/checksums{query}")

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.count(b"\n") == len(ODD) and b"  plain\n" in answer.body
    read = verify(unpacked(site, uid, tmp_path), "sha1sum", answer.body)
    assert read.count(b": OK\n") == len(ODD)


def test_lines_are_in_the_order_of_the_tar(site: CartSite) -> None:
    paths = [f"f{n * 7919 % 601}" for n in range(601)]
    site.stage("ordered", dict.fromkeys(paths, b""))

    lines = site.cartd.get("/-/carts/ordered/checksums").body.decode().splitlines()
    tar = tar_of(site.cartd.get("/ordered").body)
    members = [member.name.partition("/")[2] for member in tar if member.isreg()]

    assert [line.split("  ")[1] for line in lines] == members == paths


def test_mixed_hashes_have_tags(site: CartSite, tmp_path: Path) -> None:
    kinds = ["md5", "sha256", "sha1", "sha512"]
    files = {path: (kinds[n % 4], data) for n, (path, data) in enumerate(ODD.items())}
    site.cartd.post("mixed", mixed(site, files))
    site.cartd.wait_until("mixed", "ready")

    answer = site.cartd.get("/-/carts/mixed/checksums")

    assert answer.status == 200 and answer.body.startswith(b"MD5 (plain) = c4ca42")
    verify(unpacked(site, "mixed", tmp_path), "cksum", answer.body)
    listed = site.cartd.get("/-/carts/mixed/files").json["files"]
    assert [file["hashtype"] for file in listed] == [kinds[n % 4] for n in range(len(ODD))]
    refused = site.cartd.get("/-/carts/mixed/checksums?type=sha256")
    assert refused.status == 409
    assert refused.json["type"].endswith("/-/problems/no-common-hash")
    assert refused.json["detail"] == (
        "5 of 7 staged files have no sha256; the files have md5, sha1, sha256, sha512"
    )


def test_a_bundled_cart_has_checksums(site: CartSite, tmp_path: Path) -> None:
    site.stage("bundled", ODD, bundle=True)
    answer = site.cartd.get("/-/carts/bundled/checksums")
    tar_of(site.cartd.get("/bundled").body).extractall(tmp_path, filter="data")
    verify(tmp_path / "bundled", "sha1sum", answer.body)


def test_an_empty_cart_has_no_lines_of_any_type(site: CartSite) -> None:
    site.stage("empty", {})
    for query in ("", "?type=sha3_512"):
        answer = site.cartd.get(f"/-/carts/empty/checksums{query}")
        assert (answer.status, answer.body) == (200, b"")


def test_the_hash_of_an_entry_without_one_is_listed(site: CartSite) -> None:
    site.archive.put("unhashed", b"data")
    site.cartd.post("unhashed", manifest([{**entry("unhashed", "a", b""), "hashsum": ""}]))
    site.cartd.wait_until("unhashed", "ready")
    expected = f"{hashlib.sha1(b'data').hexdigest()}  a\n"
    assert site.cartd.get("/-/carts/unhashed/checksums").body == expected.encode()


def test_an_etag_stands_for_the_lines(site: CartSite) -> None:
    url = "/-/carts/tagged/checksums"
    site.stage("tagged", {"a": b"1"})
    first = site.cartd.get(url)
    etag = first.headers["etag"]

    assert site.cartd.get(url).headers["etag"] == etag
    assert site.cartd.get(f"{url}?type=sha1").headers["etag"] != etag
    same = site.cartd.get(url, if_none_match=etag)
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)
    assert site.cartd.get(url, if_match='"other"').status == 412
    head = site.cartd.request("HEAD", url)
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", etag)
    assert head.headers["content-type"] == first.headers["content-type"]
    assert site.cartd.request("HEAD", url, if_none_match=etag).status == 304
    site.stage("tagged", {"a": b"2"})
    assert site.cartd.get(url, if_none_match=etag).status == 200


def test_a_ready_cart_links_its_checksums(site: CartSite) -> None:
    site.stage("linked", {"a": b"1"})
    links = site.cartd.get("/-/carts/linked").json["links"]
    assert site.cartd.get(links["checksums"]).status == 200


def test_a_cart_in_error_has_no_checksums(site: CartSite) -> None:
    site.archive.put("there", b"data")
    entries = [entry("there", "a", b"data"), entry("nowhere", "b", b"")]
    site.cartd.post("failed", manifest(entries))
    site.cartd.wait_until("failed", "error")

    answer = site.cartd.get("/-/carts/failed/checksums")

    assert (answer.status, answer.json["cause"]) == (500, "/-/problems/file-not-in-archive")
    assert "checksums" not in site.cartd.get("/-/carts/failed").json["links"]


def test_a_partial_cart_lists_the_files_that_are_there(site: CartSite) -> None:
    url = "/-/carts/partial/checksums"
    site.archive.put("here", b"data")
    entries = [entry("here", "a", b"data"), entry("later", "b", b"late")]
    site.cartd.post("partial", manifest(entries, on_error="partial"))
    site.cartd.wait_until("partial", "ready")
    first = site.cartd.get(url)
    assert first.body.decode() == f"{entries[0]['hashsum']}  a\n"

    site.archive.put("later", b"late")
    assert site.cartd.request("POST", "/-/carts/partial/retry").status == 202
    site.cartd.wait_until("partial", "ready")

    second = site.cartd.get(url, if_none_match=first.headers["etag"])
    assert second.status == 200
    assert second.body == first.body + f"{entries[1]['hashsum']}  b\n".encode()


@pytest.mark.parametrize("hash_type", ["sha257", "", "shake_128", "%FF", "%00"])
def test_an_unknown_type_is_an_error(site: CartSite, hash_type: str) -> None:
    site.stage("any", {"a": b""})
    answer = site.cartd.get(f"/-/carts/any/checksums?type={hash_type}")
    assert answer.status == 400 and answer.json["detail"].startswith("type: ")


def test_a_cart_that_is_not_ready_has_no_checksums(tmp_path: Path) -> None:
    with cart_site(tmp_path, "--tape-delay=1e8") as tapes:
        tapes.cartd.post("waiting", tapes.manifest({"a": b"data"}))
        for method in ("GET", "HEAD"):
            answer = tapes.cartd.request(method, "/-/carts/waiting/checksums")
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        problem = tapes.cartd.get("/-/carts/waiting/checksums").json["type"]
        assert problem.endswith("/-/problems/not-ready")
        assert tapes.cartd.get("/-/carts/nobody/checksums").status == 404


def test_another_users_checksums_are_not_there(tmp_path: Path) -> None:
    ini = "[auth]\nproxy_header = X-User\ntrusted_proxies = 127.0.0.1\n"
    with cart_site(tmp_path, ini=ini) as site:
        body = site.manifest({"a": b"data"})
        assert site.cartd.request("POST", "/mine", body, x_user="alice").status == 201
        url = "/-/carts/mine/checksums"
        wait_for(lambda: site.cartd.get(url, x_user="alice").status == 200)
        assert site.cartd.get(url, x_user="bob").status == 404


FILES = 100_000


def test_the_checksums_of_a_large_cart_take_little_memory(site: CartSite) -> None:
    site.stage("large", {"a": b""})
    with closing(sqlite3.connect(site.cartd.directory / "cartd.sqlite3")) as store, store:
        [cart_id] = store.execute("SELECT id FROM cart WHERE cart_uid = 'large'").fetchone()
        store.execute(
            "INSERT INTO file (cart_id, file_name, bundle_path, hash_type, hash_value, status,"
            " error, position, also_hash_type, also_hash_value)"
            " WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)"
            " SELECT f.cart_id, 'large' || n, 'directory/file\\' || n, 'sha1', f.hash_value,"
            " 'staged', '', n, 'sha512', f.hash_value || f.hash_value"
            " FROM n, file f WHERE f.cart_id = ?",
            (FILES - 1, cart_id),
        )
    process = site.process()
    before = process.memory_info().rss

    reader = SlowReader(site.cartd, "/-/carts/large/checksums")
    # While it does not read, others are served.
    assert site.cartd.get("/-/carts/large/files?limit=1").status == 200
    refused = site.cartd.get("/-/carts/large/checksums?type=sha512")
    lines = reader.rest()
    reader.close()

    assert lines.count(b"  directory/file\\\\") == FILES - 1
    assert process.memory_info().rss - before < 10e6
    message = f"1 of {FILES} staged files have no sha512; the files have sha1, sha512"
    assert (refused.status, refused.json["detail"]) == (409, message)


def test_second_hashes_are_listed_from_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    postgres.execute("CREATE DATABASE checksums")
    url = postgres.url("checksums")
    sync(url)
    ini = "[staging]\nalso_hash = sha256\n"
    with (
        served_directory(tmp_path) as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, database=url, ini=ini) as cartd,
    ):
        site = CartSite(tmp_path, cartd, archive)
        kinds = ["md5", "sha256", "sha1"]
        body = mixed(site, {path: (kinds[n % 3], ODD[path]) for n, path in enumerate(ODD)})
        for uid in ("fetched", "linked"):
            cartd.post(uid, body)
            cartd.wait_until(uid, "ready")
            answer = cartd.get(f"/-/carts/{uid}/checksums?type=sha256")
            verify(unpacked(site, uid, tmp_path / uid), "sha256sum", answer.body)
            assert cartd.get(f"/-/carts/{uid}/checksums?type=md5").status == 409
            bag = tar_of(cartd.get(f"/{uid}?format=bag&filename=bag.tar").body)
            sums = bag.extractfile("bag/manifest-sha256.txt")
            assert sums is not None and sums.read().count(b"\n") == len(ODD)
            page = cartd.get(f"/-/carts/{uid}/files").json["files"]
            listed = cartd.get(f"/-/carts/{uid}/files", accept=NDJSON).body.splitlines()
            assert [json.loads(line) for line in listed] == page
            assert [file.get("also") for file in page] == [
                None
                if kinds[n % 3] == "sha256"
                else {"hashtype": "sha256", "hashsum": hashlib.sha256(data).hexdigest()}
                for n, data in enumerate(ODD.values())
            ]
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
