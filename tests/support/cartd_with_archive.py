"""The service with a faulty archive, for tests in the reactor in which the archive runs.

::

    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("1", b"data")
        await deferToThread(cartd.post, "mine", manifest([entry("1", "a", b"data")]))
        await deferToThread(cartd.wait_until, "mine", "ready")

Requests to the service block, so they need ``deferToThread``.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread

from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, running_cartd

reactor: Any = _reactor


@asynccontextmanager
async def cartd_with_archive(
    directory: Path, ini: str = ""
) -> AsyncIterator[tuple[RunningCartd, FaultyArchive]]:
    """Start both.  At the end, a running service must stop cleanly; its log is checked."""
    archive = FaultyArchive(reactor)
    url = archive.listen()
    running = running_cartd(directory / "cartd", archive=url, ini=ini)
    cartd = await deferToThread(running.__enter__)
    try:
        yield cartd, archive
        if cartd.process is not None and cartd.process.poll() is None:
            assert await deferToThread(cartd.terminate) == 0
        assert_no_unexpected_errors(cartd.log)
    finally:
        await deferToThread(running.__exit__, None, None, None)
        await archive.stop()


def assert_no_unexpected_errors(log: str) -> None:
    """Fail if the log contains an unexpected error."""
    assert not re.search("Traceback|Unhandled|never awaited", log), log


def on_the_volume(cartd: RunningCartd) -> set[str]:
    """Return files being written, and trees and bundles of carts, without directories in between.

    Files that are removed meanwhile are skipped.
    """
    tops = [top for part in ("incoming", "[0-9]*") for top in cartd.volume.glob(part)]
    return {
        str((Path(found) / name).relative_to(cartd.volume))
        for top in tops
        for found, _, names in os.walk(top)
        for name in names
    }
