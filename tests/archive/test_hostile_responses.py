"""Hostile responses of the archive: one line of message, bounded memory, no effect on others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.archive_faults import Drip, Endless, Send, head, reply, state_headers, steps
from tests.support.cartd_with_archive import cartd_with_archive, on_the_volume
from tests.support.faulty_archive import FaultyArchive
from tests.support.hostile_responses import DATA, HOSTILE_RESPONSES, STALL
from tests.support.running_cartd import RunningCartd, entry, manifest

INI = f"[archiveinterface]\nmax_attempts = 2\nstall_timeout = {STALL}\nconnect_timeout = 5\n"
MOST_MEMORY = 48 << 20
"""Bytes by which memory may grow at most: a decompression bomb alone would be 20 MB."""
LONGEST = 500
"""Characters of a message, including the names of the file."""
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")


def uid(name: str) -> str:
    return re.sub("[^A-Za-z0-9]", "-", name)


def path(name: str) -> str:
    """A path with terminal control characters."""
    return f"{uid(name)}/\x1b[2J\r\n\u202efile"


def most_memory(cartd: RunningCartd) -> int:
    """Peak memory of the process so far, in bytes."""
    assert cartd.process is not None
    status = Path(f"/proc/{cartd.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+([0-9]+) kB", status)
    assert found
    return int(found[1]) * 1024


def post_all(cartd: RunningCartd, archive: FaultyArchive) -> None:
    for name, row in HOSTILE_RESPONSES.items():
        archive.put(uid(name), DATA, tape_heads=1 if row.on_tape else None)
        archive.files[uid(name)].staged = True
        archive.fault(uid(name), row.fault, method=row.method, times=None)
        cartd.post(uid(name), manifest([entry(uid(name), path(name), DATA)]))


def assert_is_reported(cartd: RunningCartd, name: str) -> None:
    """The cart is in error, and it and its response have the message of the fault."""
    reported = cartd.wait_until(uid(name), "error")
    assert HOSTILE_RESPONSES[name].message in reported
    assert reported.isascii() and reported.isprintable() and len(reported) <= LONGEST
    got = cartd.get(f"/{uid(name)}")
    assert got.status == 500
    message = json.loads(got.body)["message"]
    assert message.isprintable() and len(message) <= LONGEST


@pytest_twisted.ensureDeferred
async def test_any_response_is_reported_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, INI) as (cartd, archive):
        archive.put("honest", DATA)
        honest = manifest([entry("honest", "honest", DATA)])
        await deferToThread(cartd.post, "before", honest)
        await deferToThread(cartd.wait_until, "before", "ready")
        before = most_memory(cartd)
        await deferToThread(post_all, cartd, archive)
        for name, row in HOSTILE_RESPONSES.items():
            if row.message:
                await deferToThread(assert_is_reported, cartd, name)
            else:
                await deferToThread(cartd.wait_until, uid(name), "ready")
                assert await deferToThread(cartd.download, uid(name)) == {path(name): DATA}
        assert most_memory(cartd) - before < MOST_MEMORY
        await deferToThread(cartd.post, "after", honest)
        await deferToThread(cartd.wait_until, "after", "ready")
        agreed = [path(name) for name, row in HOSTILE_RESPONSES.items() if not row.message]
        assert len(on_the_volume(cartd)) == len(["before", "after", *agreed])
        lines = cartd.log.split("\n")
        assert not [line for line in lines if UNSEEN.search(line) or len(line) > 2 * LONGEST]
        assert [line for line in lines if "is in error" in line]


@pytest_twisted.ensureDeferred
async def test_memory_stays_bounded_during_endless_responses(tmp_path: Path) -> None:
    floods = {
        "headers": steps(Send(b"HTTP/1.1 200 OK\r\nA: "), Endless(b"x" * 65_536)),
        "errors": steps(Send(head(500)), Endless(b"x" * 65_536)),
        "single": steps(Send(head(200, [("Transfer-Encoding", "chunked")])),
                        Drip(b"1\r\nx\r\n" * 500, 6)),
    }  # fmt: skip
    # Without the limit these would last until the stall timeout.
    patient = INI.replace(f"stall_timeout = {STALL}", "stall_timeout = 5")
    async with cartd_with_archive(tmp_path, patient) as (cartd, archive):
        await deferToThread(cartd.get, "/")
        before = most_memory(cartd)
        for kind, flood in floods.items():
            ids = [f"{kind}-{number}" for number in range(32)]
            for archive_id in ids:
                archive.put(archive_id, DATA)
                archive.fault(archive_id, flood, method="GET", times=None)
            files = [entry(archive_id, archive_id, DATA) for archive_id in ids]
            await deferToThread(cartd.post, kind, manifest(files))
        for kind in floods:
            await deferToThread(cartd.wait_until, kind, "error")
        assert archive.most_running >= 8  # many at once, however busy the machine is
        assert most_memory(cartd) - before < MOST_MEMORY
        assert await deferToThread(cartd.get, "/")


@pytest_twisted.ensureDeferred
async def test_bytes_after_a_response_are_never_taken_for_the_next_one(tmp_path: Path) -> None:
    """Even for files without a known hash, where nothing else would detect it."""
    evil = b"!" * len(DATA)
    async with cartd_with_archive(tmp_path, f"{INI}max_connections = 1\n") as (cartd, archive):
        files = []
        for number in range(20):
            archive_id = str(number)
            archive.put(archive_id, DATA)
            surplus = reply(200, [("X-Content-Length", "5"), ("Last-Modified", "5")], evil)
            state = Send(head(204, state_headers(archive.files[archive_id])) + surplus.data)
            fetched = Send(reply(200, (), DATA).data + surplus.data)
            archive.fault(archive_id, steps(state), method="HEAD", times=None)
            archive.fault(archive_id, steps(fetched), method="GET", times=None)
            files.append({**entry(archive_id, archive_id, DATA), "hashsum": ""})
        await deferToThread(cartd.post, "mine", manifest(files))
        await deferToThread(cartd.wait_until, "mine", "ready")
        got = await deferToThread(cartd.download, "mine")
        assert got == {str(number): DATA for number in range(20)}
