"""Bundles written to the volume."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred

from cartd.errors import VolumeDamaged
from cartd.volume import Volume
from tests.volume_parts import (
    BODY,
    CART,
    EMPTY,
    HeldThreads,
    InThisThread,
    a_cart,
    a_file,
    everything,
    failure_of,
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
