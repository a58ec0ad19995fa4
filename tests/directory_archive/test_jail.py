"""No id reaches a file outside the root of the directory archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import pytest_twisted

from cartd.directory_archive.directory import check_id
from cartd.errors import InvalidInput
from tests.support.directory_archive_client import Client, directory_archive

SECRET = b"what is outside stays outside"
CLIMBING = [
    "/../secret",
    "/../../../../../../etc/passwd",
    "/a/../../secret",
    "/a/../inside",
    "/./inside",
    "/..",
    "/.",
    "/a//b",
    "/a/",
    "/%2e%2e/secret",
    "/%2E%2E%2Fsecret",
    "/..%2Fsecret",
    "/a%2F..%2F..%2Fsecret",
    "/%00",
    "/inside%00.txt",
    "/..%00/secret",
    "/out/secret",
    "/out",
    "/deep/link/secret",
    "/leak",
    "/deep/leak",
    "/dangling",
    "/.cartd-archive/part",
    "/.CARTD-archive/part",
    "/temporary/part",
    "/%ff%fe",
    "/..%c0%afsecret",
    "/" + "n" * 256,
    "/" + "%C3%A9" * 128,
    "/" + "d/" * 3000 + "x",
]
"""Each must be rejected with every method."""
HARMLESS = [
    "/%252e%252e%252fsecret",
    "/..%255c..%255csecret",
    "/..\\secret",
    "/...",
    "/~",
    "/a:b",
    "{outside}",
    "/{outside}",
    "/%2Fetc%2Fpasswd",
    "///etc/passwd",
]
"""Ordinary names on POSIX: the file must be created below the root."""
METHODS = ["HEAD", "GET", "PUT", "POST", "PATCH", "DELETE"]


def build(tmp_path: Path) -> Path:
    """A root with links that leave it, next to a file that must not be accessed."""
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / ".cartd-archive").mkdir()
    (root / ".cartd-archive/part").write_bytes(b"unfinished")
    (root / "inside").write_bytes(b"inside")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    (tmp_path / "secret").write_bytes(SECRET)
    (root / "out").symlink_to(outside)
    (root / "deep/link").symlink_to(Path("../../outside"))
    (root / "leak").symlink_to(outside / "secret")
    (root / "deep/leak").symlink_to(Path("../../outside/secret"))
    (root / "dangling").symlink_to(outside / "new")
    (root / "temporary").symlink_to(".cartd-archive")
    return root


def snapshot(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


async def ask(client: Client, method: str, target: str) -> int:
    body = {"PUT": b"intruder", "PATCH": b'{"path": "inside"}'}.get(method, b"")
    answer = await client.ask(method, target, body)
    assert SECRET not in answer.raw
    assert answer.status is not None
    return answer.status


@pytest.mark.parametrize("target", CLIMBING, ids=lambda target: target[:40])
@pytest_twisted.ensureDeferred
async def test_an_id_that_climbs_is_refused_and_touches_nothing(
    tmp_path: Path, target: str
) -> None:
    root = build(tmp_path)
    before = snapshot(tmp_path)
    target = target.format(outside=tmp_path / "outside/secret")
    async with directory_archive(root) as client:
        statuses = {method: await ask(client, method, target) for method in METHODS}
        assert {*statuses.values()} <= {400, 404}, statuses
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("target", HARMLESS)
@pytest_twisted.ensureDeferred
async def test_an_id_is_percent_decoded_exactly_once(tmp_path: Path, target: str) -> None:
    root = build(tmp_path)
    before = snapshot(tmp_path)
    target = target.format(outside=tmp_path / "outside/secret")
    async with directory_archive(root) as client:
        assert await ask(client, "PUT", target) == 201
        after = snapshot(tmp_path)
        assert before.items() <= after.items()
        assert {Path(new).parts[0] for new in after.keys() - before.keys()} == {"root"}
        assert await ask(client, "GET", target) == 200


@pytest.mark.parametrize(
    "old_path",
    ["{outside}", "../secret", "out/secret", "leak", "{root}/../secret", ".cartd-archive/part"],
)
@pytest_twisted.ensureDeferred
async def test_patch_moves_nothing_into_the_root(tmp_path: Path, old_path: str) -> None:
    root = build(tmp_path)
    before = snapshot(tmp_path)
    path = old_path.format(outside=tmp_path / "outside/secret", root=root)
    async with directory_archive(root) as client:
        answer = await client.ask("PATCH", "/new", json.dumps({"path": path}).encode())
        assert answer.status == 400
        assert snapshot(tmp_path) == before


@pytest_twisted.ensureDeferred
async def test_a_link_inside_is_followed_and_deleted_itself(tmp_path: Path) -> None:
    root = build(tmp_path)
    (root / "alias").symlink_to("inside")
    (root / "shallow").symlink_to("deep")
    async with directory_archive(root) as client:
        assert (await client.ask("GET", "/alias")).body == b"inside"
        assert (await client.ask("PUT", "/shallow/new", b"x")).status == 201
        assert (root / "deep/new").read_bytes() == b"x"
        assert (await client.ask("DELETE", "/alias")).status == 200
    assert not (root / "alias").is_symlink()
    assert (root / "inside").read_bytes() == b"inside"


@pytest_twisted.ensureDeferred
async def test_an_id_adds_no_header_to_an_answer(tmp_path: Path) -> None:
    (tmp_path / "a\r\nX-Evil: 1").write_bytes(b"x")
    async with directory_archive(tmp_path) as client:
        answer = await client.ask("HEAD", "/a%0D%0AX-Evil:%201")
    assert answer.status == 204
    assert "x-evil" not in answer.headers
    assert answer.headers["x-pacifica-file"] == "a%0D%0AX-Evil: 1"


@pytest.mark.parametrize(
    "archive_id",
    [
        "..\\secret",
        "c:\\secret",
        "c:secret",
        "a:stream",
        "nul",
        "COM1.txt",
        "a/aux",
        "dot.",
        "x ",
        "a*",
    ],
)
def test_names_special_on_windows_are_refused_there(archive_id: str) -> None:
    assert check_id(archive_id, windows=False) == archive_id
    with pytest.raises(InvalidInput):
        check_id(archive_id, windows=True)


@pytest.mark.parametrize("archive_id", ["a", "a/b.c", "1234", "null", "com", "ü/ñ", "a b"])
def test_an_ordinary_id_is_accepted_on_windows(archive_id: str) -> None:
    assert check_id(archive_id, windows=True) == archive_id
