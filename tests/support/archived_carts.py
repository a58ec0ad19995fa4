"""Carts whose files are in a misbehaving archive, for tests that block.

The archive runs in the test's own reactor, so the test itself runs in a thread::

    pytest_plugins = ("tests.support.archive_fixtures",)

    @in_a_thread
    def test_something(archive: FaultyArchive, tmp_path: Path) -> None:
        with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
            stage(cartd, archive, "a-cart", 1000)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, entry, manifest


def in_a_thread(test: Callable[..., None]) -> Callable[..., Any]:
    """Let a test block, while the reactor runs."""

    @wraps(test)
    async def run(*arguments: Any, **fixtures: Any) -> None:
        await deferToThread(test, *arguments, **fixtures)

    decorated: Callable[..., Any] = pytest_twisted.ensureDeferred(run)
    return decorated


def url_of(archive: FaultyArchive) -> str:
    return f"http://127.0.0.1:{archive.port}{archive.base}/"


def content(name: str, size: int) -> bytes:
    """Bytes that look random and are always the same for a name."""
    return random.Random(name).randbytes(size)


def manifest_of(archive: FaultyArchive, uid: str, size: int, files: int = 1, **more: Any) -> bytes:
    """Put files of ``size`` bytes together into the archive, and list them."""
    entries = []
    for number in range(files):
        share = size // files + (size % files if number == 0 else 0)
        archive_id, data = f"{uid}-{number}", content(f"{uid}-{number}", share)
        if archive_id not in archive.files:
            archive.put(archive_id, data)
        entries.append(entry(archive_id, f"dir/file-{number}", data))
    return manifest(entries, **more)


def stage(
    cartd: RunningCartd, archive: FaultyArchive, uid: str, size: int, files: int = 1, **more: Any
) -> None:
    """Post a cart and wait until it is ready."""
    assert cartd.post(uid, manifest_of(archive, uid, size, files, **more)).status == 201
    cartd.wait_until(uid, "ready")
