"""Writing and verifying bundles on the volume."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred

from cartd.errors import VolumeDamaged
from cartd.model import CartFile
from cartd.volume import FileFacts, Volume, verify
from tests.support.volume_parts import (
    BODY,
    CART,
    EMPTY,
    Bytes,
    HeldThreads,
    a_cart,
    a_file,
    everything,
    failure_of,
    outcome,
    result_of,
    stage,
)

pytest_plugins = ("tests.support.volume_fixture",)

DATA = os.urandom(1000)
TAR = os.urandom((2 << 20) + 77)


def test_a_bundle_takes_the_place_of_the_tree(volume: Volume, root: Path) -> None:
    stage(volume, a_file(BODY))
    reader = Bytes(TAR)
    result_of(volume.bundles.write(CART, reader, len(TAR)))
    assert volume.paths.tar(CART).read_bytes() == TAR
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
        result_of(volume.bundles.write(CART, reader, length))
    assert path.read_bytes() == BODY
    assert not volume.paths.tar(CART).exists()
    assert list((root / "incoming" / "7").iterdir()) == []
    assert reader.closed == 1


def test_a_bundle_that_may_not_outlast_a_power_failure_is_none(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = stage(volume, a_file(BODY))
    monkeypatch.setattr("cartd.volume.incoming.sync_directories", fail)
    with pytest.raises(OSError):
        result_of(volume.bundles.write(CART, Bytes(TAR), len(TAR)))
    assert path.read_bytes() == BODY
    assert not volume.paths.tar(CART).exists()


def test_a_uid_too_long_for_a_bundle_closes_the_reader(volume: Volume) -> None:
    reader = Bytes(TAR)
    with pytest.raises(ValueError):
        result_of(volume.bundles.write(a_cart(uid="u" * 255), reader, len(TAR)))
    assert reader.closed == 1


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_cancelled_bundle_waits_for_the_thread_and_is_removed(root: Path, calls: int) -> None:
    threads, reader = HeldThreads(), Bytes(TAR)
    volume = Volume(root, threads)
    volume.prepare()
    writing = Deferred.fromCoroutine(volume.bundles.write(CART, reader, len(TAR)))
    written = outcome(writing)
    for _ in range(calls):
        threads.run_one()
    writing.cancel()
    assert (len(threads.held), reader.closed, written) == (1, 0, [])
    threads.run_one()
    assert (len(threads.held), reader.closed, written) == (1, 0, [])
    threads.run_all()
    assert isinstance(failure_of(written), CancelledError)
    assert reader.closed == 1
    assert everything(root) <= EMPTY | {"incoming/7"}


def pacificas_tar(volume: Volume, *paths: str) -> Path:
    """Write a bundle as Pacifica Cartd did, of a tree with these files."""
    tree, tar = volume.paths.tree(CART), volume.paths.tar(CART)
    for number, path in enumerate(paths):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(DATA[: 600 + number])
        os.utime(tree / path, (1e9 + number, 1e9 + number + 0.5))
    with tarfile.open(tar, "w") as opened:
        opened.add(tree, arcname=CART.uid)
    return tar


def test_members_of_pacificas_bundle_are_read_from_its_headers(volume: Volume) -> None:
    paths = ["b", "a/" + "long/" * 60 + "c", "a/\N{SNOWMAN}", "a/d"]
    pacificas_tar(volume, *paths)
    wanted = [a_file(b"", path, position=number) for number, path in enumerate(paths[:3])]
    assert result_of(volume.bundles.stat_members(CART, reversed(wanted))) == [
        FileFacts(2, 602, 1_000_000_002),
        FileFacts(1, 601, 1_000_000_001),
        FileFacts(0, 600, 1_000_000_000),
    ]


def test_an_incomplete_or_unreadable_bundle_has_no_member_stats(volume: Volume) -> None:
    one, another = a_file(b"", "one"), a_file(b"", "another", position=1)
    assert result_of(volume.bundles.stat_members(CART, [one])) is None
    tar = pacificas_tar(volume, "one")
    assert result_of(volume.bundles.stat_members(CART, [one])) is not None
    assert result_of(volume.bundles.stat_members(CART, [one, another])) is None
    whole = tar.read_bytes()
    for broken in (b"", whole[:1000], whole[: whole.index(DATA[:600]) + 599], b"x" * 20_480):
        tar.write_bytes(broken)
        assert result_of(volume.bundles.stat_members(CART, [one])) is None
    tar.unlink()
    tar.mkdir()
    assert result_of(volume.bundles.stat_members(CART, [one])) is None


async def no_throttle(_size: int) -> None:
    """Verify as the command does."""


async def verified(volume: Volume, pages: list[list[CartFile]]) -> list[tuple[str, str]]:
    """Return the fault of each path, verified page by page, as the service does."""

    async def given() -> AsyncIterator[list[CartFile]]:
        for page in pages:
            yield page

    cart = replace(CART, bundle=True)
    return [
        (file.path, fault)
        async for files, faults in volume.verification.bundle_faults(cart, given(), no_throttle)
        for file, fault in zip(files, faults, strict=True)
    ]


def written_bundle(volume: Volume, bodies: Mapping[str, bytes]) -> Path:
    tar = volume.paths.tar(CART)
    tar.parent.mkdir(exist_ok=True)
    with tarfile.open(tar, "w") as opened:
        for path, body in bodies.items():
            member = tarfile.TarInfo(f"{CART.uid}/{path}")
            member.size = len(body)
            opened.addfile(member, io.BytesIO(body))
    return tar


PATHS = [f"dir/{number}" for number in range(7)]
BODIES = {path: DATA[: 100 + at] for at, path in enumerate(PATHS)}
PAGES = [
    [a_file(BODIES[path], path, position=at) for at, path in enumerate(PATHS)][first : first + 3]
    for first in (0, 3, 6)
]


@pytest.mark.parametrize("order", [PATHS, PATHS[::-1], [*PATHS[3:], *PATHS[:3]]], ids=str)
@pytest.mark.parametrize("bad", [None, "dir/0", "dir/4", "dir/6"])
def test_a_bundle_is_verified_page_by_page_whatever_its_order(
    volume: Volume, order: list[str], bad: str | None
) -> None:
    written_bundle(volume, {path: BODIES[path] for path in order} | ({bad: b"x"} if bad else {}))
    expected = [(path, "" if path != bad else FAULT) for path in PATHS]
    found = result_of(verified(volume, PAGES))
    assert [path for path, _ in found] == PATHS
    assert [(path, fault and FAULT) for path, fault in found] == expected


FAULT = "is wrong"


def test_a_bundle_in_order_is_never_held_in_memory(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(*_: object) -> None:
        raise AssertionError("all files were asked for at once")

    monkeypatch.setattr(verify, "_tar_verdicts", whole)
    tar = written_bundle(volume, BODIES)
    assert {fault for _, fault in result_of(verified(volume, PAGES))} == {""}
    data = tar.read_bytes()
    tar.write_bytes(data[: data.index(BODIES["dir/5"] + bytes(1)) + 50])
    found = dict(result_of(verified(volume, PAGES)))
    assert [found[path] for path in PATHS[:5]] == [""] * 5
    assert {found["dir/5"], found["dir/6"]} == {"cannot be read in the bundle"}
    tar.unlink()
    assert {fault for _, fault in result_of(verified(volume, PAGES))} == {
        "is missing: its bundle does not exist"
    }


def test_extra_members_and_missing_members_are_distinguished(volume: Volume) -> None:
    bodies = {"extra": b"x", **BODIES}
    del bodies["dir/4"]
    written_bundle(volume, bodies)
    found = dict(result_of(verified(volume, PAGES)))
    assert {path for path, fault in found.items() if fault} == {"dir/4"}
    assert found["dir/4"] == "is missing from the bundle"


def test_a_uid_too_long_for_a_bundle_has_none(volume: Volume) -> None:
    cart = a_cart(uid="u" * 255)
    assert result_of(volume.bundles.size(cart)) is None
    assert result_of(volume.bundles.stat_members(cart, [])) is None


def test_a_bundle_is_synced_before_its_tree_is_removed(
    volume: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []
    tree = volume.paths.tree(CART)

    def fsync(fd: int) -> None:
        synced.append((os.fstat(fd).st_ino, tree.exists()))

    monkeypatch.setattr("os.fsync", fsync)
    stage(volume, a_file(BODY))
    result_of(volume.bundles.write(CART, Bytes(DATA), len(DATA)))
    paths = (volume.paths.tar(CART), volume.paths.tar(CART).parent, root)
    assert synced == [(path.stat().st_ino, True) for path in paths]
    assert not tree.exists()
