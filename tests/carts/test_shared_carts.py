"""Carts with the same files, end to end: ready at once, and independent of each other."""

from __future__ import annotations

from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread

from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, entry, manifest, running_cartd, wait_for

pytest_plugins = ("tests.support.archive_fixtures",)

MB = 10**6
DATA = {f"a-{number}": content(f"a-{number}", MB // 4) for number in range(4)}


def under_other_paths(**more: object) -> bytes:
    """Return a manifest of the files of the cart ``a`` under other paths."""
    return manifest([entry(name, f"else/where/{name}", DATA[name]) for name in DATA], **more)


def is_intact(cartd: RunningCartd, uid: str) -> bool:
    return sorted(cartd.download(uid).values()) == sorted(DATA.values())


def stopping(archive: FaultyArchive) -> Any:
    return Deferred.fromCoroutine(archive.stop())


def on_disk(volume: Path) -> int:
    """Return the bytes of all files; hard links count once."""
    found = [path.stat() for path in volume.glob("[0-9]*/**/*") if path.is_file()]
    return sum({one.st_ino: one.st_size for one in found}.values())


def staged_twice(cartd: RunningCartd, archive: FaultyArchive) -> None:
    """Carts ``a`` and ``b`` of the same four files, which are on the disk once."""
    stage(cartd, archive, "a", MB, files=4)
    requests = len(archive.requests)
    cartd.post("b", under_other_paths())
    cartd.wait_until("b", "ready")
    assert len(archive.requests) == requests
    assert on_disk(cartd.volume) == MB


@in_a_thread
def test_a_repeated_cart_is_ready_while_the_archive_is_down(tmp_path: Path) -> None:
    archive = FaultyArchive(the_reactor())
    blockingCallFromThread(the_reactor(), archive.listen)
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        stage(cartd, archive, "a", MB, files=4)
        blockingCallFromThread(the_reactor(), stopping, archive)
        cartd.post("b", under_other_paths())
        cartd.wait_until("b", "ready")
        cartd.post("bundled", under_other_paths(bundle=True))
        cartd.wait_until("bundled", "ready")
        head = cartd.request("HEAD", "/b").headers
        assert (head["x-pacifica-bytes-total"], head["x-pacifica-bytes-staged"]) == (
            str(MB),
            str(MB),
        )
        assert cartd.download("b") == {f"else/where/{name}": DATA[name] for name in DATA}
        assert is_intact(cartd, "bundled")
        assert_no_unexpected_errors(cartd.log)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")])
@in_a_thread
def test_deleting_a_cart_leaves_the_shared_files_of_another(
    archive: FaultyArchive, tmp_path: Path, first: str, second: str
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        staged_twice(cartd, archive)
        assert cartd.delete(first).status == 200
        assert is_intact(cartd, second)
        cartd.post("c", under_other_paths())
        cartd.wait_until("c", "ready")
        assert cartd.delete(second).status == 200
        assert is_intact(cartd, "c")
        assert len(archive.seen("GET")) == 4
        assert cartd.delete("c").status == 200
        assert on_disk(cartd.volume) == 0
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_shared_bytes_count_once_and_go_with_the_last_cart(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    ini = f"[cartd]\nvolume_quota = {2 * MB}\n"
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini) as cartd:
        staged_twice(cartd, archive)
        # There is space for as much again without an eviction.
        stage(cartd, archive, "c", MB)
        assert [cartd.status(uid)[0] for uid in "abc"] == ["ready"] * 3
        # A cart larger than the empty volume evicts no other.
        cartd.post("d", manifest_of(archive, "d", 3 * MB))
        assert cartd.wait_until("d", "error") == "No Space Available"
        assert [cartd.status(uid)[0] for uid in "abc"] == ["ready"] * 3
        # Only the eviction of both frees space.
        stage(cartd, archive, "e", MB)
        assert [cartd.request("HEAD", f"/{uid}").status for uid in "abce"] == [
            404,
            404,
            204,
            204,
        ]
        assert on_disk(cartd.volume) == 2 * MB
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_a_full_volume_accepts_carts_of_files_that_it_has(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    ini = f"[cartd]\nvolume_quota = {MB}\nlru_purge = off\n"
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini) as cartd:
        staged_twice(cartd, archive)
        assert is_intact(cartd, "a")
        assert is_intact(cartd, "b")


@in_a_thread
def test_a_missing_file_is_linked_again_from_the_other_cart(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        staged_twice(cartd, archive)
        damaged = cartd.volume / "1/a/dir/file-2"
        damaged.unlink()
        with suppress(OSError, HTTPException):  # 202, or a connection that breaks
            cartd.get("/a")
        wait_for(damaged.exists)
        cartd.wait_until("a", "ready")
        assert is_intact(cartd, "a")
        assert damaged.samefile(cartd.volume / "2/b/else/where/a-2")
        assert len(archive.seen("GET")) == 4
