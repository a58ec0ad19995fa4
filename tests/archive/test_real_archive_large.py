"""A file of a quarter of a gibibyte from the real archive: staged, and downloaded as a stream."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path
from typing import IO
from urllib.request import ProxyHandler, build_opener

from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.real_archive import real_archive
from tests.support.running_cartd import manifest, running_cartd

SIZE = 2**28
MARK = bytes(range(256))
MARKS = (0, 2**20 - 128, 2**26 + 1, SIZE // 2 - 256, SIZE // 2 + 4 * 2**20, SIZE - 256)
"""Offsets that are not zeros: before, on and behind the borders of likely blocks."""

SHA1 = "ea9f7eb7ec920430f54b7c00ab0765d0c84084d0"
"""Of the file that :func:`write_sparse` makes."""
PIECE = 2**20


def write_sparse(path: Path) -> None:
    """Zeros that take no disk space, with marks that show a lost or moved block."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        for number, place in enumerate(MARKS):
            file.seek(place)
            file.write(MARK[number:] + MARK[:number])


def members(stream: IO[bytes]) -> dict[str, tuple[int, float, str]]:
    """Size, time and hash of each file in a tar without pax records, read block by block.

    (:mod:`tarfile` takes four times as long to read a stream.)
    """
    found = {}
    while any(block := stream.read(tarfile.BLOCKSIZE)):
        member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        digest = hashlib.sha1()
        for start in range(0, member.size, PIECE):
            digest.update(stream.read(min(PIECE, member.size - start)))
        stream.read(-member.size % tarfile.BLOCKSIZE)
        if member.isfile():
            found[member.name] = member.size, member.mtime, digest.hexdigest()
    assert not any(stream.read())
    return found


def test_a_large_file_is_staged_and_comes_out_whole(tmp_path: Path) -> None:
    with (
        real_archive(tmp_path / "archive") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url) as cartd,
    ):
        held = archive.root / "1"
        write_sparse(held)
        os.utime(held, (1_234_567_890.0, 1_234_567_890.0))
        entry = {"id": 1, "path": "big.raw", "hashtype": "sha1", "hashsum": SHA1}
        cartd.post("large", manifest([entry]))
        cartd.wait_until("large", "ready")
        url = f"{cartd.url}/large?filename=data.tar"
        with build_opener(ProxyHandler({})).open(url) as answer:
            assert members(answer) == {"data/big.raw": (SIZE, 1_234_567_890, SHA1)}
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
