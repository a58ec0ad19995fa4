"""Archive client over real sockets, without faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from cartd.archive import FileState
from tests.support.archive_client_fixture import (
    DATA,
    ClientFactory,
    ClientUnderTest,
    failure_of,
    reactor,
)
from tests.support.archive_faults import (
    Close,
    Fault,
    Send,
    chunked,
    drip,
    head,
    no_length,
    status,
    steps,
)
from tests.support.faulty_archive import FaultyArchive
from tests.support.real_archive import real_archive

pytest_plugins = ("tests.support.archive_fixtures",)


@pytest_twisted.ensureDeferred
async def test_the_state_of_a_file_is_its_size_time_and_place(asked: ClientUnderTest) -> None:
    assert await asked.archive.status("7") == FileState(len(DATA), 1700000000, True)


@pytest_twisted.ensureDeferred
async def test_a_file_on_tape_is_staged_and_then_on_disk(asked: ClientUnderTest) -> None:
    asked.faulty.put("t", b"x", tape_heads=1)
    assert not (await asked.archive.status("t")).on_disk
    await asked.archive.stage("t")
    assert not (await asked.archive.status("t")).on_disk
    assert (await asked.archive.status("t")).on_disk


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(None, id="at-once"),
        pytest.param(chunked(), id="chunked"),
        pytest.param(drip(1000), id="in-pieces"),
        pytest.param(no_length(), id="until-the-connection-ends"),
        pytest.param(steps(Send(b"HTTP/1.0 200 OK\r\n\r\n" + DATA), Close()), id="http-1.0"),
        pytest.param(
            steps(Send(b"HTTP/1.1 100 Continue\r\n\r\n"), Send(head(200) + DATA), Close()),
            id="after-100",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_bytes_of_a_file_come_as_they_are(
    asked: ClientUnderTest, fault: Fault | None
) -> None:
    if fault is not None:
        asked.faulty.fault("7", fault)
    assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_a_large_file_and_an_empty_one_come_whole(asked: ClientUnderTest) -> None:
    large = bytes(7_000_001)
    asked.faulty.put("large", large)
    asked.faulty.put("empty", b"")
    assert await asked.fetch("large") == large
    assert await asked.fetch("empty") == b""


@pytest_twisted.ensureDeferred
async def test_requests_one_after_the_other_share_a_connection(asked: ClientUnderTest) -> None:
    for _ in range(3):
        await asked.archive.status("7")
        await asked.archive.stage("7")
        assert await asked.fetch("7") == DATA
        await failure_of(asked.archive.stage("unknown"))
    assert asked.faulty.total_connections == 1


@pytest_twisted.ensureDeferred
async def test_requests_ask_for_identity_coding_and_keep_no_cookies(
    asked: ClientUnderTest,
) -> None:
    asked.faulty.fault("7", status(200, [("Set-Cookie", "a=b")]))
    await asked.fetch("7")
    await asked.fetch("7")
    for request in asked.faulty.requests:
        assert request.header("Accept-Encoding") == ["identity"]
        assert request.header("Cookie") == []
        assert request.header("User-Agent")[0].startswith("cartd/")


@pytest_twisted.ensureDeferred
async def test_pacificas_own_archive_is_understood(
    make_client: ClientFactory, tmp_path: Path
) -> None:
    with real_archive(tmp_path) as real:
        real.put("104", DATA)
        real.put("empty", b"")
        real.set_mtime("104", 1600000000.75)
        asked = ClientUnderTest(make_client, real.url, FaultyArchive(reactor))
        assert await asked.archive.status("104") == FileState(len(DATA), 1600000000, True)
        await asked.archive.stage("104")
        assert await asked.fetch("104") == DATA
        assert (await asked.archive.status("empty")).size == 0
        assert await asked.fetch("empty") == b""
        # Without a body there is no trace to explain the failure.
        error = await failure_of(asked.archive.status("5"))
        assert error.retryable and error.needs_explanation
        assert str(error) == "the archive answered 500 Internal Server Error to HEAD"
        for lacking in (asked.archive.stage("5"), asked.fetch("5")):
            error = await failure_of(lacking)
            assert error.missing and not error.retryable
        assert await asked.fetch("104") == DATA
        await asked.pool.closeCachedConnections()
