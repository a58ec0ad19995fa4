"""The directory that holds the staged carts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from cartd.errors import ConfigError, VolumeDamaged
from cartd.model import CartFile
from cartd.threads import Threads
from cartd.volume import BATCH, Volume
from tests.volume_parts import (
    HeldThreads,
    InThisThread,
    a_cart,
    a_file,
    begin,
    checksum_of,
    failure_of,
    in_the_loop,
    outcome,
    result_of,
)

CART = a_cart()
BODY = b"what is staged"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def volume(root: Path) -> Volume:
    volume = Volume(root, InThisThread())
    volume.prepare()
    return volume


def stage(volume: Volume, file: CartFile, body: bytes = BODY, cart: Any = CART) -> Path:
    incoming = volume.incoming(cart, file, checksum_of(file))
    incoming.write(body)
    result_of(incoming.finish())
    return volume.member(cart, file.path)


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


EMPTY = {"cartuids", "incoming"}


@contextmanager
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observer)


# Paths


def test_a_cart_has_its_tree_and_its_bundle_below_its_id(volume: Volume, root: Path) -> None:
    assert volume.tree(CART) == root / "7" / "mine"
    assert volume.tar(CART) == root / "7" / "mine.tar"
    assert volume.member(CART, "a/b") == root / "7" / "mine" / "a" / "b"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../../x",
        ".",
        "a/./b",
        "a//b",
        "a/",
        "a\0b",
        "x" * 256,
        "a/" + "é" * 128,
        "\ud800",
    ],
    ids=ascii,
)
def test_a_path_that_cannot_be_in_the_tree_is_refused(volume: Volume, path: str) -> None:
    with pytest.raises(ValueError):
        volume.member(CART, path)
    with pytest.raises(ValueError):
        volume.incoming(CART, a_file(BODY, path), checksum_of(a_file(BODY)))


@pytest.mark.parametrize("path", ["x" * 255, "é" * 127, "...", "..a", "a\\b", " ", "-", "a\nb"])
def test_a_strange_name_that_is_one_is_taken(volume: Volume, path: str) -> None:
    assert stage(volume, a_file(BODY, path)).read_bytes() == BODY


@pytest.mark.parametrize("uid", ["", "..", "a/b", "x" * 256, "\0"], ids=ascii)
def test_a_uid_that_is_no_name_is_refused(volume: Volume, uid: str) -> None:
    with pytest.raises(ValueError):
        volume.tree(a_cart(uid=uid))


def test_a_uid_too_long_for_a_bundle_still_has_a_tree(volume: Volume) -> None:
    cart = a_cart(uid="u" * 252)
    assert volume.tree(cart).name == cart.uid
    with pytest.raises(ValueError):
        volume.tar(cart)


def test_two_volumes_in_one_directory_never_share_a_temporary_name(root: Path) -> None:
    for volume in (Volume(root, InThisThread()), Volume(root, InThisThread())):
        volume.prepare()
        incoming = volume.incoming(CART, a_file(b"", "x"), checksum_of(a_file(bytes(2 << 20))))
        incoming.write(bytes(1 << 20))
    assert len(list((root / "incoming" / "7").iterdir())) == 2


# The start


def test_preparing_makes_the_directories_and_nothing_else(volume: Volume, root: Path) -> None:
    assert everything(root) == EMPTY
    volume.prepare()
    assert everything(root) == EMPTY


def test_what_is_incoming_is_hidden_from_others(volume: Volume, root: Path) -> None:
    assert (root / "incoming").stat().st_mode & 0o077 == 0


def put_a_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("spoil", "named", "reason"),
    [
        pytest.param(lambda root: put_a_file(root), "volume'", "not a directory", id="a file"),
        pytest.param(
            lambda root: put_a_file(root / "incoming"),
            "incoming'",
            "not a directory",
            id="a file for what is incoming",
        ),
        pytest.param(
            lambda root: root.symlink_to(root.parent / "away"),
            "volume'",
            "not a directory",
            id="a dangling link",
        ),
    ],
)
def test_a_volume_that_cannot_be_used_is_told_in_one_line(
    root: Path, spoil: Callable[[Path], object], named: str, reason: str
) -> None:
    spoil(root)
    with pytest.raises(ConfigError, match=reason) as caught:
        Volume(root, InThisThread()).prepare()
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_directory_above_the_volume_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="above it does not exist"):
        Volume(tmp_path / "not" / "mounted", InThisThread()).prepare()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_which_nothing_can_be_made_is_refused() -> None:
    nowhere = Path("/dev/fd")  # a directory that no user, not even root, can write to
    with pytest.raises(ConfigError, match="/dev/fd"):
        Volume(nowhere, InThisThread()).prepare()


def test_the_free_bytes_are_those_of_the_disk(volume: Volume) -> None:
    assert 0 < result_of(volume.free()) < 1 << 60


# Taking up after a crash


@pytest.mark.parametrize(
    ("found", "there"),
    [
        pytest.param(BODY, True, id="right"),
        pytest.param(BODY[:-1] + b"?", False, id="another byte"),
        pytest.param(BODY[:-1], False, id="too short"),
        pytest.param(BODY + b"?", False, id="too long"),
        pytest.param(None, False, id="not there"),
    ],
)
def test_a_file_is_there_when_size_and_hash_are_right(
    volume: Volume, found: bytes | None, there: bool
) -> None:
    file = a_file(BODY)
    path = volume.member(CART, file.path)
    path.parent.mkdir(parents=True)
    if found is not None:
        path.write_bytes(found)
    assert result_of(volume.has(CART, file)) is there


@pytest.mark.parametrize(
    "changed",
    [{"hash_sum": ""}, {"size": None}, {"path": "../b.dat"}],
    ids=["no hash", "no size", "no path"],
)
def test_a_file_of_which_too_little_is_known_is_not_there(
    volume: Volume, changed: dict[str, Any]
) -> None:
    known = a_file(BODY)
    stage(volume, known)
    assert result_of(volume.has(CART, known))
    values = {name: getattr(known, name) for name in CartFile.__dataclass_fields__} | changed
    assert not result_of(volume.has(CART, CartFile(**values)))


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_regular_file_is_not_there(volume: Volume, tmp_path: Path, kind: str) -> None:
    file = a_file(b"")
    path = volume.member(CART, file.path)
    path.parent.mkdir(parents=True)
    (tmp_path / "target").touch()
    if kind == "link":
        path.symlink_to(tmp_path / "target")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert not result_of(volume.has(CART, file))
    assert result_of(volume.measure(CART, [file])) == [None]


def test_a_killed_process_leaves_nothing_under_the_final_name(root: Path) -> None:
    root.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.volume_writer", "kill", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.kill()
    volume = Volume(root, InThisThread())
    left = list((root / "incoming" / "7").iterdir())
    assert [path.stat().st_size > 0 for path in left] == [True]
    assert not volume.member(CART, "a/b.dat").exists()
    assert result_of(volume.cart_ids()) == [7]
    result_of(volume.clear_incoming(7))
    assert result_of(volume.cart_ids()) == []
    assert everything(root) == EMPTY


def written_by(what: str, root: Path) -> str:
    """What :mod:`tests.volume_writer` prints."""
    return subprocess.run(
        [sys.executable, "-m", "tests.volume_writer", what, str(root)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    ).stdout


def test_a_limit_of_the_system_is_told_with_the_path_below_the_volume(root: Path) -> None:
    told = written_by("limit", root)
    assert f"{errno.EFBIG} " in told
    assert "'7/mine/a/b.dat'" in told
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_the_ids_on_the_volume_are_found_and_nothing_else(volume: Volume, root: Path) -> None:
    for name in ("12", "3", "incoming/44", "007", "lost+found", "1" * 30, "٣"):
        (root / name).mkdir()
    (root / "5").touch()
    assert result_of(volume.cart_ids()) == [3, 12, 44]


def test_files_are_measured_in_their_order(volume: Volume) -> None:
    files = [a_file(bytes(n % 7), f"d/{n}", position=n) for n in range(BATCH + 5)]
    for file in files[::2]:
        stage(volume, file, bytes(file.size or 0))
    assert result_of(volume.measure(CART, files)) == [
        None if file.position % 2 else (file.position, file.size, file.mtime) for file in files
    ]


def test_a_path_that_cannot_be_in_the_tree_has_no_measure(volume: Volume) -> None:
    assert result_of(volume.measure(CART, [a_file(b"", "../x")])) == [None]


# Links


def test_the_link_leads_to_the_tree_and_is_relative(volume: Volume, root: Path) -> None:
    stage(volume, a_file(BODY))
    result_of(volume.link(CART))
    assert (root / "cartuids" / "mine").readlink() == Path("../7/mine")
    assert (root / "cartuids" / "mine" / "a" / "b.dat").read_bytes() == BODY
    assert not (root / "incoming" / "7").exists()


def test_the_link_of_a_newer_cart_takes_the_place_of_the_older(volume: Volume, root: Path) -> None:
    result_of(volume.link(CART))
    result_of(volume.link(a_cart(8, bundle=True)))
    assert (root / "cartuids" / "mine").readlink() == Path("../8/mine.tar")


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_real_thing_in_the_place_of_the_link_is_left(
    volume: Volume, root: Path, kind: str
) -> None:
    there = root / "cartuids" / "mine"
    there.touch() if kind == "file" else there.mkdir()
    with logged() as events:
        result_of(volume.link(CART))
        result_of(volume.remove(CART))
    assert there.exists()
    assert not there.is_symlink()
    assert len(events) == 1


def test_where_links_are_refused_it_is_said_once(root: Path) -> None:
    assert written_by("links", root) == "warn\n"
    assert everything(root) == EMPTY


# Removing


def test_removing_a_cart_leaves_nothing_of_it(volume: Volume, root: Path) -> None:
    stage(volume, a_file(BODY))
    volume.tar(CART).write_bytes(b"tar")
    volume.incoming(CART, a_file(b"", "x"), checksum_of(a_file(bytes(2 << 20)))).write(
        bytes(1 << 20)
    )
    result_of(volume.link(CART))
    result_of(volume.remove(CART))
    assert everything(root) == EMPTY
    result_of(volume.remove(CART))
    assert everything(root) == EMPTY


def test_removing_a_cart_touches_no_other(volume: Volume, root: Path) -> None:
    newer = a_cart(8)
    stage(volume, a_file(BODY))
    stage(volume, a_file(BODY), cart=newer)
    result_of(volume.link(newer))
    result_of(volume.remove(CART))
    assert (root / "cartuids" / "mine" / "a" / "b.dat").read_bytes() == BODY


def test_removing_follows_no_link(volume: Volume, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    stage(volume, a_file(BODY))
    (volume.tree(CART) / "link").symlink_to(outside)
    (root / "8").symlink_to(outside)
    result_of(volume.remove(CART))
    result_of(volume.remove(a_cart(8)))
    assert everything(root) == EMPTY
    assert (outside / "precious").exists()


def test_a_cart_with_a_uid_that_is_no_name_can_be_removed(volume: Volume, root: Path) -> None:
    (root / "7" / "x").mkdir(parents=True)
    result_of(volume.remove(a_cart(uid="../..")))
    assert everything(root) == EMPTY


def test_files_can_come_again_after_a_removal(volume: Volume) -> None:
    first = volume.incoming(CART, a_file(BODY), checksum_of(a_file(BODY)))
    stage(volume, a_file(BODY, "a/other"))
    result_of(volume.remove(CART))
    first.write(BODY)
    result_of(first.finish())
    assert volume.member(CART, "a/b.dat").read_bytes() == BODY


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
        await gatherResults([Deferred.fromCoroutine(one.remove(CART)) for one in volumes])
        assert everything(root) == EMPTY
    finally:
        threads.stop()


def test_a_cancelled_removal_ends_when_the_thread_has(root: Path) -> None:
    threads = HeldThreads()
    volume = Volume(root, threads)
    volume.prepare()
    (root / "7").mkdir()
    removing = Deferred.fromCoroutine(volume.remove(CART))
    removed = outcome(removing)
    removing.cancel()
    assert removed == []
    threads.let_all_go()
    assert isinstance(failure_of(removed), CancelledError)
    assert everything(root) == EMPTY


# Bundles


class Bytes:
    """A reader of a bundle that is in memory, or that fails at its end."""

    def __init__(self, data: bytes, failure: Exception | None = None) -> None:
        self._data = data
        self._failure = failure
        self.closed = 0

    def read(self, limit: int) -> bytes:
        data, self._data = self._data[:limit], self._data[limit:]
        if not data and self._failure is not None:
            raise self._failure
        return data

    def close(self) -> None:
        self.closed += 1


TAR = os.urandom((2 << 20) + 77)


def test_a_bundle_takes_the_place_of_the_tree(volume: Volume, root: Path) -> None:
    stage(volume, a_file(BODY))
    reader = Bytes(TAR)
    result_of(volume.write_tar(CART, reader, len(TAR)))
    assert volume.tar(CART).read_bytes() == TAR
    assert everything(root) == EMPTY | {"7", "7/mine.tar"}
    assert reader.closed == 1


@pytest.mark.parametrize(
    ("length", "failure", "error"),
    [
        pytest.param(len(TAR) + 1, None, VolumeDamaged, id="too few bytes"),
        pytest.param(len(TAR) - 1, None, VolumeDamaged, id="too many bytes"),
        pytest.param(len(TAR), VolumeDamaged("gone"), VolumeDamaged, id="damaged"),
        pytest.param(len(TAR), OSError(5, "I/O"), OSError, id="a failing disk"),
    ],
)
def test_a_bundle_that_fails_leaves_the_tree_as_it_is(
    volume: Volume, root: Path, length: int, failure: Exception | None, error: type[Exception]
) -> None:
    path, reader = stage(volume, a_file(BODY)), Bytes(TAR, failure)
    with pytest.raises(error):
        result_of(volume.write_tar(CART, reader, length))
    assert path.read_bytes() == BODY
    assert not volume.tar(CART).exists()
    assert list((root / "incoming" / "7").iterdir()) == []
    assert reader.closed == 1


def test_a_uid_too_long_for_a_bundle_closes_the_reader(volume: Volume) -> None:
    reader = Bytes(TAR)
    with pytest.raises(ValueError):
        result_of(volume.write_tar(a_cart(uid="u" * 255), reader, len(TAR)))
    assert reader.closed == 1


@pytest.mark.parametrize("trips", [0, 1, 2])
def test_a_cancelled_bundle_leaves_nothing_and_waits_for_the_thread(root: Path, trips: int) -> None:
    threads, reader = HeldThreads(), Bytes(TAR)
    volume = Volume(root, threads)
    volume.prepare()
    writing = Deferred.fromCoroutine(volume.write_tar(CART, reader, len(TAR)))
    written = outcome(writing)
    for _ in range(trips):
        threads.let_one_go()
    writing.cancel()
    assert (len(threads.held), reader.closed, written) == (1, 0, [])
    threads.let_one_go()
    assert (len(threads.held), reader.closed, written) == (1, 0, [])
    threads.let_all_go()
    assert isinstance(failure_of(written), CancelledError)
    assert reader.closed == 1
    assert everything(root) <= EMPTY | {"incoming/7"}


def test_a_cancelled_look_at_a_file_stops_hashing(root: Path) -> None:
    threads = HeldThreads()
    volume = Volume(root, threads)
    volume.prepare()
    file = a_file(BODY)
    path = volume.member(CART, file.path)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    looking = begin(volume.has(CART, file))
    threads.let_all_go()
    assert looking == [True]
    cancelled = Deferred.fromCoroutine(volume.has(CART, file))
    failed = outcome(cancelled)
    cancelled.cancel()
    assert isinstance(failure_of(failed), CancelledError)
    assert threads.results_of_all() == [False]


# Many at once


@in_the_loop
async def test_many_files_of_two_carts_come_at_once(root: Path) -> None:
    threads = Threads(reactor, 8)
    threads.start()
    try:
        volume = Volume(root, threads)
        volume.prepare()
        carts = [a_cart(1, "one"), a_cart(2, "two")]
        bodies = {f"d{n % 7}/e{n % 3}/{n}": str(n).encode() * n for n in range(300)}

        async def one(cart: Any, position: int, path: str) -> str:
            file = a_file(bodies[path], path, position=position)
            incoming = volume.incoming(cart, file, checksum_of(file))
            incoming.write(bodies[path])
            return await incoming.finish()

        await gatherResults(
            [
                Deferred.fromCoroutine(one(cart, position, path))
                for position, path in enumerate(bodies)
                for cart in carts
            ]
        )
        for cart in carts:
            assert {path: volume.member(cart, path).read_bytes() for path in bodies} == bodies
            await volume.clear_incoming(cart.id)
    finally:
        threads.stop()
