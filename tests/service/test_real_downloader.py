"""Pacifica's own downloader against the service: it posts, polls and unpacks by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from pacifica.downloader import Downloader

from cartd.auth import TokenFile
from tests.support.archived_files import ArchivedFile, many_files, store
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.real_archive import RealArchive, real_archive
from tests.support.running_cartd import RunningCartd, running_cartd

FILES = [
    *many_files(20),
    ArchivedFile(100, "empty", b"", 0.0),
    ArchivedFile(101, "\u00fcber/e\u0301 \u6587\u4ef6.txt", b"letters"),
    ArchivedFile(102, "/".join(["d" * 60] * 6) + "/deep.dat", b"deep", hash_type="sha256"),
]
GONE = ArchivedFile(404, "run/gone.dat", b"gone")
WAYS = ("transactioninfo", "cloudevent")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealArchive]:
    with real_archive(tmp_path_factory.mktemp("downloader") / "archive") as running:
        store(running, FILES)
        yield running


@pytest.fixture(scope="module")
def cartd(archive: RealArchive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCartd]:
    directory = tmp_path_factory.mktemp("downloader") / "cartd"
    ini = "[archiveinterface]\nmax_attempts = 2\n"
    with running_cartd(directory, archive=archive.url, ini=ini) as running:
        yield running
        assert running.terminate() == 0
        assert_no_unexpected_errors(running.log)


def split(path: str) -> tuple[str, str]:
    """Pacifica keeps directory and name apart, and joins them with a ``/`` in any case."""
    subdir, _, name = path.rpartition("/")
    return subdir, name


def transaction(files: Iterable[ArchivedFile]) -> Mapping[str, object]:
    """Return a transaction as Pacifica's policy service describes it: ids are keys, and so text."""
    return {
        "files": {
            str(file.archive_id): {
                "subdir": split(file.path)[0],
                "name": split(file.path)[1],
                "hashtype": file.hash_type,
                "hashsum": file.hash_sum,
            }
            for file in files
        }
    }


def event(files: Iterable[ArchivedFile]) -> Mapping[str, object]:
    """As Pacifica's notifications tell of an upload: ids are numbers, among other metadata."""
    data: list[Mapping[str, object]] = [{"destinationTable": "Transactions", "_id": 1}]
    data.extend(
        {
            "destinationTable": "Files",
            "_id": file.archive_id,
            "subdir": split(file.path)[0],
            "name": split(file.path)[1],
            "hashtype": file.hash_type,
            "hashsum": file.hash_sum,
        }
        for file in files
    )
    return {"data": data}


def download(
    way: str, cartd: RunningCartd, files: Iterable[ArchivedFile], into: Path, **more: object
) -> None:
    downloader = Downloader(addr="127.0.0.1", port=cartd.port, **more)
    if way == "cloudevent":
        downloader.cloudevent(str(into), event(files), timeout=30)
    else:
        downloader.transactioninfo(str(into), transaction(files), timeout=30, filename="data.tar")


def unpacked(top: Path) -> dict[str, tuple[bytes, float]]:
    return {
        path.relative_to(top).as_posix(): (path.read_bytes(), path.stat().st_mtime)
        for path in top.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("way", WAYS)
def test_the_downloader_unpacks_the_files_with_their_times(
    way: str, cartd: RunningCartd, tmp_path: Path
) -> None:
    download(way, cartd, FILES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert unpacked(tmp_path / "data") == {file.path: file.unpacked for file in FILES}


def test_the_downloader_waits_until_a_bundle_is_written(
    archive: RealArchive, tmp_path: Path
) -> None:
    ini = "[cartd]\nbundle_task = on\n"
    into = tmp_path / "into"
    with running_cartd(tmp_path / "cartd", archive=archive.url, ini=ini) as cartd:
        download("transactioninfo", cartd, FILES, into)
        [bundle] = cartd.volume.glob("[0-9]*/*.tar")
    assert [path.name for path in into.iterdir()] == [bundle.stem]
    assert unpacked(into / bundle.stem) == {file.path: file.unpacked for file in FILES}


def test_the_downloader_needs_its_token(archive: RealArchive, tmp_path: Path) -> None:
    tokens, into = tmp_path / "tokens", tmp_path / "into"
    token = TokenFile(tokens).add("alice", admin=False)
    ini = f"[auth]\ntoken_file = {tokens}\n"
    with running_cartd(tmp_path / "cartd", archive=archive.url, ini=ini) as cartd:
        for auth in ({}, {"auth": ("alice", "wrong")}):
            with pytest.raises(AssertionError):
                download("transactioninfo", cartd, FILES, into, auth=auth)
        assert not into.exists()
        download("transactioninfo", cartd, FILES, into, auth={"auth": ("alice", token)})
    assert unpacked(into / "data") == {file.path: file.unpacked for file in FILES}


@pytest.mark.parametrize("way", WAYS)
def test_the_downloader_reports_an_error_for_a_missing_file(
    way: str, cartd: RunningCartd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AssertionError):
        download(way, cartd, [*FILES[:2], GONE], tmp_path)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(messages) == 1
    assert messages[0].startswith("Failed to stage run/gone.dat (archive id 404): ")
    assert not list(tmp_path.iterdir())
