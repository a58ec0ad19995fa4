"""What real services say of a cart that one of them is staging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread

from tests.service.test_two_services import two_services
from tests.support.archive_faults import Gate, halted
from tests.support.cartd_with_archive import cartd_with_archive
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, entry, manifest, wait_for

pytest_plugins = ("tests.support.archive_fixtures", "tests.support.database_fixtures")

reactor: Any = _reactor
DATA = b"x" * 4_000_000
MANIFEST = manifest([entry("1", "large", DATA), entry("2", "small", b"")])


def document(cartd: RunningCartd) -> Any:
    return cartd.get("/-/carts/u").json


def wait_until_held(cartd: RunningCartd) -> Any:
    """Return the document of a cart whose large file is held after a quarter."""
    wait_for(lambda: document(cartd).get("progress") == 25.0)
    wait_for(lambda: document(cartd)["files"]["staged"] == 1)
    return document(cartd)


@pytest_twisted.ensureDeferred
async def test_bytes_of_an_incomplete_file_count_as_progress(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        gate = hold(archive)
        await deferToThread(cartd.post, "u", MANIFEST)
        held = await deferToThread(wait_until_held, cartd)
        assert held["files"] == {
            "total": 2,
            "staged": 1,
            "failed": 0,
            "linked": 0,
            "waiting": 0,
            "fetching": 1,
        }
        assert (held["phase"], held["outcome"]) == ("fetching", None)
        assert held["message"] == "Fetching files; 1 of 2 files staged."
        assert "eta" not in held or held["eta"]["low"] <= held["eta"]["high"]
        gate.open()
        await deferToThread(cartd.wait_until, "u", "ready")
        ready = await deferToThread(document, cartd)
        assert (ready["phase"], ready["outcome"], ready["progress"]) == ("done", "complete", 100.0)
        assert not {"rate", "eta", "queue", "waiting"} & ready.keys()


@pytest_twisted.ensureDeferred
async def test_two_services_say_the_same(tmp_path: Path, database: str) -> None:
    archive = FaultyArchive(reactor)
    archive.listen()
    gate = hold(archive)

    def compare() -> None:
        with two_services(tmp_path, archive, database) as (first, second):
            first.post("u", MANIFEST)
            wait_until_held(first)

            def same() -> bool:
                before, other, after = (
                    service.get("/-/carts/u") for service in (first, second, first)
                )
                if before.body != after.body:
                    return False  # it has changed meanwhile
                assert before.body == other.body
                return before.headers["etag"] == other.headers["etag"]

            wait_for(same)
            reactor.callFromThread(gate.open)
            second.wait_until("u", "ready")
            assert document(first) == document(second)

    try:
        await deferToThread(compare)
    finally:
        await archive.stop()


def hold(archive: FaultyArchive) -> Gate:
    """Put both files into the archive; the large one is held after a quarter until a gate opens."""
    archive.put("1", DATA)
    archive.put("2", b"")
    gate = Gate()
    archive.fault("1", halted(len(DATA) // 4, gate), method="GET", times=None)
    return gate
