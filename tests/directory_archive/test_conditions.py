"""Conditional requests to the directory archive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_twisted

from tests.support.directory_archive_client import Answer, Client, directory_archive

DATA = b"0123456789"
FIRST = 784_111_777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"


async def ask(client: Client, method: str, target: str = "/a", **headers: str) -> Answer:
    if method == "PUT":
        return await client.ask("PUT", target, b"new", content_length="3", **headers)
    body = b'{"path": "b"}' if method == "PATCH" else b""
    return await client.ask(method, target, body, **headers)


def fill(root: Path) -> None:
    for name in ("a", "b"):
        (root / name).write_bytes(DATA)
        os.utime(root / name, (FIRST, FIRST))


SUCCESS = {"GET": 200, "HEAD": 204, "PUT": 201, "POST": 200, "PATCH": 200, "DELETE": 200}
CHANGES = ("PUT", "POST", "PATCH", "DELETE")


@pytest.mark.parametrize("method", SUCCESS)
@pytest_twisted.ensureDeferred
async def test_a_failed_precondition_prevents_reads_and_changes(
    tmp_path: Path, method: str
) -> None:
    fill(tmp_path)
    async with directory_archive(tmp_path, "--replace") as client:
        tag = (await ask(client, "HEAD")).headers["etag"]
        for headers in ({"if_match": '"x"'}, {"if_match": f"W/{tag}"},
                        {"if_unmodified_since": BEFORE}):  # fmt: skip
            assert (await ask(client, method, **headers)).status == 412
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == DATA
        assert (await ask(client, method, if_match=tag)).status == SUCCESS[method]


@pytest.mark.parametrize("method", CHANGES)
@pytest_twisted.ensureDeferred
async def test_if_none_match_star_prevents_changes(tmp_path: Path, method: str) -> None:
    fill(tmp_path)
    async with directory_archive(tmp_path, "--replace") as client:
        assert (await ask(client, method, if_none_match="*")).status == 412
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == DATA
        if method in ("PUT", "PATCH"):
            assert (await ask(client, method, "/new", if_match="*")).status == 412
            assert not (tmp_path / "new").exists()
            made = await ask(client, method, "/new", if_none_match="*")
            assert made.status == SUCCESS[method]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest_twisted.ensureDeferred
async def test_an_unmodified_file_is_answered_with_304(tmp_path: Path, method: str) -> None:
    fill(tmp_path)
    async with directory_archive(tmp_path) as client:
        tag = (await ask(client, method)).headers["etag"]
        for headers in ({"if_none_match": tag}, {"if_modified_since": DATE},
                        {"if_none_match": "*", "range": "bytes=99-"}):  # fmt: skip
            answer = await ask(client, method, **headers)
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["etag"] == tag
            assert answer.headers["cache-control"] == "private, no-cache, no-transform"
        assert (await ask(client, method, if_modified_since=BEFORE)).status == SUCCESS[method]


@pytest_twisted.ensureDeferred
async def test_errors_take_precedence_over_conditions(tmp_path: Path) -> None:
    fill(tmp_path)
    async with directory_archive(tmp_path) as client:
        for condition in ({"if_match": '"x"'}, {"if_none_match": "*"}):
            for method in ("GET", "HEAD", "POST", "DELETE"):
                assert (await ask(client, method, "/none", **condition)).status == 404
            for method in ("PUT", "PATCH"):
                assert (await ask(client, method, **condition)).status == 409


@pytest_twisted.ensureDeferred
async def test_other_bytes_of_one_size_and_time_are_another_version(tmp_path: Path) -> None:
    async with directory_archive(tmp_path, "--replace") as client:
        tags = set()
        for data in (b"aaaa", b"bbbb"):
            answer = await client.ask("PUT", "/a", data, content_length="4", last_modified=DATE)
            assert answer.status == 201
            tags.add((await client.ask("GET", "/a")).headers["etag"])
        assert len(tags) == 2
        part = await client.ask("GET", "/a", range="bytes=2-", if_range=DATE)
        assert (part.status, part.body) == (200, b"bbbb")


@pytest_twisted.ensureDeferred
async def test_byte_range_works_with_conditions(tmp_path: Path) -> None:
    fill(tmp_path)
    async with directory_archive(tmp_path) as client:
        target = "/a?byte_range=2-5"
        assert (await ask(client, "GET", target, if_match='"x"')).status == 412
        assert (await ask(client, "GET", target, if_none_match="*")).status == 304
        answer = await ask(client, "GET", target, if_match="*", range="bytes=0-0")
        assert (answer.status, answer.body) == (200, b"234")
