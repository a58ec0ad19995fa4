"""The directory archive's requests, in the test's own reactor over real sockets."""

from __future__ import annotations

import errno
import json
import os
import random
from io import BytesIO
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import capturedLogs

from cartd.directory_archive.directory import Directory
from cartd.errors import InvalidInput
from tests.support.directory_archive_client import Client, directory_archive, reactor

LARGE = random.Random(1).randbytes(3_000_001)
"""Longer than one read in a thread, and than a body that is kept in memory."""
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


async def put(client: Client, archive_id: str, data: bytes = b"0123456789") -> None:
    answer = await client.ask("PUT", f"/{archive_id}", data, content_length=str(len(data)))
    assert answer.status == 201, answer.raw


@pytest_twisted.ensureDeferred
async def test_get_root_answers_that_the_archive_is_running(tmp_path: Path) -> None:
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("GET", "/")
    assert answer.status == 200
    assert json.loads(answer.body) == {"message": "Pacifica Archive Interface Up and Running"}


@pytest.mark.parametrize("data", [b"", b"x", LARGE], ids=["empty", "one byte", "large"])
@pytest_twisted.ensureDeferred
async def test_a_put_file_is_an_ordinary_file_and_can_be_read(tmp_path: Path, data: bytes) -> None:
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("PUT", "/a/b%2Fc%20%C3%A9", data, content_length=str(len(data)))
        assert answer.status == 201
        said = json.loads(answer.body)
        assert said == {"message": "File added to archive", "total_bytes": len(data)}
        assert (tmp_path / "a/b/c é").read_bytes() == data
        got = await client.ask("GET", "/a%2Fb/c%20%C3%A9")
    assert (got.status, got.whole, got.body) == (200, True, data)
    assert got.headers["content-type"] == "application/octet-stream"


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_replaced_keeps_its_owner_group_and_mode(tmp_path: Path) -> None:
    async with directory_archive(tmp_path, "--replace") as client:
        await put(client, "a", b"old")
        owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        os.chown(tmp_path / "a", *owner)
        (tmp_path / "a").chmod(0o640)
        await put(client, "a", b"newer")
    after = (tmp_path / "a").stat()
    assert ((after.st_uid, after.st_gid), after.st_mode & 0o7777) == (owner, 0o640)
    assert (tmp_path / "a").read_bytes() == b"newer"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another user's")
@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o640, 0o600), (0o664, 0o644)])
@pytest_twisted.ensureDeferred
async def test_a_replaced_file_gains_no_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    async with directory_archive(tmp_path, "--replace") as client:
        await put(client, "a", b"old")
        os.chown(tmp_path / "a", 12345, 23456)
        (tmp_path / "a").chmod(before)
        with monkeypatch.context() as patch:
            patch.setattr(os, "chown", refuse)
            await put(client, "a", b"newer")
    assert (tmp_path / "a").stat().st_mode & 0o7777 == after
    assert (tmp_path / "a").read_bytes() == b"newer"


@pytest_twisted.ensureDeferred
async def test_put_replaces_a_file_with_the_replace_option(
    tmp_path: Path,
) -> None:
    async with directory_archive(tmp_path, "--replace") as client:
        await put(client, "a", b"old")
        await put(client, "a", LARGE)
        assert (await client.ask("GET", "/a")).body == LARGE
    assert [p.name for p in tmp_path.rglob("*")] == [".cartd-archive", "a"]


@pytest.mark.parametrize("data", [b"new", LARGE], ids=["small", "large"])
@pytest_twisted.ensureDeferred
async def test_put_and_patch_replace_nothing_by_default(tmp_path: Path, data: bytes) -> None:
    async with directory_archive(tmp_path) as client:
        await put(client, "a", b"old")
        await put(client, "b", b"other")
        again = await client.ask("PUT", "/a", data, content_length=str(len(data)))
        moved = await client.ask("PATCH", "/a", b'{"path": "b"}')
    assert (again.status, moved.status) == (409, 409)
    reason = "a exists, and this archive does not replace files"
    assert json.loads(again.body)["message"] == json.loads(moved.body)["message"] == reason
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == {
        "a": b"old",
        "b": b"other",
    }
    assert list((tmp_path / ".cartd-archive").glob("*")) == []


@pytest_twisted.ensureDeferred
async def test_of_concurrent_puts_exactly_one_succeeds(tmp_path: Path) -> None:
    async with directory_archive(tmp_path) as client:
        bodies = [str(number).encode() * 200_000 for number in range(8)]
        answers = await gatherResults(
            Deferred.fromCoroutine(client.ask("PUT", "/a", body, content_length="200000"))
            for body in bodies
        )
    assert sorted(answer.status or 0 for answer in answers) == [201, *[409] * 7]
    [number] = [number for number, answer in enumerate(answers) if answer.status == 201]
    assert (tmp_path / "a").read_bytes() == bodies[number]


@pytest.mark.parametrize(
    ("header", "mtime"), [(DATE, 784111777.0), ("784111777.5", 784111777.5)], ids=["date", "Unix"]
)
@pytest_twisted.ensureDeferred
async def test_last_modified_sets_the_time_of_the_file(
    tmp_path: Path, header: str, mtime: float
) -> None:
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("PUT", "/a", b"x", last_modified=header)
    assert answer.status == 201
    assert (tmp_path / "a").stat().st_mtime == mtime


@pytest_twisted.ensureDeferred
async def test_head_returns_size_times_and_media(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    os.utime(tmp_path / "a", (1, 784111777.25))
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("HEAD", "/a")
    assert (answer.status, answer.body) == (204, b"")
    headers = {k: v for k, v in answer.headers.items() if k not in ("server", "date", "connection")}
    assert headers == {
        "cache-control": "no-store",
        "x-pacifica-messsage": "File was found",
        "x-pacifica-message": "File was found",
        "x-pacifica-file": "a",
        "x-content-length": "5",
        "last-modified": "784111777.25",
        "etag": answer.headers["etag"],
        "x-pacifica-ctime": str((tmp_path / "a").stat().st_ctime),
        "x-pacifica-bytes-per-level": "(5,)",
        "x-pacifica-file-storage-media": "disk",
        "content-type": "application/json",
    }


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("0-5", 200, b"01234"),
        ("3-3", 200, b""),
        ("8-99", 200, b"89"),
        ("50-60", 200, b""),
        ("", 200, b"0123456789"),
        ("5-3", 400, None),
        ("5", 400, None),
        ("-5", 400, None),
        ("a-b", 400, None),
        ("0-5-7", 400, None),
        ("0-" + "9" * 5000, 400, None),
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest_twisted.ensureDeferred
async def test_byte_range_has_an_exclusive_end(
    tmp_path: Path, wanted: str, status: int, body: bytes | None
) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("GET", f"/a?byte_range={wanted}")
    assert answer.status == status
    assert body is None or (answer.body == body and answer.whole)


@pytest.mark.parametrize(
    ("wanted", "status", "span"),
    [
        ("bytes=0-0", 206, (0, 1)),
        ("bytes=2000000-", 206, (2_000_000, 3_000_001)),
        ("bytes=1-2999999", 206, (1, 3_000_000)),
        ("bytes=-2", 206, (2_999_999, 3_000_001)),
        ("bytes=3000001-", 416, None),
        ("lines=1-2", 200, (0, 3_000_001)),
    ],
    ids=str,
)
@pytest_twisted.ensureDeferred
async def test_http_ranges_are_supported(
    tmp_path: Path, wanted: str, status: int, span: tuple[int, int] | None
) -> None:
    (tmp_path / "a").write_bytes(LARGE)
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("GET", "/a", range=wanted)
    assert answer.status == status
    if span is None:
        assert answer.headers["content-range"] == "bytes */3000001"
    else:
        assert (answer.body, answer.whole) == (LARGE[slice(*span)], True)
    if status == 206 and span is not None:
        assert answer.headers["content-range"] == f"bytes {span[0]}-{span[1] - 1}/3000001"


@pytest_twisted.ensureDeferred
async def test_a_range_of_a_file_that_changed_since_is_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    async with directory_archive(tmp_path) as client:
        first = await client.ask("GET", "/a")
        tag = first.headers["etag"]
        again = await client.ask("GET", "/a", range="bytes=5-", if_range=tag)
        (tmp_path / "a").write_bytes(b"abcdefghijk")
        changed = await client.ask("GET", "/a", range="bytes=5-", if_range=tag)
    assert (again.status, again.body) == (206, b"56789")
    assert (changed.status, changed.body) == (200, b"abcdefghijk")


@pytest.mark.parametrize("name", ["old", "{root}/old"], ids=["id", "absolute path"])
@pytest_twisted.ensureDeferred
async def test_patch_gives_a_file_another_id(tmp_path: Path, name: str) -> None:
    (tmp_path / "old").write_bytes(b"x")
    body = json.dumps({"path": name.format(root=tmp_path.resolve())}).encode()
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("PATCH", "/new/id", body)
    assert (answer.status, json.loads(answer.body)) == (
        200,
        {"message": "File Moved Successfully"},
    )
    assert not (tmp_path / "old").exists()
    assert (tmp_path / "new/id").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"path": 1}', 400),
        (b'{"path": ""}', 400),
        (b'{"path": "missing"}', 404),
        (b"[" * 50_000, 400),
        (b'{"path": "old", "x": "' + b"y" * 70_000 + b'"}', 413),
    ],
    ids=lambda value: repr(value)[:24],
)
@pytest_twisted.ensureDeferred
async def test_a_patch_that_names_no_file_changes_nothing(
    tmp_path: Path, body: bytes, status: int
) -> None:
    (tmp_path / "old").write_bytes(b"x")
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("PATCH", "/new", body)
    assert answer.status == status
    assert (tmp_path / "old").read_bytes() == b"x"
    assert not (tmp_path / "new").exists()


@pytest_twisted.ensureDeferred
async def test_delete_removes_a_file(tmp_path: Path) -> None:
    async with directory_archive(tmp_path) as client:
        await put(client, "a")
        assert (await client.ask("DELETE", "/a")).status == 200
        assert (await client.ask("GET", "/a")).status == 404
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("method", ["HEAD", "GET", "POST", "DELETE"])
@pytest.mark.parametrize("target", ["/missing", "/directory", "/file/below", "/fifo"])
@pytest_twisted.ensureDeferred
async def test_only_regular_files_are_served(tmp_path: Path, method: str, target: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    async with directory_archive(tmp_path) as client:
        answer = await client.ask(method, target)
    assert answer.status == 404
    if method != "HEAD":
        error = json.loads(answer.body)
        assert error.keys() == {"status", "message", "traceback", "version"}
        assert (error["status"], error["traceback"]) == ("404 Not Found", "")


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("PUT", "/directory", {"content_length": "0"}, 409),
        ("PUT", "/file/below", {"content_length": "0"}, 409),
        ("PUT", "/new", {"transfer_encoding": "chunked"}, 411),
        ("PUT", "/new", {"content_length": "0", "last_modified": "yesterday"}, 400),
        ("PUT", "/new", {"content_length": "0", "last_modified": "nan"}, 400),
        ("PUT", "/new", {"content_length": "0", "last_modified": "1e300"}, 400),
        ("PUT", "/", {"content_length": "0"}, 405),
    ],
    ids=lambda value: str(value),
)
@pytest_twisted.ensureDeferred
async def test_a_failing_request_leaves_nothing(
    tmp_path: Path, method: str, target: str, headers: dict[str, str], status: int
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    body = b"0\r\n\r\n" if "transfer_encoding" in headers else b""
    async with directory_archive(tmp_path) as client:
        answer = await client.ask(method, target, body, **headers)
    assert answer.status == status
    assert "traceback" in json.loads(answer.body)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert names - {".cartd-archive"} == {"directory", "file"}


@pytest.mark.parametrize("declared", [9, 11])
def test_a_body_of_another_length_leaves_nothing(tmp_path: Path, declared: int) -> None:
    with pytest.raises(InvalidInput):
        Directory(tmp_path).put("a", BytesIO(b"0123456789"), declared, 0.0, lambda _: None)
    assert [path.name for path in tmp_path.rglob("*")] == [".cartd-archive"]


@pytest_twisted.ensureDeferred
async def test_an_aborted_put_leaves_nothing(tmp_path: Path) -> None:
    async with directory_archive(tmp_path) as client:
        exchange = await client.begin("PUT", "/a", LARGE, content_length="5000000")
        exchange.transport.loseConnection()
        await exchange.closed
        await client.ask("GET", "/")
    assert not (tmp_path / "a").exists()
    assert list((tmp_path / ".cartd-archive").glob("*")) == []


@pytest_twisted.ensureDeferred
async def test_file_truncated_during_download_aborts_it(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(200_000_000)
    async with directory_archive(tmp_path, failures=1) as client:
        exchange = await client.begin("GET", "/a", pause=True, connection="keep-alive")
        await exchange.begun
        os.truncate(tmp_path / "a", 1000)
        exchange.transport.resumeProducing()
        answer = await exchange.closed.addTimeout(10, reactor)
    assert (answer.status, answer.whole) == (200, False)


@pytest_twisted.ensureDeferred
async def test_a_client_that_disconnects_is_not_an_error(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(200_000_000)
    async with directory_archive(tmp_path) as client:
        exchange = await client.begin("GET", "/a", pause=True)
        await exchange.begun
        with capturedLogs() as events:
            exchange.transport.abortConnection()
            await exchange.closed
            assert (await client.ask("GET", "/a?byte_range=0-1")).body == b"\0"
        assert not [event for event in events if "failure" in event or "log_failure" in event]
