"""The simulated tapes of the directory archive."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from tests.support.directory_archive_client import Client, directory_archive

SMALL = bytes(range(10))


async def media(client: Client) -> str:
    answer = await client.ask("HEAD", "/a")
    assert answer.status == 204
    return answer.headers["x-pacifica-file-storage-media"]


@pytest_twisted.ensureDeferred
async def test_a_file_is_on_tape_until_recalled_and_the_delay_over(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_bytes(SMALL)
    clock = Clock()
    async with directory_archive(tmp_path, "--tape-delay", "30", clock=clock) as client:
        clock.advance(100)
        assert await media(client) == "tape"
        refused = await client.ask("GET", "/a")
        assert (refused.status, refused.headers["retry-after"]) == (503, "30")
        assert (await client.ask("POST", "/a")).status == 200
        clock.advance(20)
        assert (await client.ask("POST", "/a")).status == 200
        assert (await client.ask("GET", "/a")).headers["retry-after"] == "10"
        clock.advance(9.5)
        assert await media(client) == "tape"
        assert (await client.ask("GET", "/a")).headers["retry-after"] == "1"
        clock.advance(0.5)
        assert await media(client) == "disk"
        assert (await client.ask("GET", "/a")).body == SMALL


@pytest_twisted.ensureDeferred
async def test_with_a_rate_files_come_from_tape_one_after_the_other(tmp_path: Path) -> None:
    clock = Clock()
    for name in "abc":
        (tmp_path / name).write_bytes(SMALL)
    options = ("--tape-delay", "30", "--tape-rate", "0.5")
    async with directory_archive(tmp_path, *options, clock=clock) as client:
        for name in "abca":
            assert (await client.ask("POST", f"/{name}")).status == 200

        async def seconds_left() -> list[str]:
            answers = [await client.ask("GET", f"/{name}") for name in "abc"]
            return [answer.headers.get("retry-after", "") for answer in answers]

        assert await seconds_left() == ["30", "32", "34"]
        clock.advance(32)
        assert await seconds_left() == ["", "", "2"]


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PUT", "/a", b"new"),
        ("PATCH", "/a", b'{"path": "b"}'),
        ("PATCH", "/c", b'{"path": "a"}'),
        ("DELETE", "/a", b""),
    ],
    ids=["put", "moved here", "moved away", "deleted"],
)
@pytest_twisted.ensureDeferred
async def test_a_file_that_changes_is_on_tape_again(
    tmp_path: Path, method: str, target: str, body: bytes
) -> None:
    (tmp_path / "a").write_bytes(SMALL)
    (tmp_path / "b").write_bytes(SMALL)
    async with directory_archive(tmp_path, "--tape-delay", "0", "--replace") as client:
        await client.ask("POST", "/a")
        assert await media(client) == "disk"
        assert (await client.ask(method, target, body)).status in (200, 201)
        (tmp_path / "a").write_bytes(SMALL)
        assert await media(client) == "tape"


@pytest_twisted.ensureDeferred
async def test_a_missing_file_is_not_on_tape(tmp_path: Path) -> None:
    async with directory_archive(tmp_path, "--tape-delay", "30") as client:
        assert (await client.ask("GET", "/a")).status == 404
        assert (await client.ask("POST", "/a")).status == 404
