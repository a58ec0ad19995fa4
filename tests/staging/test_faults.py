"""Staging from a faulty archive: right in the end, or in error with the true cause."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.archive_faults import (
    Fault,
    close_before_head,
    drip,
    endless,
    garbage,
    hang_after,
    hang_before_head,
    other_body,
    redirect,
    reset_after,
    reset_before_head,
    state,
    status,
    truncated,
    wrong_bytes,
)
from tests.support.cartd_with_archive import cartd_with_archive, on_the_volume
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, entry, manifest

DATA = bytes(range(200)) * 50
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Row:
    """A fault of one kind of request, and the message for the user if it is permanent."""

    method: str
    fault: Fault
    cause: str


PASSING = {
    "state-500": Row("HEAD", status(500), "answered 500 Internal Server Error to HEAD"),
    "state-503": Row(
        "HEAD", status(503, [("Retry-After", "0")]), "answered 503 Service Unavailable to HEAD"
    ),
    "state-hangs": Row("HEAD", hang_before_head(), "did not answer within 0.4 seconds"),
    "state-garbage": Row("HEAD", garbage(), "is not HTTP"),
    "state-without-size": Row("HEAD", state(x_content_length=None), "no X-Content-Length header"),
    "500": Row("GET", status(500), "answered 500 Internal Server Error to GET"),
    "503": Row(
        "GET", status(503, [("Retry-After", "1")]), "answered 503 Service Unavailable to GET"
    ),
    "closed": Row("GET", close_before_head(), "closed the connection"),
    "reset": Row("GET", reset_before_head(), "closed the connection"),
    "reset-in-the-middle": Row("GET", reset_after(4000), "closed the connection"),
    "truncated": Row("GET", truncated(4000), "closed the connection"),
    "too-short": Row("GET", other_body(DATA[:4000]), "4000 bytes where 10000 were declared"),
    "too-long": Row(
        "GET", other_body(DATA + b"more"), "more than the 10000 bytes that were declared"
    ),
    "endless": Row("GET", endless(), "more than the 10000 bytes that were declared"),
    "wrong-bytes": Row("GET", wrong_bytes(), "its sha1 is"),
    "hangs": Row("GET", hang_before_head(), "did not answer within 0.4 seconds"),
    "hangs-in-the-middle": Row("GET", hang_after(4000), "sent nothing for 0.4 seconds"),
    "garbage": Row("GET", garbage(), "is not HTTP"),
}
"""Transient faults, which are retried."""
FINAL = {
    "state-404": Row("HEAD", status(404), "answered 404 Not Found to HEAD"),
    "404": Row("GET", status(404), "answered 404 Not Found to GET"),
    "elsewhere": Row("GET", redirect("http://127.0.0.2:8080/404"), "redirects to another server"),
}
"""Permanent faults, which are not retried."""

SLOW = {"drips": Row("GET", drip(1000, 0.07), "")}
"""A transfer that takes longer than the stall timeout without stalling: no fault."""


def settings(max_attempts: int) -> str:
    return (
        f"[archiveinterface]\nmax_connections = {CONNECTIONS}\nmax_attempts = {max_attempts}\n"
        "stall_timeout = 0.4\nconnect_timeout = 5\n"
    )


def post_all(
    cartd: RunningCartd, archive: FaultyArchive, rows: dict[str, Row], *, times: int | None
) -> None:
    """For each row, a cart with a file that fails ``times`` times and a good file."""
    for name, row in rows.items():
        archive.put(name, DATA)
        archive.fault(name, row.fault, method=row.method, times=times)
        archive.put(f"{name}-good", name.encode())
        cartd.post(
            name,
            manifest(
                [
                    entry(name, f"{name}/file", DATA),
                    entry(f"{name}-good", "good", name.encode()),
                ]
            ),
        )


@pytest_twisted.ensureDeferred
async def test_a_fault_that_passes_leaves_a_cart_that_is_right(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, settings(max_attempts=6)) as (cartd, archive):
        await deferToThread(post_all, cartd, archive, PASSING, times=2)
        await deferToThread(post_all, cartd, archive, SLOW, times=None)
        for name, row in (PASSING | SLOW).items():
            await deferToThread(cartd.wait_until, name, "ready")
            got = await deferToThread(cartd.download, name)
            assert got == {f"{name}/file": DATA, "good": name.encode()}
            assert name in SLOW or len(archive.seen(row.method, name)) >= 3
        assert not any(path.startswith("incoming") for path in on_the_volume(cartd))


@pytest_twisted.ensureDeferred
async def test_a_permanent_fault_is_reported_with_file_and_cause(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, settings(max_attempts=3)) as (cartd, archive):
        await deferToThread(post_all, cartd, archive, PASSING | FINAL, times=None)
        archive.put("honest", DATA)
        await deferToThread(cartd.post, "honest", manifest([entry("honest", "honest", DATA)]))
        await deferToThread(cartd.wait_until, "honest", "ready")
        for name, row in (PASSING | FINAL).items():
            message = await deferToThread(cartd.wait_until, name, "error")
            assert f"{name}/file" in message
            assert f"archive id {name}" in message
            assert row.cause in message
            got = await deferToThread(cartd.get, f"/{name}")
            assert (got.status, got.json["message"]) == (500, message)
            tries = len(archive.seen(row.method, name))
            # A closed keep-alive connection does not count as an attempt.
            assert tries == 1 if name in FINAL else 3 <= tries <= 6
        assert not any(path.endswith("/file") for path in on_the_volume(cartd))
        assert not any(path.startswith("incoming") for path in on_the_volume(cartd))


@pytest_twisted.ensureDeferred
async def test_a_mismatch_is_reported_although_the_last_try_differs(
    tmp_path: Path,
) -> None:
    async with cartd_with_archive(tmp_path, settings(max_attempts=3)) as (cartd, archive):
        for name, last in {"unlucky": status(500), "gone": status(404)}.items():
            archive.put(name, DATA)
            archive.fault(name, wrong_bytes(), method="GET", times=2)
            archive.fault(name, last, method="GET", request=3, times=None)
            posted = manifest([entry(name, "file", DATA)])
            await deferToThread(cartd.post, name, posted)
        unlucky = await deferToThread(cartd.wait_until, "unlucky", "error")
        assert " was declared; last attempt: the archive answered 500 " in unlucky
        gone = await deferToThread(cartd.wait_until, "gone", "error")
        assert "declared" not in gone


@pytest_twisted.ensureDeferred
async def test_all_failed_files_are_reported_and_good_ones_are_kept(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, settings(max_attempts=2)) as (cartd, archive):
        names = [f"f{number}" for number in range(39)]
        for name in names:
            archive.put(name, DATA)
        for name in ("f10", "f20"):
            archive.fault(name, status(404), times=None)
        for name in ("f5", "f30"):
            archive.fault(name, wrong_bytes(), method="GET", times=None)
        body = manifest(entry(name, f"run/{name}", DATA) for name in names)
        await deferToThread(cartd.post, "many", body)
        message = await deferToThread(cartd.wait_until, "many", "error")
        assert message.startswith("Failed to stage run/f5 (archive id f5): its sha1 is ")
        assert message.endswith("was declared; 3 other files failed too")
        assert (await deferToThread(cartd.get, "/many")).json["message"] == message
        assert len(on_the_volume(cartd)) == 35
        dumped = await deferToThread(cartd.run, "cartd-cmd", "dump", "--json")
        rows = json.loads(dumped.stdout)[0]["files"]
        failed = {row["file_name"]: row["error"] for row in rows if row["status"] == "error"}
        assert set(failed) == {"f5", "f10", "f20", "f30"}
        assert "404" in failed["f20"] and "was declared" in failed["f30"]

        # Posted again, it fetches only the failed files.
        archive.heal()
        before = len(archive.seen("GET"))
        await deferToThread(cartd.post, "many", body)
        await deferToThread(cartd.wait_until, "many", "ready")
        assert len(archive.seen("GET")) == before + 4
