"""Transient disk errors are distinguished from damage wherever the volume is read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cartd.errors import DiskUnavailable, Unavailable, raise_if_transient
from cartd.model import Cart, CartFile
from cartd.volume import Volume
from cartd.volume.file_system import write_volume_number
from cartd.volume.identity import VolumeIdentity
from cartd.volume.locks import SharedLock
from cartd.volume.rooted_fs import translate_disk_errors
from tests.support.volume_parts import a_cart, a_file, logged, result_of

pytest_plugins = ("tests.support.volume_fixture",)

CART = a_cart()
FILES = [a_file(b"content", "a/b.dat")]


async def no_throttle(_size: int) -> None:
    """Verify as the command does."""


def refuse_to_open(patch: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    patch.setattr(os, "open", refused)


@pytest.fixture
def staged(volume: Volume) -> Volume:
    place = volume.paths.member(CART, FILES[0].path)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"content")
    volume.paths.tar(CART).write_bytes(b"no tar")
    return volume


async def in_place(volume: Volume, cart: Cart, files: list[CartFile]) -> list[list[CartFile]]:
    return [right async for right in volume.verification.intact_files(cart, files)]


READS: dict[str, Callable[[Volume], Coroutine[Any, Any, object]]] = {
    "names and sizes": lambda volume: volume.verification.stat_files(CART, FILES),
    "the size of a bundle": lambda volume: volume.bundles.size(CART),
    "the members of a bundle": lambda volume: volume.bundles.stat_members(CART, FILES),
    "hashes of a tree": lambda volume: volume.verification.faults(CART, FILES, no_throttle),
    "hashes of a bundle": lambda volume: volume.verification.faults(
        replace(CART, bundle=True), FILES, no_throttle
    ),
    "what is in place already": lambda volume: in_place(volume, CART, FILES),
    "bytes that are arriving": lambda volume: volume.incoming.size(),
    "the link of a uid": lambda volume: volume.links.remove(CART),
}


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
def test_a_transient_error_does_not_make_a_file_missing(
    staged: Volume,
    read: Callable[[Volume], Coroutine[Any, Any, object]],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = result_of(read(staged))
    with monkeypatch.context() as patch:
        refuse_to_open(patch, number)
        with pytest.raises(DiskUnavailable, match=errno.errorcode[number]):
            result_of(read(staged))
    assert result_of(read(staged)) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_an_error_of_the_file_itself_is_damage(
    staged: Volume, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse_to_open(patch, number)
        reason = f"cannot be read: {os.strerror(number)}"
        assert result_of(staged.verification.faults(CART, FILES, no_throttle)) == [reason]


def test_a_transient_error_of_the_lock_does_not_damage_the_cart(
    staged: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = SharedLock(staged.paths.tree(CART))
    with monkeypatch.context() as patch:
        refuse_to_open(patch, errno.EMFILE)
        with pytest.raises(DiskUnavailable):
            lock.acquire()


def test_running_out_of_descriptors_is_not_volume_unavailable(
    volume: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume_number(root, 5)
    identity = VolumeIdentity(root, 5)
    with logged() as events, monkeypatch.context() as patch:
        refuse_to_open(patch, errno.EMFILE)
        with pytest.raises(DiskUnavailable):
            identity.check()
    identity.check()
    assert not events


def test_a_transient_write_error_is_no_fault_of_its_file(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match="Too many open files"),
        translate_disk_errors(tmp_path / "a", tmp_path),
    ):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, ""), OSError(), ValueError()])
def test_other_errors_are_left_to_the_caller(error: Exception) -> None:
    raise_if_transient(error)
