"""Staging to a failing disk: an error with the cause, and no endless retries."""

from __future__ import annotations

from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.cartd_with_archive import cartd_with_archive, on_the_volume
from tests.support.running_cartd import entry, manifest

LARGE = bytes(range(256)) * (32 * 1024)
"""8 MiB."""


@pytest_twisted.ensureDeferred
async def test_a_file_that_the_system_will_not_write_is_named(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("large", LARGE)
        archive.put("small", b"small")
        await deferToThread(cartd.terminate)
        cartd.fresh = True
        # ulimit counts half or whole KiB: 2 or 4 MiB.
        cartd.program = ("sh", "-c", 'ulimit -f 4096 && exec "$@"', "sh", *cartd.twistd)
        await deferToThread(cartd.start)
        entries = [entry("small", "a/small", b"small"), entry("large", "a/large", LARGE)]
        await deferToThread(cartd.post, "mine", manifest(entries))
        message = await deferToThread(cartd.wait_until, "mine", "error")
        assert "Failed to stage a/large (archive id large)" in message
        assert "File too large" in message
        assert len(archive.seen("GET", "large")) == 1
        assert not any("large" in path or "incoming" in path for path in on_the_volume(cartd))

        # The next cart is not affected.
        await deferToThread(cartd.post, "other", manifest(entries[:1]))
        await deferToThread(cartd.wait_until, "other", "ready")
        assert await deferToThread(cartd.download, "other") == {"a/small": b"small"}


@pytest_twisted.ensureDeferred
async def test_leftovers_in_the_directory_of_a_new_cart_are_removed(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("1", b"one")
        archive.put("2", b"two")
        in_the_way = cartd.volume / "1" / "mine" / "a" / "one" / "leftover"
        in_the_way.mkdir(parents=True)
        entries = [entry("1", "a/one", b"one"), entry("2", "b/two", b"two")]
        await deferToThread(cartd.post, "mine", manifest(entries))
        await deferToThread(cartd.wait_until, "mine", "ready")
        assert await deferToThread(cartd.download, "mine") == {"a/one": b"one", "b/two": b"two"}
        assert on_the_volume(cartd) == {"1/mine/a/one", "1/mine/b/two"}


@pytest_twisted.ensureDeferred
async def test_a_volume_that_breaks_puts_the_cart_in_error(
    tmp_path: Path,
) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("1", b"one")
        incoming = cartd.volume / "incoming"
        incoming.rmdir()
        incoming.write_text("no directory any more")
        body = manifest([entry("1", "a/one", b"one")])
        await deferToThread(cartd.post, "mine", body)
        message = await deferToThread(cartd.wait_until, "mine", "error")
        assert "Not a directory: 'incoming'" in message
        assert "Not a directory" in message
        assert len(archive.requests) <= 2

        incoming.unlink()
        incoming.mkdir()
        await deferToThread(cartd.post, "mine", body)
        await deferToThread(cartd.wait_until, "mine", "ready")
        assert (await deferToThread(cartd.delete, "mine")).status == 200
        assert on_the_volume(cartd) == set()
