"""Downloads of a cart from the real archive with the tools that people use."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.support.archived_files import ArchivedFile, manifest_of, store
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.real_archive import real_archive
from tests.support.running_cartd import DEADLINE, RunningCartd, running_cartd, wait_for

PLACE = "cart?filename=my-data.tar"
FILES = [
    ArchivedFile(1, "notes.txt", b"How the data came to be.\n", 1_234_567_890.75),
    ArchivedFile(2, "run 1/empty", b"", 0.0),
    ArchivedFile(3, "run 1/image.raw", Random(0).randbytes(6_000_001), 1_400_000_000.0),
    ArchivedFile(4, "run 1/" + "long" * 40 + ".dat", b"1" * 511, 1_500_000_000.5),
    ArchivedFile(5, "/".join(["d" * 60] * 6) + "/deep.dat", b"2" * 513, 1_600_000_000.0),
    ArchivedFile(6, "\u00fcber/na\u00efve \u2014 \u6587\u4ef6.txt", b"3", 1_700_000_000.0),
    ArchivedFile(7, "combined/e\u0301.txt", b"4", 5_000_000_000.0),
]


@pytest.fixture(scope="module")
def cartd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCartd]:
    """The service with one cart that is ready."""
    directory = tmp_path_factory.mktemp("tools")
    with (
        real_archive(directory / "archive") as archive,
        running_cartd(directory / "cartd", archive=archive.url) as running,
    ):
        store(archive, FILES)
        assert running.post("cart", manifest_of(FILES)).status == 201
        running.wait_until("cart", "ready")
        store(archive, FITTING + CUT)
        assert running.post("long", manifest_of(FITTING + CUT)).status == 201
        running.wait_until("long", "ready")
        yield running
        assert running.terminate() == 0
        assert_no_unexpected_errors(running.log)


@pytest.fixture(scope="module")
def whole(cartd: RunningCartd) -> bytes:
    return cartd.get(f"/{PLACE}").body


def environment() -> dict[str, str]:
    """File names are UTF-8, and no proxy stands before this machine."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "no_proxy": "127.0.0.1"}


def run(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, arguments)), cwd=cwd, env=environment(), capture_output=True, timeout=DEADLINE
    )
    assert done.returncode == 0, done
    return done.stdout.decode()


def cut(*arguments: object, size: int) -> bytes:
    """Run a download that writes to a pipe, and kill it when it has written ``size`` bytes."""
    process = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    with process.stdout:
        part = process.stdout.read(size)
        assert process.poll() is None, "it was over before it could be cut"
        process.kill()
    process.wait()
    return part


PHP = '(new PharData($argv[1]))->extractTo(".");'
PERL = "Archive::Tar->extract_archive($ARGV[0]) or die Archive::Tar->error"
READERS = {
    "tar": ("tar", "-xf"),
    "bsdtar": ("bsdtar", "-xf"),
    "busybox": ("busybox", "tar", "-xf"),
    "7zz": ("7zz", "x", "-y", "-bso0"),
    "pax": ("pax", "-r", "-f"),
    "unar": ("unar", "-q", "-D"),
    "php": ("php", "-r", PHP),
    "perl": ("perl", "-MArchive::Tar", "-e", PERL),
    "cpio": ("cpio", "-i", "-d", "-m", "--quiet", "-F"),
}
"""Of these, the last four ignore pax records."""


def unpack(tool: str, tar: Path, into: Path) -> None:
    into.mkdir()
    if tool == "tarfile":
        with tarfile.open(tar) as opened:
            opened.extraction_filter = getattr(tarfile, "data_filter", None)  # since 3.11.4
            opened.extractall(into)
    else:
        run(*READERS[tool], tar, cwd=into)


def tree(top: Path) -> dict[str, tuple[bytes, float]]:
    """What was unpacked; bsdtar composes letters in the names of any tar, so here all are."""
    return {
        unicodedata.normalize("NFC", path.relative_to(top).as_posix()): (
            path.read_bytes(),
            path.stat().st_mtime,
        )
        for path in top.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("tool", ["tar", "bsdtar", "tarfile"])
def test_every_tar_program_unpacks_the_same_files_and_times(
    tool: str, whole: bytes, tmp_path: Path
) -> None:
    tar = tmp_path / "my-data.tar"
    tar.write_bytes(whole)
    unpack(tool, tar, tmp_path / "out")
    wanted = {unicodedata.normalize("NFC", file.path): file.unpacked for file in FILES}
    assert tree(tmp_path / "out" / "my-data") == wanted
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my-data"]


FITTING = [
    ArchivedFile(11, "proben/\u00e4.dat", b"a", 1_400_000_000.0),
    ArchivedFile(12, "proben/\u00f6.dat", b"o", 1_400_000_001.0),
    ArchivedFile(13, "x" * 80 + "/" + "y" * 40 + "-1.dat", b"1", 1_400_000_002.0),
    ArchivedFile(14, "x" * 80 + "/" + "y" * 40 + "-2.dat", b"2", 1_400_000_003.0),
    ArchivedFile(15, "/".join(["z" * 48] * 3) + "/" + "z" * 99, b"3", 1_400_000_004.0),
    ArchivedFile(16, "\u00fc" * 70 + "/" + "\u6587" * 30, b"4", 1_400_000_005.0),
]
"""Paths that the fields of a ustar header hold, below a top folder of 7 characters."""
CUT = [
    ArchivedFile(17, "y" * 140 + "-1.dat", b"5", 1_400_000_006.0),
    ArchivedFile(18, "y" * 140 + "-2.dat", b"6", 1_400_000_007.0),
]
"""Those that they do not hold."""


@pytest.fixture(scope="module")
def old_readers(cartd: RunningCartd) -> bytes:
    """A tar of paths that are not short, or not ASCII."""
    return cartd.get("/long?filename=my-data").body


@pytest.mark.parametrize("tool", [*READERS, "tarfile"])
def test_readers_without_pax_support_unpack_every_name(
    tool: str, old_readers: bytes, tmp_path: Path
) -> None:
    tar = tmp_path / "my-data.tar"
    tar.write_bytes(old_readers)
    unpack(tool, tar, tmp_path / "out")
    found = tree(tmp_path / "out" / "my-data")
    for file in FITTING:
        content, mtime = found.pop(file.path)
        assert content == file.data
        # PharData and unar -D leave the times of today.
        assert tool in ("php", "unar") or mtime == file.unpacked[1]
    assert sorted(content for content, _ in found.values()) == [b"5", b"6"]
    if tool not in ("unar", "php", "perl", "cpio"):
        assert found.keys() == {file.path for file in CUT}


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("?filename=my-data.tar", r"my-data\.tar"),
        ("?filename=run%207.tar", r"run 7\.tar"),
        ("?filename=data", "data"),
        ("", r"data_\d{4}(_\d\d){5}\.tar"),
    ],
)
def test_curl_names_the_file_as_it_was_asked_for(
    asked: str, named: str, cartd: RunningCartd, tmp_path: Path
) -> None:
    run("curl", "-sS", "-O", "-J", f"{cartd.url}/cart{asked}", cwd=tmp_path)
    [saved] = tmp_path.iterdir()
    assert re.fullmatch(named, saved.name)
    unpack("tar", saved, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [saved.name.removesuffix(".tar")]


@pytest.mark.parametrize(
    ("begin", "resume"),
    [
        (("curl", "-sS"), ("curl", "-sS", "-C", "-", "-o", "part")),
        (("wget", "-q", "-O", "-"), ("wget", "-q", "-c", "-O", "part")),
    ],
    ids=["curl", "wget"],
)
def test_a_download_that_was_cut_is_resumed_to_the_same_bytes(
    begin: tuple[str, ...],
    resume: tuple[str, ...],
    cartd: RunningCartd,
    whole: bytes,
    tmp_path: Path,
) -> None:
    url = f"{cartd.url}/{PLACE}"
    part = cut(*begin, url, size=300_001)
    assert len(part) == 300_001
    (tmp_path / "part").write_bytes(part)
    run(*resume, url, cwd=tmp_path)
    assert (tmp_path / "part").read_bytes() == whole
    wait_for(lambda: f'" 206 {len(whole) - len(part)} ' in cartd.log)


def test_curl_that_resumes_a_whole_download_is_content(
    cartd: RunningCartd, whole: bytes, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(whole)
    run("curl", "-sS", "-C", "-", "-o", "part", f"{cartd.url}/{PLACE}", cwd=tmp_path)
    assert (tmp_path / "part").read_bytes() == whole


def test_aria2_fetches_parts_at_once_to_the_same_bytes(
    cartd: RunningCartd, whole: bytes, tmp_path: Path
) -> None:
    # Slowed down, as otherwise the first connection may have all before the others ask.
    split = ("-x4", "-s4", "-k1M", "--max-overall-download-limit=8M", "--file-allocation=none")
    logging = ("--no-conf", "--log=asked", "--log-level=info")
    run("aria2c", "-q", *split, *logging, "-o", "parts.tar", f"{cartd.url}/{PLACE}", cwd=tmp_path)
    assert (tmp_path / "parts.tar").read_bytes() == whole
    assert (tmp_path / "asked").read_text().count("Range: bytes=") >= 3
