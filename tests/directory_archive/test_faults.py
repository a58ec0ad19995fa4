"""The faults that tests inject into the directory archive."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import pytest_twisted

from tests.support.directory_archive_client import Answer, directory_archive
from tests.support.faulty_directory_archive import WITHOUT_BODY, Fault, FaultInjector

SMALL = bytes(range(10))
LARGE = bytes(range(1, 251)) * 12_000
"""Longer than one read in a thread."""


def happened(answer: Answer, data: bytes) -> str:
    match answer.status:
        case None:
            return "RESET"
        case 500:
            return "SERVER_ERROR"
        case 503:
            return "UNAVAILABLE"
    if answer.body == data:
        return "right"
    if len(answer.body) == len(data):
        assert answer.body[1:] == data[1:]
        return "WRONG_BYTES"
    assert not answer.whole
    assert answer.body == data[: len(data) // 2]
    return "TRUNCATED"


def expected(rate: float, seed: int, count: int, *, body: bool) -> list[str]:
    fault_injector = FaultInjector(rate, seed)
    drawn = [fault_injector.draw(body=body) for _ in range(count)]
    return ["right" if fault is None else fault.name for fault in drawn]


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest_twisted.ensureDeferred
async def test_the_fail_rate_of_gets_covers_every_fault(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    async with directory_archive(tmp_path, faults=FaultInjector(0.5, 7)) as client:
        seen = [happened(await client.ask("GET", "/a"), data) for _ in range(40)]
        assert [(await client.ask("GET", "/")).status for _ in range(20)] == [200] * 20
    assert seen == expected(0.5, 7, 40, body=True)
    assert set(seen) == {"right", *(fault.name for fault in Fault)}


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("HEAD", b""),
        ("PUT", b"intruder"),
        ("POST", b""),
        ("PATCH", b'{"path": "b"}'),
        ("DELETE", b""),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_request_that_fails_has_done_nothing(
    tmp_path: Path, method: str, body: bytes
) -> None:
    (tmp_path / "a").write_bytes(SMALL)
    (tmp_path / "b").write_bytes(LARGE)
    async with directory_archive(tmp_path, faults=FaultInjector(1, 3)) as client:
        seen = [happened(await client.ask(method, "/a", body), b"") for _ in range(12)]
    assert set(seen) == {fault.name for fault in WITHOUT_BODY}
    assert (tmp_path / "a").read_bytes() == SMALL
    assert (tmp_path / "b").read_bytes() == LARGE


@pytest_twisted.ensureDeferred
async def test_a_faulty_empty_file_is_never_complete(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    async with directory_archive(tmp_path, faults=FaultInjector(1, 3)) as client:
        seen = {(await client.ask("GET", "/a")).status for _ in range(20)}
    assert seen == {None, 500, 503}


def test_the_same_seed_gives_the_same_failures() -> None:
    first, again = (expected(0.1, 5, 10_000, body=True) for _ in range(2))
    assert first == again
    assert first != expected(0.1, 6, 10_000, body=True)
    counts = Counter(first)
    assert 8_700 < counts["right"] < 9_300
    assert all(150 < counts[fault.name] < 250 for fault in Fault)


def test_no_fault_is_injected_at_rate_zero() -> None:
    assert set(expected(0, 1, 1000, body=True)) == {"right"}
