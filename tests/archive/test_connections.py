"""The service beside an archive that, as Pacifica's, keeps no connection while it has ten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.archive_faults import (
    Close,
    Drip,
    Fault,
    Seen,
    Send,
    Step,
    StoredFile,
    head,
    honest,
    state_headers,
)
from tests.support.cartd_with_archive import cartd_with_archive
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import entry, manifest

KEPT = 10
CLOSE = ("Connection", "close")


def closes_when_crowded(archive: FaultyArchive) -> Fault:
    """Slow enough for requests to overlap; right, except that it closes connections."""

    def fault(request: Seen, file: StoredFile | None) -> Sequence[Step]:
        assert file is not None
        crowded = archive.open_connections >= KEPT
        if request.method == "HEAD":
            said = head(204, [*state_headers(file), CLOSE])
            return [Send(said), Close()] if crowded else honest(request, file)
        length = ("Content-Length", str(len(file.data)))
        said = head(200, [length, CLOSE] if crowded else [length])
        steps: list[Step] = [Send(said), Drip(file.data, 2)]
        return [*steps, Close()] if crowded else steps

    return fault


@pytest_twisted.ensureDeferred
async def test_concurrency_follows_the_connections_that_are_kept_alive(
    tmp_path: Path,
) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        files = {f"file-{number}": f"{number:06}".encode() for number in range(400)}
        for name, data in files.items():
            archive.put(name, data)
        archive.fault("*", closes_when_crowded(archive), times=None)
        body = manifest(entry(name, name, data) for name, data in files.items())
        await deferToThread(cartd.post, "cart", body)
        await deferToThread(cartd.wait_until, "cart", "ready")
        assert await deferToThread(cartd.download, "cart") == files
        assert archive.total_connections < len(archive.requests) / 8
