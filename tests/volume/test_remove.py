"""Removal of carts from the volume."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from cartd.deferreds.threads import Threads
from cartd.volume import Volume
from cartd.volume.remove import (
    PAGE,
    RemovalStopped,
    TimeSliceEnded,
    remove_tree,
    rename_then_remove,
)
from cartd.volume.rooted_fs import RootedFS
from tests.support.volume_parts import (
    BODY,
    CART,
    EMPTY,
    HeldThreads,
    InThisThread,
    a_cart,
    a_file,
    begin,
    checksum_of,
    everything,
    failure_of,
    in_the_loop,
    outcome,
    result_of,
    stage,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def volume(root: Path) -> Volume:
    volume = Volume(root, InThisThread())
    volume.prepare()
    return volume


def test_removing_a_cart_leaves_nothing_of_it(volume: Volume, root: Path) -> None:
    stage(volume, a_file(BODY))
    volume.paths.tar(CART).write_bytes(b"tar")
    volume.incoming.open(CART, a_file(b"", "x"), checksum_of(a_file(bytes(2 << 20)))).write(
        bytes(1 << 20)
    )
    result_of(volume.links.place(CART))
    result_of(volume.removal.remove(CART))
    assert everything(root) == EMPTY
    result_of(volume.removal.remove(CART))
    assert everything(root) == EMPTY


def test_a_removal_is_interrupted_by_a_stop_and_finished_later(volume: Volume, root: Path) -> None:
    for number in range(3):
        stage(volume, a_file(BODY, f"d/{number}", position=number))
    stop_checks = iter([False, True])
    with pytest.raises(RemovalStopped), RootedFS(root) as below:
        aside = root / "incoming/7/aside"
        rename_then_remove(below, root / str(CART.id), aside, lambda: next(stop_checks))
    assert not (root / str(CART.id)).exists()
    assert len(list((root / "incoming/7/aside").glob("**/d/*"))) == 2
    stopped = Volume(root, InThisThread())
    stopped.stop()
    with pytest.raises(RemovalStopped):
        result_of(stopped.removal.remove(CART))
    assert result_of(volume.removal.remove(CART))
    assert everything(root) == EMPTY


def test_links_in_a_tree_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept/directory").mkdir(parents=True)
    (tmp_path / "kept/file").touch()
    tree = tmp_path / "tree"
    (tree / "deep/er").mkdir(parents=True)
    for name in ("directory", "file", "nothing"):
        (tree / "deep" / name).symlink_to(tmp_path / "kept" / name)
    before = everything(tmp_path / "kept")
    remove_tree(RootedFS(tmp_path), tree)
    assert not tree.exists()
    assert everything(tmp_path / "kept") == before


def test_a_disk_too_full_for_another_directory_can_be_emptied(tmp_path: Path) -> None:
    def full(_below: RootedFS, _directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below/file").write_bytes(b"x")
    rename_then_remove(RootedFS(tmp_path), tree, tmp_path / "incoming/aside", make=full)
    assert everything(tmp_path) == set()


def test_removing_a_cart_touches_no_other(volume: Volume, root: Path) -> None:
    newer = a_cart(8)
    stage(volume, a_file(BODY))
    stage(volume, a_file(BODY), cart=newer)
    result_of(volume.links.place(newer))
    result_of(volume.removal.remove(CART))
    assert (root / "cartuids" / "mine" / "a" / "b.dat").read_bytes() == BODY


def test_removing_follows_no_link(volume: Volume, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    stage(volume, a_file(BODY))
    (volume.paths.tree(CART) / "link").symlink_to(outside)
    (root / "8").symlink_to(outside)
    result_of(volume.removal.remove(CART))
    result_of(volume.removal.remove(a_cart(8)))
    assert everything(root) == EMPTY
    assert (outside / "precious").exists()


def test_a_cart_with_a_uid_that_is_no_name_can_be_removed(volume: Volume, root: Path) -> None:
    (root / "7" / "x").mkdir(parents=True)
    result_of(volume.removal.remove(a_cart(uid="../..")))
    assert everything(root) == EMPTY


def test_files_can_come_again_after_a_removal(volume: Volume) -> None:
    first = volume.incoming.open(CART, a_file(BODY), checksum_of(a_file(BODY)))
    stage(volume, a_file(BODY, "a/other"))
    result_of(volume.removal.remove(CART))
    first.write(BODY)
    result_of(first.finish())
    assert volume.paths.member(CART, "a/b.dat").read_bytes() == BODY


@in_the_loop
async def test_two_may_remove_one_cart_at_once(root: Path) -> None:
    threads = Threads(reactor, 4)
    threads.start()
    try:
        volumes = [Volume(root, threads) for _ in range(4)]
        volumes[0].prepare()
        for number in range(500):
            path = root / "7" / "mine" / str(number % 20) / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        await gatherResults([Deferred.fromCoroutine(one.removal.remove(CART)) for one in volumes])
        assert everything(root) == EMPTY
    finally:
        threads.stop()


def test_a_cancelled_removal_ends_when_the_thread_has(root: Path) -> None:
    threads = HeldThreads()
    volume = Volume(root, threads)
    volume.prepare()
    (root / "7").mkdir()
    removing = Deferred.fromCoroutine(volume.removal.remove(CART))
    removed = outcome(removing)
    removing.cancel()
    assert removed == []
    threads.run_all()
    assert isinstance(failure_of(removed), CancelledError)
    assert everything(root) == EMPTY


def test_a_large_directory_is_removed_page_by_page(
    tmp_path: Path,
) -> None:
    """The peak of memory is that of one page, whatever the number of files."""
    flat = tmp_path / "flat"

    def needed(number: int) -> int:
        flat.mkdir()
        for name in range(number):
            (flat / f"{name:0100}").touch()
        tracemalloc.start()
        try:
            remove_tree(RootedFS(tmp_path), flat)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    page = needed(PAGE)
    assert needed(8 * PAGE) < 2 * page
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_concurrent_removals_share_a_thread_by_time_slices(
    root: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr("cartd.volume.remove.TimeSlice", lambda stopped: FilesAtATime(3, stopped))
    threads = HeldThreads()
    volume = Volume(root, InThisThread(), removal_threads=threads)
    volume.prepare()
    for cart_id in (7, 8):
        for number in range(3 * parts):
            path = root / str(cart_id) / "mine" / str(number % 2) / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    removing = [begin(volume.removal.remove(a_cart(cart_id))) for cart_id in (7, 8)]
    for _ in range(parts):
        assert removing == [[], []]
        for _ in range(2):
            threads.run_one()
    threads.run_all()
    assert removing == [[True], [True]]
    assert everything(root) == EMPTY


class FilesAtATime:
    """A time slice that ends after so many files."""

    def __init__(self, files: int, stopped: Callable[[], bool]) -> None:
        self._left = files
        self._stopped = stopped

    def __call__(self) -> bool:
        if self._left == 0:
            raise TimeSliceEnded
        self._left -= 1
        return self._stopped()


def test_a_directory_that_cannot_be_renamed_is_removed_in_place(tmp_path: Path) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").write_bytes(b"x")
    (tmp_path / "incoming").write_text("in the way")
    rename_then_remove(RootedFS(tmp_path), tmp_path / "tree", tmp_path / "incoming/aside")
    assert everything(tmp_path) == {"incoming"}
