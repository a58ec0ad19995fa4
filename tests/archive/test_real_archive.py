"""Carts staged from Pacifica's own archive interface."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.archived_files import (
    HASH_TYPES,
    ArchivedFile,
    in_tar,
    manifest_of,
    many_files,
    store,
)
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.real_archive import RealArchive, real_archive
from tests.support.running_cartd import RunningCartd, manifest, running_cartd

TWO_TRIES = "[archiveinterface]\nmax_attempts = 2\n"

PECULIAR = {
    "an empty file": ArchivedFile(1, "empty", b""),
    "precomposed letters": ArchivedFile(2, "\u00fcber/na\u00efve \u2014 \u6587\u4ef6.txt", b"a"),
    "combining letters": ArchivedFile(3, "combined/e\u0301a\u0308o\u0302.txt", b"b"),
    "both forms at once": ArchivedFile(4, "combined/\u00e9\u00e4\u00f4.txt", b"c"),
    "beyond the first plane": ArchivedFile(5, "\U0001f9ea/\U0001d54f.csv", b"d"),
    "over 100 characters": ArchivedFile(6, "deep/" + "n" * 120 + ".dat", b"e" * 1000),
    "over 255 characters": ArchivedFile(7, "/".join(["d" * 60] * 6) + "/end.bin", b"f" * 513),
    "a component of 255 bytes": ArchivedFile(8, "c" * 255, b"g"),
    "over 255 characters that are not ASCII": ArchivedFile(9, "\u6587/" * 150 + "end", b"h"),
    "spaces, quotes and dollars": ArchivedFile(10, " a 'b' \"c\" $(d); \\e \n*", b"i"),
    "an id beyond 2**53": ArchivedFile(2**53 + 1, "large-id", b"j"),
    "an id that is text": ArchivedFile("text-id", "text-id", b"k"),
    "an id that must be encoded": ArchivedFile("run 7/\u00fc#?&;=%41+.dat", "odd-id", b"l"),
    "half a second": ArchivedFile(11, "half", b"m", 1_234_567_890.5),
    "the first second": ArchivedFile(12, "oldest", b"n", 0.0),
    "a time after 2106": ArchivedFile(13, "newest", b"o", 5_000_000_000.0),
    "several blocks": ArchivedFile(14, "blocks", bytes(range(256)) * 10_000),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealArchive]:
    with real_archive(tmp_path_factory.mktemp("real") / "archive") as running:
        yield running


@pytest.fixture(scope="module")
def cartd(archive: RealArchive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCartd]:
    directory = tmp_path_factory.mktemp("real") / "cartd"
    with running_cartd(directory, archive=archive.url, ini=TWO_TRIES) as running:
        yield running
        assert running.terminate() == 0
        assert_no_unexpected_errors(running.log)


def downloaded(cartd: RunningCartd, uid: str) -> dict[str, tuple[bytes, int]]:
    cartd.wait_until(uid, "ready")
    answer = cartd.get(f"/{uid}?filename=data.tar")
    assert answer.status == 200, answer
    return in_tar(io.BytesIO(answer.body))


def test_peculiar_files_come_out_as_they_are(archive: RealArchive, cartd: RunningCartd) -> None:
    files = PECULIAR.values()
    store(archive, files)
    assert cartd.post("peculiar", manifest_of(files)).status == 201
    assert downloaded(cartd, "peculiar") == {file.path: file.unpacked for file in files}
    [tree] = cartd.volume.glob("[0-9]*/peculiar")
    for file in files:
        staged = tree / file.path
        assert (staged.read_bytes(), staged.stat().st_mtime) == file.unpacked


def test_a_cart_of_300_files_has_the_order_of_its_manifest(
    archive: RealArchive, cartd: RunningCartd
) -> None:
    files = many_files(300, first_id=1000)
    store(archive, files)
    assert cartd.post("many", manifest_of(files)).status == 201
    found = downloaded(cartd, "many")
    assert found == {file.path: file.unpacked for file in files}
    assert list(found) == [file.path for file in files]
    headers = cartd.request("HEAD", "/many").headers
    reported = {name.removeprefix("x-pacifica-"): value for name, value in headers.items()}
    assert reported["files-total"] == reported["files-staged"] == "300"
    assert (
        reported["bytes-total"] == reported["bytes-staged"] == str(sum(len(f.data) for f in files))
    )


def test_upper_case_hashes_are_valid_and_missing_ones_recorded(
    archive: RealArchive, cartd: RunningCartd
) -> None:
    known = [ArchivedFile(f"k-{name}", f"k/{name}", b"a" * 9, 0, name) for name in HASH_TYPES]
    unknown = [ArchivedFile(f"u-{name}", f"u/{name}", b"b" * 9, 0, name) for name in HASH_TYPES]
    store(archive, [*known, *unknown])
    capitals = [file.entry(hashsum=file.hash_sum.upper()) for file in known]
    empty = [file.entry(hashsum="") for file in unknown]
    assert cartd.post("sums", manifest([*capitals, *empty])).status == 201
    assert downloaded(cartd, "sums") == {f.path: f.unpacked for f in [*known, *unknown]}
    dumped = json.loads(cartd.run("cartd-cmd", "dump", "--json").stdout)
    [cart] = [each for each in dumped if each["cart_uid"] == "sums"]
    recorded = {each["bundle_path"]: each["hash_value"] for each in cart["files"]}
    assert recorded == {file.path: file.hash_sum for file in [*known, *unknown]}


def test_leading_slashes_and_empty_path_components_are_dropped(
    archive: RealArchive, cartd: RunningCartd
) -> None:
    one = ArchivedFile(100, "/rooted", b"one")
    two = ArchivedFile(101, "///rooted.d//twice/./x", b"two")
    store(archive, [one, two])
    assert cartd.post("rooted", manifest_of([one, two])).status == 201
    wanted = {"rooted": one.unpacked, "rooted.d/twice/x": two.unpacked}
    assert downloaded(cartd, "rooted") == wanted


def test_a_missing_file_is_named_and_others_go_on(
    archive: RealArchive, cartd: RunningCartd
) -> None:
    here = ArchivedFile(200, "here", b"here")
    gone = ArchivedFile(404, "run/gone.dat", b"gone")
    store(archive, [here])
    cartd.post("incomplete", manifest_of([here, gone]))
    cartd.post("complete", manifest_of([here]))
    assert downloaded(cartd, "complete") == {"here": here.unpacked}
    message = cartd.wait_until("incomplete", "error")
    assert message == (
        "Failed to stage run/gone.dat (archive id 404): "
        "the archive does not have the file"
        " (500 Internal Server Error to GET: no such file or directory)"
    )
    # There is no retry.
    assert archive.log.count('"HEAD /404 ') == 1
    assert cartd.request("HEAD", "/incomplete").status == 500
    answer = cartd.get("/incomplete")
    assert (answer.status, answer.json["message"]) == (500, message)


def test_a_corrupt_file_is_named_with_both_hashes(
    archive: RealArchive, cartd: RunningCartd
) -> None:
    declared = ArchivedFile(300, "damaged.dat", b"as it was", hash_type="md5")
    held = ArchivedFile(300, "damaged.dat", b"as it is!", hash_type="md5")
    store(archive, [held])
    cartd.post("damaged", manifest_of([declared]))
    assert cartd.wait_until("damaged", "error") == (
        "Failed to stage damaged.dat (archive id 300): "
        f"its md5 is {held.hash_sum} where {declared.hash_sum} was declared"
    )
    assert not list(cartd.volume.glob("*/damaged/damaged.dat"))


def test_files_that_were_put_by_http_are_bundled_on_request(
    archive: RealArchive, cartd: RunningCartd, tmp_path: Path
) -> None:
    archive.put("put", b"by http")
    file = ArchivedFile("put", "a/put", b"by http", (archive.root / "put").stat().st_mtime)
    cartd.post("bundled", manifest_of([file], bundle=True))
    assert downloaded(cartd, "bundled") == {"a/put": file.unpacked}
    [bundle] = cartd.volume.glob("[0-9]*/bundled.tar")
    assert bundle.read_bytes() == cartd.get("/bundled").body
