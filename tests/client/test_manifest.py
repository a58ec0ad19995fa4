"""Manifests that the client reads and makes."""

from __future__ import annotations

import io
import json
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.manifest import parse
from cartd_client import FileEntry, Manifest, manifest
from cartd_client.errors import ExitStatus, InvalidManifest
from cartd_client.manifest import parse_checksums, parse_table, write_manifest

ENTRY = {"id": 7, "path": "/a//./b", "hashtype": "sha1", "hashsum": "DA39" * 10}

_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)
_entries = st.builds(
    lambda archive_id, path, hash_sum: {
        "id": archive_id,
        "path": f"d/{path}x",
        "hashtype": "md5",
        "hashsum": hash_sum,
    },
    st.integers(0) | _texts.map("n".__add__),
    st.lists(_texts.map(lambda text: text[:20]), min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "AB" * 16]),
)


@given(
    st.lists(_entries, max_size=5, unique_by=lambda entry: str(entry["path"])),
    st.dictionaries(st.text(), st.integers() | st.lists(st.text()), max_size=3),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 40),
)
def test_the_files_are_those_that_the_service_reads(
    entries: list[dict[str, object]],
    more: dict[str, object],
    indent: int | None,
    last: bool,
    block: int,
) -> None:
    more = {key: value for key, value in more.items() if key != "fileids"}
    document = {**more, "fileids": entries} if last else {"fileids": entries, **more}
    body = json.dumps(document, indent=indent, ensure_ascii=False).encode()
    read = Manifest(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "_BLOCK", block)
        files = list(read.files())
        assert read.members() == more
    try:
        # It has rules that the client leaves to it.
        posted = parse(json.dumps({"fileids": entries}).encode()).entries
    except Exception:
        return
    assert [(file.id, file.path, file.hash_type, file.hash_sum or "") for file in files] == [
        (entry.archive_id, entry.path, entry.hash_type, entry.hash_sum) for entry in posted
    ]
    assert [file.position for file in files] == list(range(len(files)))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "The manifest is not one: an object is expected"),
        (b"[]", "an object is expected"),
        (b"{", "key|is not JSON"),
        (b"{}", "fileids: is missing"),
        (b'{"fileids": {}}', "a list of files is expected"),
        (b'{"fileids": []', "the end of the object"),
        (b'{"fileids": [] "a"}', "a comma"),
        (b'{"fileids": []} x', "more after its end"),
        (b'{"fileids": [], "fileids": []}', "fileids: is there twice"),
        (b'{"fileids": [1]}', r"fileids\[0\]: is no object"),
        (b'{"fileids": [{"id": true}]}', r"fileids\[0\]\.id: "),
        (b'{"fileids": [' + json.dumps(ENTRY).encode() + b', {"id": 1}]}', r"\[1\]\.path: is miss"),
        (json.dumps({"fileids": [{**ENTRY, "path": "a/../b"}]}).encode(), r"path: has a .*'\.\.'"),
        (json.dumps({"fileids": [{**ENTRY, "path": "//."}]}).encode(), "path: names no file"),
        (json.dumps({"fileids": [{**ENTRY, "hashsum": "xy"}]}).encode(), "hashsum: .*hexadecimal"),
        (json.dumps({"fileids": [{**ENTRY, "hashtype": 1}]}).encode(), "hashtype: "),
        (b'{"fileids": "\xff"}', "is not UTF-8"),
        (b'{"fileids": [' + b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_wrong_manifest_is_an_error_with_its_place(text: bytes, fault: str) -> None:
    with pytest.raises(InvalidManifest, match=fault) as raised:
        list(Manifest(text).files())
    assert raised.value.exit_status == ExitStatus.ERROR
    assert raised.value.problem["type"] == "urn:cartd-client:invalid-manifest"


def test_a_large_manifest_is_read_and_written_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_BLOCK", 1 << 16)
    file = tmp_path / "manifest.json"
    count = 10_000
    tracemalloc.start()
    try:
        with file.open("wb") as out:
            entries = (
                FileEntry(at, str(at), f"d/{at}", hash_sum="0" * 64, hash_type="sha256")
                for at in range(count)
            )
            assert write_manifest(out, entries, labels=["large"]) == count
        read = Manifest.read(file)
        assert sum(1 for _ in read.files()) == count
        assert read.members() == {"labels": ["large"]}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < file.stat().st_size, "not even one copy of it"


@pytest.mark.parametrize(
    ("table", "delimiter"),
    [
        ('id,path,hashtype,hashsum\n101,run/a.dat,sha1,{0}\n\n102,"b,c",,\n', ","),
        ('# made by hand\n101,run/a.dat,{0}\n102,"b,c",\n', ","),
        ("101\trun/a.dat\tsha1\t{0}\r\n102\tb,c\t\t\r\n", "\t"),
        ("id\tfilename\tmd5\tsha1\tsize\n101\trun/a.dat\t\t{0}\t3\n102\tb,c\n", "\t"),
        ('Path,File_ID,checksum\nrun/a.dat,101,{0}\n"b,c",102,\n', ","),
    ],
)
def test_a_table_becomes_a_manifest(table: str, delimiter: str) -> None:
    hash_sum = "A9" * 20
    files = list(parse_table(io.StringIO(table.format(hash_sum)), delimiter))
    if "md5" in table:
        files[0] = FileEntry(0, "101", "run/a.dat", hash_type="sha1", hash_sum=hash_sum.lower())
    assert files == [
        FileEntry(0, "101", "run/a.dat", hash_type="sha1", hash_sum=hash_sum.lower()),
        FileEntry(1, "102", "b,c", hash_type="sha256", hash_sum=None),
    ]
    posted = parse(Manifest.make(files, labels=["made"]).open().read())
    assert (len(posted.entries), posted.labels) == (2, ("made",))


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("id,path\n,a\n", "line 2: has no id"),
        ("id,path\n1,..\n", r"line 2: .*'\.\.'"),
        ("id,path,hashsum\n1,a,abc\n", "line 2: no known hash has 3 digits"),
        ("id,path,hashsum\n1,a,xyz\n", "line 2: the hash sum is not hexadecimal"),
        ("id,path\n1,\n", "line 2: names no file"),
        ('id,path\n1,"' + "x" * 140_000, "line .*field"),
    ],
)
def test_a_wrong_table_is_an_error_with_its_line(table: str, fault: str) -> None:
    with pytest.raises(InvalidManifest, match=fault):
        list(parse_table(io.StringIO(table)))


def test_checksum_files_of_coreutils_become_manifests(tmp_path: Path) -> None:
    names = ["plain", "with space", "new\nline", "back\\slash", "é.dat", "d/deep"]
    (tmp_path / "d").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    for command in (["sha256sum"], ["sha1sum", "--tag"], ["md5sum", "-b"], ["b2sum", "--tag"]):
        done = subprocess.run([*command, *names], cwd=tmp_path, capture_output=True, check=True)
        lines = io.StringIO(done.stdout.decode(), newline="\n")
        files = list(parse_checksums(lines, "site/"))
        assert [file.path for file in files] == names
        assert [file.id for file in files] == [f"site/{name}" for name in names]
        posted = parse(Manifest.make(files).open().read()).entries
        assert [entry.hash_sum for entry in posted] == [file.hash_sum for file in files]
    with pytest.raises(InvalidManifest, match="line 2: is no line of a checksum file"):
        list(parse_checksums(["", "what is this"]))
