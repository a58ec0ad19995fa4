"""Lines of checksum files, compared with those that coreutils writes and reads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cartd.checksum import canonical_name
from cartd.errors import NoCommonHash
from cartd.model import CartFile, FileStatus, HashTypes
from cartd.status.checksums import encode_lines, line_format, plain_line, tagged_line

PROGRAMS = {
    "md5": "md5sum",
    "sha1": "sha1sum",
    "sha224": "sha224sum",
    "sha256": "sha256sum",
    "sha384": "sha384sum",
    "sha512": "sha512sum",
    "blake2b": "b2sum",
}
ODD = [
    *("a b", " leading", "trailing ", "*star", "-", "--check", "#comment", "é\u2028ü", "\\", "\\n"),
    *("back\\slash", "line\nfeed", "carriage\rreturn", "\r\n", "both\\\n\r", "tab\t", "(a) = 00"),
    *(
        ") = d41d8cd98f00b204e9800998ecf8427e",
        "SHA256 (x) = 00",
        "\x7f\x1b[31m",
        "%0A",
        "\U0001f600",
    ),
    "d41d8cd98f00b204e9800998ecf8427e  x",
]
names = st.text(
    st.one_of(st.sampled_from("\\\n\r ()=*-#n/"), st.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=60,
).filter(
    lambda name: (
        "\0" not in name
        and all(
            0 < len(part.encode()) < 200 and part not in (".", "..") for part in name.split("/")
        )
    )
)


def run(directory: Path, *command: str, lines: bytes = b"") -> bytes:
    done = subprocess.run(command, cwd=directory, input=lines, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), (done, lines)
    return done.stdout


def written(directory: Path, paths: Sequence[str]) -> dict[str, bytes]:
    """Write a file with different bytes at each path that is possible beside the others."""
    files = {}
    for path in dict.fromkeys(paths):
        target = directory / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data := path.encode() + b"!")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a file and a directory of one name
        files[path] = data
    return files


def listed(
    number: int, path: str, data: bytes, hash_type: str, also: str | None = None
) -> CartFile:
    return CartFile(
        position=number,
        archive_id=str(number),
        path=path,
        hash_type=hash_type,
        hash_sum=hashlib.new(hash_type, data).hexdigest(),
        status=FileStatus.STAGED,
        also_hash_type=also,
        also_hash_sum=None if also is None else hashlib.new(also, data).hexdigest(),
    )


def types_of(files: Sequence[CartFile]) -> list[HashTypes]:
    return [HashTypes(1, it.hash_type, bool(it.hash_sum), it.also_hash_type) for it in files]


@settings(max_examples=6)
@given(paths=st.lists(names, min_size=30, max_size=150))
@example(paths=ODD)
def test_lines_are_those_of_coreutils(paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root)
        files = written(directory, paths)
        plain = {
            path: plain_line(path, hashlib.sha256(data).hexdigest()) for path, data in files.items()
        }
        tagged = {
            path: tagged_line(path, "sha256", hashlib.sha256(data).hexdigest())
            for path, data in files.items()
        }
        # It reads its standard input for "-".
        given = [path for path in files if path != "-"]
        assert (
            run(directory, "sha256sum", "--", *given)
            == "".join(plain[path] for path in given).encode()
        )
        assert (
            run(directory, "sha256sum", "--tag", "--", *given)
            == "".join(tagged[path] for path in given).encode()
        )
        for lines, command in ((plain, "sha256sum"), (tagged, "sha256sum"), (tagged, "cksum")):
            text = "".join(lines.values()).encode()
            read = run(directory, command, "--check", "--strict", lines=text)
            assert read.count(b": OK\n") >= len(files)


@pytest.mark.parametrize("hash_type", PROGRAMS)
def test_each_program_reads_its_lines(hash_type: str, tmp_path: Path) -> None:
    files = written(tmp_path, ODD)
    carts = [listed(n, *item, hash_type) for n, item in enumerate(files.items())]
    lines = encode_lines(line_format(types_of(carts), None), carts)
    assert lines == encode_lines(line_format(types_of(carts), hash_type), carts)

    run(tmp_path, PROGRAMS[hash_type], "--check", "--strict", lines=lines)

    (tmp_path / "a b").write_bytes(b"other")
    command = [PROGRAMS[hash_type], "--check", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, input=lines, capture_output=True, check=False)
    assert done.returncode == 1 and b"\na b: FAILED\n" in b"\n" + done.stdout


def test_cksum_reads_tagged_lines_of_all_its_types(tmp_path: Path) -> None:
    kinds = [*PROGRAMS, "sm3"]
    files = written(tmp_path, ODD)
    carts = [listed(n, *item, kinds[n % len(kinds)]) for n, item in enumerate(files.items())]

    lines = encode_lines(line_format(types_of(carts), None), carts)

    read = run(tmp_path, "cksum", "--check", "--strict", lines=lines)
    assert read.count(b": OK\n") >= len(files)


@pytest.mark.parametrize(
    ("hash_type", "tag"),
    [("SHA2-256", "SHA256"), ("sha3_256", "SHA3-256"), ("blake2s", "BLAKE2S"),
     ("sha512_256", "SHA512-256"), ("RIPEMD160", "RIPEMD160"), ("md2", "MD2")],
)  # fmt: skip
def test_a_hash_has_one_tag(hash_type: str, tag: str) -> None:
    assert tagged_line("a", hash_type, "00") == f"{tag} (a) = 00\n"


def test_names_of_one_hash_are_one_type() -> None:
    files = [listed(0, "a", b"", "sha256"), listed(1, "b", b"", "SHA-256")]
    for wanted in (None, "sha256"):
        lines = encode_lines(line_format(types_of(files), wanted), files)
        assert [line.split(b"  ")[1] for line in lines.splitlines()] == [b"a", b"b"]


def test_a_second_hash_counts_for_a_type() -> None:
    files = [listed(0, "a", b"x", "sha256"), listed(1, "b", b"y", "md5", "sha256")]
    lines = encode_lines(line_format(types_of(files), "sha256"), files)
    sums = [hashlib.sha256(data).hexdigest() for data in (b"x", b"y")]
    assert lines.decode() == f"{sums[0]}  a\n{sums[1]}  b\n"
    # Without a type, the lines are those of the manifest.
    tagged = encode_lines(line_format(types_of(files), None), files).decode()
    assert [line.split(" ")[0] for line in tagged.splitlines()] == ["SHA256", "MD5"]


def test_a_file_without_the_hash_is_an_error() -> None:
    files = [
        listed(0, "a", b"", "sha1"),
        listed(1, "b", b"", "md5", "sha1"),
        listed(2, "c", b"", "md5"),
    ]
    message = "1 of 3 staged files have no sha1; the files have md5, sha1"
    with pytest.raises(NoCommonHash, match=message):
        line_format(types_of(files), "sha1")
    with pytest.raises(
        NoCommonHash, match="2 of 2 staged files have no hash; the files have no kn"
    ):
        line_format([HashTypes(2, "sha1", is_known=False, also_hash_type=None)], None)
    # A file may lose its hash between the query and its line.
    line = line_format(types_of(files[:2]), "sha1")
    with pytest.raises(NoCommonHash, match="'c' has no sha1"):
        line(files[2])


def test_no_files_have_no_lines_of_any_type() -> None:
    for wanted in (None, canonical_name("sha512")):
        assert encode_lines(line_format([], wanted), []) == b""


def test_paths_are_bytes_of_utf_8(tmp_path: Path) -> None:
    path = "é\U0001f600"
    (tmp_path / path).write_bytes(b"")
    expected = run(tmp_path, "sha256sum", os.fsdecode(path.encode()))
    assert plain_line(path, hashlib.sha256(b"").hexdigest()).encode() == expected
