"""Partial carts over the real service: from the manifest to the last retry, over kills and damage.

The rules of their staging are tested in :mod:`tests.staging.test_partial_carts`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from pacifica.downloader import Downloader

from cartd.store import sync
from tests.crash import kill_points
from tests.support.cart_site import CartSite, cart_site
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import Postgres
from tests.support.event_client import following
from tests.support.running_cartd import (
    Answer,
    RunningCartd,
    entry,
    manifest,
    running_cartd,
    unpacked,
    wait_for,
)
from tests.support.served_directory import ServedDirectory, served_directory
from tests.support.slow_reader import TOO_MUCH_FOR_SOCKETS, slow_reader

pytest_plugins = ("tests.support.database_fixtures",)

FAST = "[archiveinterface]\nmax_attempts = 1\n"
FEW_OF_MANY = (("sqlite", 1610), ("postgresql", 161))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = f"{FAST}[page]\nlist = on\n"
    with cart_site(tmp_path_factory.mktemp("site"), ini=ini) as running:
        yield running


def partial(
    files: Mapping[str, bytes], archive: ServedDirectory, prefix: str, **more: object
) -> bytes:
    """Put the files that are not named ``gone...`` into the archive; return a manifest of all."""
    for path, data in files.items():
        if not path.startswith("gone"):
            archive.put(f"{prefix}-{path}", data)
    entries = [entry(f"{prefix}-{path}", path, data) for path, data in files.items()]
    return manifest(entries, on_error="partial", **more)


def come(archive: ServedDirectory, files: Mapping[str, bytes], prefix: str, *paths: str) -> None:
    """Put files into the archive that were missing there."""
    for path in paths:
        archive.put(f"{prefix}-{path}", files[path])


def retry(cartd: RunningCartd, uid: str) -> Answer:
    return cartd.request("POST", f"/-/carts/{uid}/retry", b"")


def retried(cartd: RunningCartd, uid: str) -> dict[str, Any]:
    """Retry, and return the status document when the cart is ready again."""
    before = cartd.get(f"/-/carts/{uid}").json["finished"]
    assert retry(cartd, uid).status == 202

    def ended() -> bool:
        now = cartd.get(f"/-/carts/{uid}").json
        return now["outcome"] is not None and bool(now["finished"] != before)

    wait_for(ended)
    return document(cartd, uid)


def document(cartd: RunningCartd, uid: str) -> dict[str, Any]:
    found: dict[str, Any] = cartd.get(f"/-/carts/{uid}").json
    return found


def etag(cartd: RunningCartd, uid: str) -> str:
    return cartd.request("HEAD", f"/{uid}?filename=data.tar").headers["etag"]


def listed(tar: bytes) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a partial cart's tar, and the paths that it lists as missing."""
    files = unpacked(tar)
    [name] = [name for name in files if not name]
    return files, [one["path"] for one in json.loads(files.pop(name))["files"]]


@pytest.mark.parametrize(("database", "total"), FEW_OF_MANY)
def test_3_of_many_files_are_missing(
    database: str,
    total: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = ""
    if database == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        server.execute("DROP DATABASE IF EXISTS partial")
        server.execute("CREATE DATABASE partial")
        sync(url := server.url("partial"))
    absent = (7, total // 2, total - 1)
    names = {n: f"gone{n}" if n in absent else f"d{n % 7}/f{n}" for n in range(total)}
    files = {name: b"%d" % n for n, name in names.items()}
    gone = [names[n] for n in absent]
    with (
        served_directory(tmp_path) as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, database=url, ini=FAST) as cartd,
    ):
        # Paths of the archive are flat.
        for name, data in files.items():
            if name not in gone:
                archive.put(f"x-{name.replace('/', '_')}", data)
        entries = [entry(f"x-{name.replace('/', '_')}", name, data) for name, data in files.items()]
        body = manifest(entries, on_error="partial", max_failed="2%")
        cartd.post("u", body)
        with following(cartd.port, "u") as events:
            assert events.events()[-1].json["outcome"] == "partial"

        head = cartd.request("HEAD", "/u").headers
        assert head["x-pacifica-files-failed"] == "3"
        assert (head["x-pacifica-files-staged"], head["x-pacifica-files-total"]) == (
            str(total - 3),
            str(total),
        )
        found = document(cartd, "u")
        size = sum(len(data) for name, data in files.items() if name not in gone)
        assert found["bytes"] == {"total": size, "staged": size, "fetched": size, "linked": 0}
        assert (found["status"], found["outcome"], found["progress"]) == ("ready", "partial", 100)
        assert found["message"] == (
            f"The cart is ready for download, but 3 of {total:,} files are missing; a retry stages"
            " only what is missing."
        )
        assert found["failed"]["count"] == 3
        assert [one["path"] for one in found["failed"]["first"]] == gone
        assert found["links"]["retry"] == "/-/carts/u/retry"
        answer = cartd.get("/u?filename=data.tar")
        assert answer.headers["x-pacifica-files-failed"] == "3"
        there, missing = listed(answer.body)
        assert missing == gone
        assert there == {name: data for name, data in files.items() if name not in gone}

        # The same manifest again changes nothing.
        assert cartd.post("u", body).status == 201
        again = document(cartd, "u")
        assert again | {"version": found["version"]} == found

        # Pacifica's own client waits for it and unpacks it.
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        downloader = Downloader(addr="127.0.0.1", port=cartd.port)
        waited = downloader.cart_api.wait_for_cart(f"{cartd.url}/u", 30)
        downloader._download_from_url(str(tmp_path / "into"), waited, "data.tar")
        got = tmp_path / "into" / "data"
        assert len([path for path in got.rglob("*") if path.is_file()]) == total - 3

        first = etag(cartd, "u")
        assert retried(cartd, "u")["files"]["failed"] == 3
        assert etag(cartd, "u") == first and cartd.get("/u?filename=data.tar").body == answer.body
        archive.put(f"x-{gone[0]}", files[gone[0]])
        assert retried(cartd, "u")["files"]["failed"] == 2
        second = etag(cartd, "u")
        assert second != first
        for name in gone[1:]:
            archive.put(f"x-{name}", files[name])
        whole = retried(cartd, "u")
        assert (whole["outcome"], whole["files"]["failed"]) == ("complete", 0)
        assert etag(cartd, "u") not in (first, second)
        assert "x-pacifica-files-failed" not in cartd.request("HEAD", "/u").headers
        assert cartd.download("u") == files
        assert retry(cartd, "u").status == 409
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


def test_a_cart_fails_beyond_its_limit(site: CartSite) -> None:
    files = {"here": b"here", "gone1": b"1", "gone2": b"2"}
    site.cartd.post("beyond", partial(files, site.archive, "beyond", max_failed=1))
    message = site.cartd.wait_until("beyond", "error")
    assert message.endswith(
        "; 1 other file failed too; its manifest permits that 1 file fail (max_failed)"
    )
    assert "x-pacifica-files-failed" not in site.cartd.request("HEAD", "/beyond").headers


def test_an_empty_cart_of_missing_files_is_a_tar_with_a_list(site: CartSite) -> None:
    files = {"gone1": b"1", "gone2": b"2"}
    site.cartd.post("none", partial(files, site.archive, "none"))
    site.cartd.wait_until("none", "ready")
    assert listed(site.cartd.get("/none").body) == ({}, ["gone1", "gone2"])


def test_partial_carts_are_listed(site: CartSite) -> None:
    site.cartd.post("one", partial({"gone": b""}, site.archive, "one", labels=["mine"]))
    site.cartd.wait_until("one", "ready")
    site.stage("complete", {"a": b""}, labels=["mine"])
    found = site.cartd.get("/-/carts?status=partial&label=mine&limit=1").json
    assert [(each["uid"], each["outcome"]) for each in found["carts"]] == [("one", "partial")]
    assert "next" not in found
    site.cartd.post("two", partial({"gone": b""}, site.archive, "two", labels=["mine"]))
    site.cartd.wait_until("two", "ready")
    found = site.cartd.get("/-/carts?status=partial&label=mine&limit=1").json
    assert [each["uid"] for each in found["carts"]] == ["two"]
    assert "status=partial" in found["next"]
    assert [each["uid"] for each in site.cartd.get(found["next"]).json["carts"]] == ["one"]


@pytest.mark.parametrize("bundle", [False, True])
def test_a_download_that_is_open_ends_well_or_is_broken(site: CartSite, bundle: bool) -> None:
    uid = f"open-{bundle}"
    files = {"large": bytes(TOO_MUCH_FOR_SOCKETS), "more": b"more", "gone": b"gone"}
    site.cartd.post(uid, partial(files, site.archive, uid, bundle=bundle))
    site.cartd.wait_until(uid, "ready")
    old, tag = site.cartd.get(f"/{uid}?filename=data.tar").body, etag(site.cartd, uid)
    come(site.archive, files, uid, "gone")

    with slow_reader(site.cartd, uid) as reader:
        assert reader.headers["etag"] == tag
        assert retried(site.cartd, uid)["outcome"] == "complete"
        try:
            assert reader.rest() == old
        except (IncompleteRead, ConnectionError):
            assert bundle  # its tree has been replaced by the tar

    resumed = site.cartd.get(f"/{uid}?filename=data.tar", range="bytes=1000-", if_range=tag)
    assert resumed.status == 200 and unpacked(resumed.body) == files
    assert [path.name for path in site.on_volume(uid)] == [f"{uid}.tar" if bundle else uid]
    assert site.open_files(uid) == []


@pytest.mark.parametrize("bundle", [False, True])
def test_a_damaged_partial_cart_is_repaired(site: CartSite, bundle: bool) -> None:
    uid = f"damaged-{bundle}"
    files = {"a": b"aaa", "b": b"bbb", "gone": b"gone"}
    site.cartd.post(uid, partial(files, site.archive, uid, bundle=bundle))
    site.cartd.wait_until(uid, "ready")
    tag = etag(site.cartd, uid)
    assert (
        f"{uid}: 2 of 3 files, 6 bytes, intact"
        in site.cartd.run("cartd-cmd", "verify", "--cartid", uid).stdout
    )
    [tree] = site.on_volume(uid)
    (tree / "a").unlink()

    answer = site.cartd.get(f"/{uid}")
    assert answer.status == 202 and "x-pacifica-files-failed" not in answer.headers
    site.cartd.wait_until(uid, "ready")

    assert (document(site.cartd, uid)["outcome"], etag(site.cartd, uid)) == ("partial", tag)
    assert (tree / "a").read_bytes() == b"aaa"
    # Damage of the same size is found by hashes.  The archive has lost that file, too.
    (tree / "b").write_bytes(b"BBB")
    (site.archive.root / f"{uid}-b").unlink()
    repaired = site.cartd.run("cartd-cmd", "verify", "--repair", "--cartid", uid).stdout
    assert f"{uid}: b does not match its hash" in repaired
    assert f"{uid}: repaired and intact" in repaired
    there, missing = listed(site.cartd.get(f"/{uid}?filename=data.tar").body)
    assert (there, missing) == ({"a": b"aaa"}, ["b", "gone"])
    assert not (tree / "b").exists()


def test_a_damaged_bundle_becomes_partial(site: CartSite) -> None:
    files = {"a": b"aaa", "b": b"bbb"}
    site.cartd.post("bundled", partial(files, site.archive, "bundled", bundle=True))
    site.cartd.wait_until("bundled", "ready")
    [tar] = site.on_volume("bundled")
    assert tar.name == "bundled.tar"
    tar.write_bytes(tar.read_bytes().replace(b"bbb", b"BBB"))
    (site.archive.root / "bundled-b").unlink()

    repaired = site.cartd.run("cartd-cmd", "verify", "--repair", "--cartid", "bundled").stdout

    assert repaired.splitlines()[-1] == "bundled: repaired and intact"
    assert document(site.cartd, "bundled")["outcome"] == "partial"
    [tree] = site.on_volume("bundled")
    assert [path.name for path in tree.iterdir()] == ["a"]
    assert (site.cartd.volume / "cartuids" / "bundled").readlink().name == "bundled"


def test_the_commands_treat_a_partial_cart_as_ready(site: CartSite) -> None:
    files = {"a": b"aaa", "gone1": b"1", "gone2": b"2"}
    site.cartd.post("commands", partial(files, site.archive, "commands", bundle=True))
    site.cartd.wait_until("commands", "ready")
    finished = document(site.cartd, "commands")["finished"]
    site.cartd.run("cartd-cmd", "verify", "--repair")
    assert document(site.cartd, "commands")["finished"] == finished

    come(site.archive, files, "commands", "gone1")
    fixed = site.cartd.run("cartd-cmd", "fixit", "--cartid", "commands")
    assert "commands: ready, 1 of 3 files missing" in fixed.stderr
    come(site.archive, files, "commands", "gone2")
    fixed = site.cartd.run("cartd-cmd", "fixit", "--cartid", "commands")
    assert fixed.stderr.splitlines()[-1] == "commands: ready"
    [tar] = site.on_volume("commands")
    dumped = json.loads(site.cartd.run("cartd-cmd", "dump", "--json").stdout)
    [row] = [row for row in dumped if row["cart_uid"] == "commands"]
    assert row["bundle_path"] == str(tar) and tar.name == "commands.tar"


def test_a_partial_cart_is_evicted(site: CartSite) -> None:
    site.cartd.post("old", partial({"a": b"aaa", "gone": b""}, site.archive, "old"))
    site.cartd.wait_until("old", "ready")
    [tree] = site.on_volume("old")
    site.query("SELECT 1")
    site.cartd.run("cartd-cmd", "purge", "--time-ago", "0 seconds ago")
    assert site.cartd.request("HEAD", "/old").status == 404
    wait_for(lambda: not tree.exists())


@contextmanager
def killed_at(cartd: RunningCartd, point: str) -> Iterator[None]:
    """Kill the service at that point of what the block begins, and start it again."""
    order = cartd.directory / "order"
    # The first transaction of a restaging only looks at the cart.
    order.write_text(f"{point}:{2 if 'restage' in point else 1}")
    yield
    assert cartd.process is not None
    assert cartd.process.wait(30) == -signal.SIGKILL, cartd.log
    order.unlink()
    cartd.start()


def test_kills_while_a_partial_cart_is_made_and_retried(tmp_path: Path) -> None:
    making = ("after-record_file_errors", "before-record_ready", "after-record_ready")
    retrying = ("before-restage", "after-restage", "after-record_staged", "before-record_ready")
    bundling = ("before-replace-tar", "after-record_bundled")
    files = {"a": b"aaa", "b": b"", "gone1": b"1", "gone2": b"2"}
    with (
        served_directory(tmp_path) as archive,
        running_cartd(
            tmp_path / "cartd", archive=archive.url, ini=FAST, started=False, fresh=False
        ) as cartd,
    ):
        cartd.program = (
            *(sys.executable, kill_points.__file__, str(cartd.directory / "order")),
            *("-n", "--pidfile=", "cartd", "--port", str(cartd.port)),
        )
        cartd.start()
        for number, point in enumerate(making):
            uid = f"made{number}"
            body = partial(files, archive, uid)
            with killed_at(cartd, point):
                cartd.post(uid, body)
            cartd.wait_until(uid, "ready")
            there, missing = listed(cartd.get(f"/{uid}?filename=data.tar").body)
            assert (there, missing) == ({"a": b"aaa", "b": b""}, ["gone1", "gone2"]), point

        for number, point in enumerate(retrying + bundling):
            uid = f"retried{number}"
            cartd.post(uid, partial(files, archive, uid, bundle=True))
            cartd.wait_until(uid, "ready")
            tag = etag(cartd, uid)
            come(archive, files, uid, "gone1", *(["gone2"] if point in bundling else []))
            # A killed service does not answer.
            with killed_at(cartd, point), suppress(OSError):
                retry(cartd, uid)
            cartd.wait_until(uid, "ready")
            if point == "before-restage":
                assert etag(cartd, uid) == tag
                assert len(cartd.get(f"/-/carts/{uid}/files?status=failed").json["files"]) == 2
                retried(cartd, uid)
            got = cartd.get(f"/{uid}?filename=data.tar").body
            if point in bundling:
                assert unpacked(got) == files, point
                assert [path.name for path in cartd.volume.glob(f"[0-9]*/{uid}*")] == [f"{uid}.tar"]
            else:
                assert listed(got) == ({"a": b"aaa", "b": b"", "gone1": b"1"}, ["gone2"]), point
            assert etag(cartd, uid) != tag
        assert cartd.terminate() == 0
        assert not list(cartd.volume.glob("incoming/*"))
        assert_no_unexpected_errors(cartd.log)
