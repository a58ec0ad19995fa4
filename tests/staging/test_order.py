"""Order of staging: tape blocks no other file, and large carts do not block small ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.archive_faults import drip
from tests.support.cartd_with_archive import cartd_with_archive, on_the_volume
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, entry, manifest, wait_for

NEVER = 10**9
"""HEAD requests until a file comes from tape: more than any test sends."""


def put(
    archive: FaultyArchive, prefix: str, number: int, *, tape_heads: int | None = None
) -> dict[str, bytes]:
    """Put files with the ids ``prefix`` and a number into the archive; return them."""
    files = {f"{prefix}{n}": f"{prefix} {n}".encode() for n in range(number)}
    for archive_id, data in files.items():
        archive.put(archive_id, data, tape_heads=tape_heads)
    return files


def post(cartd: RunningCartd, uid: str, files: dict[str, bytes]) -> None:
    cartd.post(uid, manifest(entry(name, f"files/{name}", data) for name, data in files.items()))


def downloaded(cartd: RunningCartd, uid: str) -> dict[str, bytes]:
    return {path.removeprefix("files/"): data for path, data in cartd.download(uid).items()}


def asked(archive: FaultyArchive, method: str, prefix: str) -> Sequence[str]:
    """Return the ids of the requests of one method for files of ``prefix``, in order."""
    ids = [request.target.removeprefix("/") for request in archive.seen(method)]
    return [archive_id for archive_id in ids if archive_id.startswith(prefix)]


@pytest_twisted.ensureDeferred
async def test_files_on_tape_are_announced_and_do_not_block_others(tmp_path: Path) -> None:
    ini = "[archiveinterface]\nmax_connections = 2\n"
    async with cartd_with_archive(tmp_path, ini) as (cartd, archive):
        tape = put(archive, "tape", 30, tape_heads=NEVER)
        disk = put(archive, "disk", 3)
        await deferToThread(post, cartd, "mixed", tape | disk)
        # In a mixed cart, files on disk do not wait for tape.
        staged = {f"1/mixed/files/{name}" for name in disk}
        await deferToThread(wait_for, lambda: on_the_volume(cartd) == staged)
        await archive.until(lambda: set(asked(archive, "POST", "tape")) == set(tape))
        assert asked(archive, "POST", "disk") == []
        # While the files on tape wait, a later cart uses both connections.
        await archive.until(lambda: archive.running == 0)
        behind = put(archive, "behind", 3)
        await deferToThread(post, cartd, "behind", behind)
        await deferToThread(cartd.wait_until, "behind", "ready")
        assert await deferToThread(downloaded, cartd, "behind") == behind
        state, message = await deferToThread(cartd.status, "mixed")
        assert (state, message.partition(" since ")[0]) == ("staging", "Waiting for tape")
        assert message.endswith(" UTC: 30 files")
        assert asked(archive, "GET", "tape") == []

        for archive_id in tape:
            archive.files[archive_id].tape_heads = 0
        await deferToThread(cartd.wait_until, "mixed", "ready")
        assert await deferToThread(downloaded, cartd, "mixed") == tape | disk
        assert sorted(asked(archive, "POST", "tape")) == sorted(tape)
        assert sorted(asked(archive, "GET", "tape")) == sorted(tape)
        assert archive.most_running <= 2


@pytest_twisted.ensureDeferred
async def test_a_small_cart_is_ready_before_an_earlier_large_one(
    tmp_path: Path,
) -> None:
    ini = "[archiveinterface]\nmax_connections = 5\n"
    async with cartd_with_archive(tmp_path, ini) as (cartd, archive):
        large = put(archive, "large", 2000)
        small = put(archive, "small", 3)
        # In pieces, so that the responses overlap.
        archive.fault("*", drip(3), method="GET", times=None)
        await deferToThread(post, cartd, "large", large)
        await archive.until(lambda: len(archive.requests) >= 100)
        await deferToThread(post, cartd, "small", small)
        posted = len(archive.requests)
        await deferToThread(cartd.wait_until, "small", "ready")
        assert await deferToThread(downloaded, cartd, "small") == small
        last = max(n for n, seen in enumerate(archive.requests) if "small" in seen.target)
        assert last - posted < 1000  # of the 4000 that the large cart needs

        # A cart that is deleted meanwhile is aborted at once.
        await archive.until(lambda: len(asked(archive, "GET", "large")) >= 100)
        assert (await deferToThread(cartd.delete, "large")).status == 200
        await archive.until(lambda: archive.running == 0)
        requests = len(archive.requests)
        # A large tree is removed before the response to DELETE.
        small_ones = {f"2/small/files/{name}" for name in small}
        await deferToThread(wait_for, lambda: on_the_volume(cartd) == small_ones)
        assert await deferToThread(cartd.terminate) == 0
        assert len(archive.requests) == requests
        assert 2 <= archive.most_running <= 5
        assert archive.total_connections <= 5
