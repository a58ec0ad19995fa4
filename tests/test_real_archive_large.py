"""A file of a gibibyte from the real archive: staged, and downloaded as a stream."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path
from typing import IO
from urllib.request import ProxyHandler, build_opener

from tests.cartd_beside import assert_no_surprise
from tests.real_archive import real_archive
from tests.running_cartd import manifest, running_cartd

SIZE = 2**30
MARK = bytes(range(256))
MARKS = (0, 2**20 - 128, 2**26 + 1, SIZE // 2 - 256, SIZE // 2 + 4 * 2**20, SIZE - 256)
"""Where the file is not zeros: before, on and behind the borders of likely blocks."""


def write_sparse(path: Path) -> None:
    """Zeros that take no room, with marks that show whether a block was lost or moved."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        for number, place in enumerate(MARKS):
            file.seek(place)
            file.write(MARK[number:] + MARK[:number])


def members(stream: IO[bytes]) -> dict[str, tuple[int, float, str]]:
    """Size, time and hash of each file in a tar, none of them held in memory."""
    found = {}
    with tarfile.open(fileobj=stream, mode="r|", bufsize=2**20) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None:
                digest = hashlib.file_digest(content, "sha1").hexdigest()  # type: ignore[arg-type]
                found[member.name] = member.size, member.mtime, digest
    return found


def test_a_file_of_a_gibibyte_is_staged_and_comes_out_whole(tmp_path: Path) -> None:
    with (
        real_archive(tmp_path / "archive") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url) as cartd,
    ):
        held = archive.root / "1"
        write_sparse(held)
        os.utime(held, (1_234_567_890.0, 1_234_567_890.0))
        with held.open("rb") as file:
            hash_sum = hashlib.file_digest(file, "sha1").hexdigest()
        entry = {"id": 1, "path": "big.raw", "hashtype": "sha1", "hashsum": hash_sum}
        cartd.post("large", manifest([entry]))
        cartd.wait_until("large", "ready")
        url = f"{cartd.url}/large?filename=data.tar"
        with build_opener(ProxyHandler({})).open(url) as answer:
            assert members(answer) == {"data/big.raw": (SIZE, 1_234_567_890, hash_sum)}
            assert answer.read() == b""
        assert cartd.terminate() == 0
        assert_no_surprise(cartd.log)
