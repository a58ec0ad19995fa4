"""Outages of the archive with a running service: carts wait, and are then staged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.archive_faults import (
    Fault,
    close_before_head,
    garbage,
    hang_before_head,
    reset_before_head,
    status,
)
from tests.support.archived_files import ArchivedFile, manifest_of, many_files, store
from tests.support.cartd_with_archive import assert_no_unexpected_errors, cartd_with_archive
from tests.support.faulty_archive import FaultyArchive
from tests.support.real_archive import real_archive
from tests.support.running_cartd import RunningCartd, entry, manifest, running_cartd, wait_for

INI = "[archiveinterface]\nmax_attempts = 2\nstall_timeout = 1\nconnect_timeout = 5\n"
FILES = 40
SINCE = r"Waiting for the archive since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC): "

UNAVAILABLE: dict[str, tuple[Fault, str]] = {
    "closed": (close_before_head(), "the archive closed the connection before it responded"),
    "reset": (reset_before_head(), "the archive closed the connection before it responded"),
    "garbage": (garbage(), "the archive's response is not HTTP"),
    "502": (status(502), "the archive answered 502 Bad Gateway to HEAD"),
    "503": (
        status(503, [("Retry-After", "1")]),
        "the archive answered 503 Service Unavailable to HEAD",
    ),
    "504": (status(504), "the archive answered 504 Gateway Timeout to HEAD"),
    "silent": (hang_before_head(), "the archive did not answer within 1 seconds"),
}


def post(cartd: RunningCartd, archive: FaultyArchive, uid: str) -> None:
    """A cart of files that no other has."""
    files = {f"{uid}-{number}": f"{uid} {number}".encode() for number in range(FILES)}
    for name, data in files.items():
        archive.put(name, data)
    cartd.post(uid, manifest([entry(name, name, data) for name, data in files.items()]))


def wait_until_it_waits(cartd: RunningCartd, uid: str, cause: str) -> str:
    """Return the time since which the cart's message says that it waits."""
    since: list[str] = []

    def waits() -> bool:
        state, message = cartd.status(uid)
        assert state == "staging", message
        found = re.fullmatch(SINCE + re.escape(cause), message)
        since[:] = [found[1]] if found else []
        return bool(found)

    wait_for(waits)
    return since[0]


@pytest_twisted.ensureDeferred
async def test_carts_wait_during_an_archive_outage(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, INI) as (cartd, archive):
        await deferToThread(post, cartd, archive, "before")
        await deferToThread(cartd.wait_until, "before", "ready")
        for name, (fault, cause) in UNAVAILABLE.items():
            archive.fault("*", fault, times=None)
            asked = len(archive.requests)
            uids = [f"{name}-{number}" for number in range(2)]
            for uid in uids:
                await deferToThread(post, cartd, archive, uid)
            for uid in uids:
                await deferToThread(wait_until_it_waits, cartd, uid, cause)
            # Some have been asked for at once when the first failed, then one after the other.
            assert len(archive.requests) - asked < FILES
            archive.heal()
            for uid in uids:
                assert await deferToThread(cartd.wait_until, uid, "ready") == ""
        log = cartd.log
        assert (
            log.count("The archive is unavailable")
            == log.count("The archive is available again")
            == len(UNAVAILABLE)
        )
        # The first response may concern its file alone.
        assert log.count("Retrying") <= len({"502", "503", "504"})


@pytest_twisted.ensureDeferred
async def test_outage_limit_counts_across_a_restart(
    tmp_path: Path,
) -> None:
    refused = "the archive refuses the connection"
    async with cartd_with_archive(tmp_path, INI) as (cartd, archive):
        port = archive.port
        await archive.stop()
        await deferToThread(post, cartd, archive, "mine")
        since = await deferToThread(wait_until_it_waits, cartd, "mine", refused)
        await deferToThread(cartd.terminate)
        await deferToThread(cartd.start)
        await deferToThread(wait_for, lambda: cartd.log.count("The archive is unavailable") == 2)
        assert await deferToThread(wait_until_it_waits, cartd, "mine", refused) == since
        cartd.kill()
        cartd.configure(INI + "outage_limit = 0.5\n")
        await deferToThread(cartd.start)
        assert await deferToThread(cartd.wait_until, "mine", "error") == (
            f"The archive has been unavailable since {since}, longer than the"
            f" outage_limit of 0.5 seconds: {refused}"
        )
        archive.listen(port=port)
        await deferToThread(post, cartd, archive, "mine")
        assert await deferToThread(cartd.wait_until, "mine", "ready") == ""


@pytest_twisted.ensureDeferred
async def test_delete_and_stop_work_during_an_archive_outage(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, INI) as (cartd, archive):
        archive.fault("*", hang_before_head(), times=None)
        for uid in ("mine", "yours"):
            await deferToThread(post, cartd, archive, uid)
        silent = UNAVAILABLE["silent"][1]
        await deferToThread(wait_until_it_waits, cartd, "mine", silent)
        assert (await deferToThread(cartd.delete, "mine")).status == 200
        await deferToThread(wait_until_it_waits, cartd, "yours", silent)
        await archive.until(lambda: archive.running == 1)
        assert await deferToThread(cartd.terminate) == 0


def test_the_real_archive_is_stopped_and_started_again(tmp_path: Path) -> None:
    files = many_files(30)
    with real_archive(tmp_path / "archive") as archive:
        store(archive, files)
        port = archive.port
    with running_cartd(tmp_path / "cartd", archive=archive.url, ini=INI) as cartd:
        cartd.post("mine", manifest_of(files))
        wait_until_it_waits(cartd, "mine", "the archive refuses the connection")
        with real_archive(tmp_path / "archive", port=port):
            cartd.wait_until("mine", "ready")
            assert cartd.download("mine") == {file.path: file.data for file in files}
        assert_no_unexpected_errors(cartd.log)


def test_a_real_archive_without_its_disk_is_an_outage(tmp_path: Path) -> None:
    here, mine = ArchivedFile(1, "here", b"here"), ArchivedFile(2, "mine", b"mine")
    with (
        real_archive(tmp_path / "archive") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, ini=INI) as cartd,
    ):
        store(archive, [here, mine])
        cartd.post("here", manifest_of([here]))
        cartd.wait_until("here", "ready")
        cartd.terminate()
        cartd.start()
        archive.root.rename(tmp_path / "elsewhere")
        cartd.post("mine", manifest_of([mine]))
        cause = "the archive answered 500 Internal Server Error to HEAD"
        wait_until_it_waits(cartd, "mine", cause)
        (tmp_path / "elsewhere").rename(archive.root)
        cartd.wait_until("mine", "ready")
        assert_no_unexpected_errors(cartd.log)
