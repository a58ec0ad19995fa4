"""Hostile input: only valid manifests leave something behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.hostile_inputs import FILENAMES, GOOD, MANIFESTS, ODD_FILENAMES, UIDS
from tests.support.running_cartd import manifest, unpacked
from tests.support.wire import ask, assert_is_error, wire

BAD_UID = "uid: must be 1 to 255 characters of A-Z a-z 0-9 . _ ~ - and not begin with . or -"
WRITTEN_ALL_THE_TIME = (".log", ".sqlite3", ".sqlite3-shm", ".sqlite3-wal")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """A site several directories deep, so that writes outside the volume are detected."""
    directory = tmp_path_factory.mktemp("around") / "one/two/three"
    directory.mkdir(parents=True)
    with cart_site(directory) as running:
        running.archive.put(GOOD["id"], b"")
        running.stage("ready", {"a/one": b"first"})
        yield running


Entry = tuple[str, int, int, str]
"""Path, mode, size (of files) and target (of links)."""


def everything(site: CartSite) -> tuple[list[dict[str, object]], list[Entry]]:
    """Return the contents of store and disk, in the service's directory and around it."""
    around = site.root.parents[2]
    assert around.name.startswith("around")
    rows = [
        {name: value for name, value in dict(row).items() if name != "used_date"}
        for table in ("cart", "file")
        for row in site.rows(table)
    ]
    return rows, sorted(_entries(around))


def _entries(directory: Path) -> Iterator[Entry]:
    for path, _, files in os.walk(directory):
        for name in ["", *files]:
            entry = Path(path, name)
            if not name.endswith(WRITTEN_ALL_THE_TIME):
                found = entry.lstat()
                link = str(entry.readlink()) if entry.is_symlink() else ""
                size = found.st_size if name else 0
                yield str(entry), found.st_mode, size, link


def assert_answers(site: CartSite) -> None:
    assert site.cartd.get("/").status == 200
    assert site.cartd.download("ready") == {"a/one": b"first"}


@pytest.mark.parametrize(("body", "message"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_invalid_manifest_is_rejected_and_changes_nothing(
    site: CartSite, body: bytes, message: str
) -> None:
    before = everything(site)
    answer = site.cartd.post("hostile", body)
    assert answer.json["message"].startswith(message), answer
    assert_is_error(answer, 400, answer.json["message"])
    assert site.cartd.request("HEAD", "/hostile").status == 404
    assert everything(site) == before
    assert_answers(site)


def test_invalid_manifest_keeps_existing_carts(site: CartSite) -> None:
    site.stage("older", {"file": b"of before"})
    assert site.cartd.post("older", b"{}").status == 400
    assert site.cartd.status("older") == ("ready", "")
    assert site.cartd.download("older") == {"file": b"of before"}


@pytest.mark.parametrize("uid", UIDS.values(), ids=UIDS.keys())
def test_invalid_uid_is_rejected_and_changes_nothing(site: CartSite, uid: str) -> None:
    before = everything(site)
    body = manifest([GOOD])
    end = "HTTP/1.1\r\nHost: localhost\r\n"
    post = f"POST /{uid} {end}Content-Length: {len(body)}\r\n\r\n".encode() + body
    assert_is_error(ask(site.port, post), 400, BAD_UID)
    for method in ("GET", "DELETE"):
        assert ask(site.port, f"{method} /{uid} {end}\r\n".encode()).status == 404
    head = ask(site.port, f"HEAD /{uid} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), to_head=True)
    assert head.status == 404
    assert head.headers["x-pacifica-status"] == "error"
    assert head.headers["x-pacifica-message"].startswith("No cart with uid ")
    assert everything(site) == before
    assert_answers(site)


GOOD_UIDS = ["a", "0", "_", "~", "a..b", "x.tar", "cartuids", "incoming", "1", "A" * 251, "u" * 255]


@pytest.mark.parametrize("uid", GOOD_UIDS)
def test_an_odd_uid_that_is_right_has_a_cart_like_any_other(site: CartSite, uid: str) -> None:
    site.stage(uid, {f"{uid[:9]}/file": b"data"})
    assert site.cartd.download(uid) == {f"{uid[:9]}/file": b"data"}
    assert site.cartd.delete(uid).status == 200
    assert site.on_volume(uid) == []
    assert_answers(site)


def test_uid_too_long_for_a_bundle_is_rejected(site: CartSite) -> None:
    before = everything(site)
    answer = site.cartd.post("u" * 252, manifest([GOOD], bundle=True))
    message = "bundle: a cart whose uid is over 251 characters cannot be bundled"
    assert_is_error(answer, 400, message)
    assert everything(site) == before


@pytest.mark.parametrize("name", FILENAMES.values(), ids=FILENAMES.keys())
def test_invalid_download_filename_is_rejected(site: CartSite, name: str) -> None:
    before = everything(site)
    answer = ask(
        site.port, f"GET /ready?filename={name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    assert answer.json["message"].startswith("filename: ")
    assert_is_error(answer, 400, answer.json["message"])
    assert everything(site) == before
    assert_answers(site)


@pytest.mark.parametrize("name", ODD_FILENAMES.values(), ids=ODD_FILENAMES.keys())
def test_filename_cannot_inject_headers(site: CartSite, name: str) -> None:
    before = everything(site)
    with wire(site.port) as connection:
        connection.get(f"/ready?filename={quote(name, safe='')}")
        answer = connection.answer()
        connection.get("/")
        assert connection.answer().status == 200
    assert answer.status == 200
    assert answer.headers.keys() == {
        "server", "date", "content-type", "content-length", "content-disposition",
        "accept-ranges", "etag", "last-modified", "cache-control",
        "x-pacifica-status", "x-pacifica-message", "x-pacifica-files-total",
        "x-pacifica-files-staged", "x-pacifica-bytes-total", "x-pacifica-bytes-staged",
        "x-pacifica-tar-length", "x-pacifica-phase", "x-request-id",
    }  # fmt: skip
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; filename")
    assert disposition.count('"') == 2
    top = name.removesuffix(".tar")
    if len(top.encode()) < 100 and top.isascii():
        assert answer.body.startswith(f"{top}/\0".encode())
    assert unpacked(answer.body) == {"a/one": b"first"}
    assert everything(site) == before


ODD_PATHS = {
    "an absolute path": "/etc/passwd", "many slashes": "///a//b/./c", "dots": "..a/b../...",
    "a backslash": "..\\..\\x", "a drive": "C:\\x", "a line": "a\r\nb", "control": "\x01\x1b[2J",
    "a name of the volume's": "cartuids/incoming/1", "a name of 255 bytes": "n" * 255,
    "100 directories": "d/" * 100 + "f", "foreign": "Ünï/日本/€", "spaces": " / ",
    "an option": "-rf", "a star": "*", "a tilde": "~/.ssh/authorized_keys",
    "a variable": "$HOME/`id`", "percent": "%2e%2e/%00", "composed and not": "\u00e9/e\u0301",
}  # fmt: skip


@pytest.mark.parametrize("path", ODD_PATHS.values(), ids=ODD_PATHS.keys())
def test_an_odd_path_that_is_right_stays_within_its_cart(site: CartSite, path: str) -> None:
    kept = "/".join(part for part in path.split("/") if part not in ("", "."))
    _, before = everything(site)
    site.stage("odd", {path: b"data"})
    _, after = everything(site)
    [tree] = site.on_volume("odd")
    assert (tree / kept).read_bytes() == b"data"
    assert site.cartd.download("odd") == {kept: b"data"}
    archived = f"{site.archive.root}/"
    own = (f"{site.cartd.volume}/cartuids/odd", str(tree.parent), archived)
    assert [entry for entry in set(after) - set(before) if not entry[0].startswith(own)] == []
    site.cartd.delete("odd")
    left = set(everything(site)[1]) - set(before)
    assert [entry for entry in left if not entry[0].startswith(archived)] == []
