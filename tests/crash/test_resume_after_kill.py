"""A service that is killed during its work continues by itself.

For a kill during bundling, see :mod:`tests.carts.test_bundled_carts`.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest_twisted
from sqlalchemy import create_engine, text
from twisted.internet.threads import deferToThread

from tests.support.archive_faults import hang_after, hang_before_head
from tests.support.cartd_with_archive import cartd_with_archive, on_the_volume
from tests.support.running_cartd import RunningCartd, entry, manifest, wait_for

LARGE = bytes(range(256)) * (16 * 1024)
"""4 MiB: some of it is on the disk before the last byte has been received."""


def lease_ends(cartd: RunningCartd) -> float:
    """Return when the first of the current leases expires, in Unix seconds."""
    engine = create_engine(cartd.database)
    with engine.connect() as connection:
        ends = connection.scalar(text("SELECT min(lease_until) FROM cart"))
    engine.dispose()
    assert isinstance(ends, float)
    return ends


@pytest_twisted.ensureDeferred
async def test_after_a_crash_nothing_is_fetched_again(
    tmp_path: Path,
) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        files = {f"small{n}": b"%d" % n for n in range(3)} | {f"large{n}": LARGE for n in range(3)}
        for archive_id, data in {**files, "done": b"done", "new": b"new"}.items():
            archive.put(archive_id, data)
        archive.fault("new", hang_before_head(), method="HEAD", times=None)
        for name in ("large1", "large2"):
            archive.fault(name, hang_after(3 << 20), method="GET", times=None)

        await deferToThread(cartd.post, "ready", manifest([entry("done", "done", b"done")]))
        await deferToThread(cartd.wait_until, "ready", "ready")
        posted = manifest(entry(name, f"a/{name}", data) for name, data in files.items())
        await deferToThread(cartd.post, "middle", posted)
        await deferToThread(cartd.post, "begun", manifest([entry("new", "new", b"new")]))
        await archive.until(lambda: len(archive.seen("HEAD", "new")) == 1)
        staged = {f"2/middle/a/{name}" for name in files if name not in ("large1", "large2")}
        await deferToThread(wait_for, lambda: staged <= on_the_volume(cartd))
        await deferToThread(wait_for, lambda: len(list(cartd.volume.glob("incoming/2/*"))) == 2)
        await deferToThread(cartd.kill)
        assert len(list(cartd.volume.glob("incoming/2/*"))) == 2

        archive.heal()
        lease = lease_ends(cartd)
        await deferToThread(cartd.start)
        for uid in ("middle", "begun", "ready"):
            await deferToThread(cartd.wait_until, uid, "ready")
        assert time.time() < lease
        got = await deferToThread(cartd.download, "middle")
        assert got == {f"a/{name}": data for name, data in files.items()}
        assert await deferToThread(cartd.download, "begun") == {"new": b"new"}
        assert await deferToThread(cartd.download, "ready") == {"done": b"done"}
        fetched = {name: len(archive.seen("GET", name)) for name in [*files, "done", "new"]}
        assert fetched == dict.fromkeys(fetched, 1) | {"large1": 2, "large2": 2}
        assert list(cartd.volume.glob("incoming/*")) == []
        assert len(list(cartd.volume.glob("holders/*"))) == 1
