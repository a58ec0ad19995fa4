"""Pacifica's archive interface run with threads, which mixes up parallel requests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.support.archived_files import ArchivedFile, in_tar, manifest_of, many_files, store
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.real_archive import RealArchive, real_archive
from tests.support.running_cartd import RunningCartd, running_cartd


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[RealArchive]:
    with real_archive(tmp_path / "archive", threads=8) as running:
        yield running


@pytest.fixture
def cartd(archive: RealArchive, tmp_path: Path) -> Iterator[RunningCartd]:
    ini = "[archiveinterface]\nmax_attempts = 4\n"
    with running_cartd(tmp_path / "cartd", archive=archive.url, ini=ini) as running:
        yield running
        assert "Retrying" in running.log, "no response was mixed up"
        assert running.terminate() == 0
        assert_no_unexpected_errors(running.log)


def assert_right(cartd: RunningCartd, uid: str, files: list[ArchivedFile]) -> None:
    cartd.wait_until(uid, "ready")
    found = in_tar(io.BytesIO(cartd.get(f"/{uid}").body))
    assert found == {file.path: file.unpacked for file in files}


def test_carts_that_are_staged_together_come_out_right(
    archive: RealArchive, cartd: RunningCartd
) -> None:
    carts = {f"cart-{n}": many_files(150, first_id=1000 * n, seed=n) for n in range(3)}
    for files in carts.values():
        store(archive, files)
    for uid, files in carts.items():
        assert cartd.post(uid, manifest_of(files)).status == 201
    for uid, files in carts.items():
        assert_right(cartd, uid, files)


def test_large_files_survive_mix_ups_of_a_threaded_archive(
    archive: RealArchive, cartd: RunningCartd
) -> None:
    random = Random(0)
    files = [ArchivedFile(n, f"large/{n}", random.randbytes(8_000_000 + n)) for n in range(20)]
    store(archive, files)
    assert cartd.post("large", manifest_of(files)).status == 201
    assert_right(cartd, "large", files)
