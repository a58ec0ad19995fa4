"""The layouts of a tar: any range of each is the slice of the whole, and readers see what it says.

The whole is read by tarfile, GNU tar and bsdtar, and bags are validated by bagit.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cartd.model import CartFile, FileStatus, HashTypes
from cartd.tar.bag import (
    ALGORITHMS,
    BAG_LAYOUT,
    BagInfo,
    BagLayout,
    bag_facts,
    common_algorithm,
    loaded_facts,
    spellings,
)
from cartd.tar.index import Lengths, TarIndex, TarIndexBuilder
from cartd.tar.layout import Layout, PlainLayout, Text, head_name
from cartd.tar.members import Members
from cartd.tar.missing import missing_json
from cartd.tar.virtual_tar import Literal, Slice, VirtualTar, segments_in
from tests.support.bags import check_files, read_manifest, validate

CREATED = 1_790_000_000.75
INFO = BagInfo("my-cart", CREATED, "A cart: of two lines", "Institute of Büroklammern")
MISSING = [
    CartFile(3, "17", "far away", "md5", "00" * 16, FileStatus.ERROR, "not there", "not-found"),
    CartFile(9, "18", "ü\n", "sha1", "", FileStatus.ERROR, "no answer", size=5),
]
LIST = Text(missing_json("my-cart", MISSING))

components = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1),
    st.sampled_from(
        ["a", "über", "100%", "%0A", "two\nlines", "\r", "b" * 94, "c" * 100, "d" * 250]
    ),
).filter(lambda name: name not in (".", ".."))
paths = st.lists(components, min_size=1, max_size=4).map("/".join)
contents = st.binary(max_size=1200) | st.sampled_from([b"", b"x" * 511, b"y" * 512])
trees = st.dictionaries(paths, contents, max_size=6).map(lambda tree: list(tree.items()))
tops = st.one_of(
    components.filter(lambda top: len(top.encode()) <= 255),
    st.builds(lambda letter, n: letter * n, st.sampled_from("aä"), st.integers(100, 127)),
    st.builds(lambda n: "t" * n, st.sampled_from([1, 95, 149, 150, 151, 155, 156, 242, 243, 255])),
)
algorithms = st.sampled_from(["sha512", "sha256", "md5"])
layouts = st.one_of(
    st.sampled_from([None, LIST]).map(lambda missing: PlainLayout(missing, int(CREATED))),
    st.builds(BagLayout, st.just(INFO), algorithms, st.sampled_from([None, LIST])),
)

Tree = Sequence[tuple[str, bytes]]


def algorithm_of(layout: Layout) -> str:
    return layout.algorithm if isinstance(layout, BagLayout) else "sha256"


def index_of(layout: Layout, tree: Tree, page: int = 5000) -> TarIndex:
    if isinstance(layout, BagLayout):  # for one use
        layout = BagLayout(layout.info, layout.algorithm, layout.missing)
    builder = TarIndexBuilder(layout)
    for first in range(0, len(tree), page):
        some = tree[first : first + page]
        sums = [hashlib.new(algorithm_of(layout), data).hexdigest() for _, data in some]
        builder.add(
            Members(
                [path for path, _ in some],
                [len(data) for _, data in some],
                [int(CREATED) + number for number in range(first, first + len(some))],
                ["md5"] * len(some),
                ["ab" * 16] * len(some),
                list(sums),
            )
        )
    return builder.index()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar_of(layout: Layout, tree: Tree, top: str, page: int = 5000) -> VirtualTar:
    index = index_of(layout, tree, page)
    return VirtualTar(top, index, index.shift(top))


def materialised(pieces: Any, files: dict[str, bytes]) -> bytes:
    out = []
    for piece in pieces:
        if isinstance(piece, Literal):
            assert piece.data
            out.append(piece.data)
        else:
            assert isinstance(piece, Slice) and piece.length
            assert piece.size == len(files[piece.path])
            out.append(files[piece.path][piece.offset : piece.offset + piece.length])
    return b"".join(out)


def whole_of(tar: VirtualTar, tree: Tree) -> bytes:
    return materialised(tar.segments(0, tar.length), dict(tree))


def files_in(whole: bytes) -> tuple[list[str], dict[str, bytes]]:
    """Return the names of all members in order, and the content of each file."""
    names, files = [], {}
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as tar:
        for info in tar:
            names.append(info.name)
            if info.isreg():
                content = tar.extractfile(info)
                assert content is not None
                files[info.name] = content.read()
    return names, files


@given(layouts, trees, tops, st.integers(1, 4), st.data())
@example(PlainLayout(LIST), [], "t" * 243, 1, None)
@example(BagLayout(INFO, "sha256", LIST), [("d/" * 47 + "f", b"1")], "t" * 151, 1, None)
@example(BagLayout(INFO, "sha256"), [("f" * 96, b"1")], "t" * 155, 1, None)
def test_any_range_of_any_layout_is_the_slice_of_the_whole(
    layout: Layout, tree: Tree, top: str, page: int, data: st.DataObject | None
) -> None:
    tar = tar_of(layout, tree, top, page)
    whole = whole_of(tar, tree)
    lengths = Lengths.loaded(tar.index.lengths.dumped())
    assert len(whole) == tar.length == lengths.length(top)
    files = files_in(whole)[1]
    missing = {head_name(top, ".missing.json")} if layout.missing else set()
    if isinstance(layout, BagLayout):
        check_files({n.removeprefix(f"{top}/"): c for n, c in files.items()}, layout.algorithm)
        payload = {f"{top}/data/{path}": content for path, content in tree}
        assert {name: c for name, c in files.items() if name.startswith(f"{top}/data/")} == payload
        if layout.missing:
            assert files[f"{top}/missing.json"] == LIST.data
    else:
        expected = {f"{top}/{path}": content for path, content in tree}
        assert files == expected | dict.fromkeys(missing, LIST.data)
    if data is not None:
        start = data.draw(st.integers(0, tar.length))
        stop = data.draw(st.integers(start, tar.length))
        assert materialised(tar.segments(start, stop), dict(tree)) == whole[start:stop]


@given(trees, tops, tops, st.data())
def test_a_range_of_one_layout_is_read_from_a_tar_of_another(
    tree: Tree, top: str, other: str, data: st.DataObject
) -> None:
    both = [tar_of(layout, tree, top) for layout in (PlainLayout(), BagLayout(INFO, "sha1"))]
    for stored, index in (both, both[::-1]):
        tar = VirtualTar(other, index.index, index.index.shift(other))
        start = data.draw(st.integers(0, tar.length))
        stop = data.draw(st.integers(start, tar.length))
        pieces = segments_in(stored, "x.tar", tar, start, stop)
        found = materialised(pieces, {"x.tar": whole_of(stored, tree)})
        assert found == whole_of(tar, tree)[start:stop]


def test_every_small_range_of_a_bag_is_the_slice_of_the_whole() -> None:
    tree = [("a/b", b"1" * 700), ("%\n\r", b""), ("ü", b"2" * 512)]
    tar = tar_of(BagLayout(INFO, "md5", LIST), tree, "top", page=2)
    whole = whole_of(tar, tree)
    edges = sorted(
        {min(max(at + d, 0), len(whole)) for at in range(0, 10_000, 512) for d in (-1, 0, 9)}
    )
    for place, start in enumerate(edges):
        for stop in edges[place:]:
            assert materialised(tar.segments(start, stop), dict(tree)) == whole[start:stop]


def test_the_members_of_each_layout_stand_in_their_order() -> None:
    tree = [("a/b", b"1"), ("c", b"2")]
    names, _ = files_in(whole_of(tar_of(BagLayout(INFO, "sha512", LIST), tree, "top"), tree))
    assert names == [
        "top",
        *(f"top/{name}.txt" for name in ("bagit", "bag-info")),
        "top/missing.json",
        *(f"top/{name}-sha512.txt" for name in ("manifest", "tagmanifest")),
        *("top/data", "top/data/a", "top/data/a/b", "top/data/c"),
    ]
    names, _ = files_in(whole_of(tar_of(PlainLayout(LIST), tree, "top"), tree))
    assert names == ["top.missing.json", "top", "top/a", "top/a/b", "top/c"]


def test_the_list_of_missing_files_has_what_is_known_of_them() -> None:
    assert json.loads(LIST.data) == {
        "uid": "my-cart",
        "files": [
            {
                "position": 3,
                "id": "17",
                "path": "far away",
                "hashtype": "md5",
                "hashsum": "00" * 16,
                "problem": "not-found",
                "error": "not there",
            },
            {
                "position": 9,
                "id": "18",
                "path": "ü\n",
                "hashtype": "sha1",
                "size": 5,
                "error": "no answer",
            },
        ],
    }


@given(st.one_of(tops, st.integers(229, 255).map(lambda n: "ä" * (n // 2) + "t" * (n % 2))))
@example("a" * 229 + ".missing.json")
@example("a" * 242 + ".missing.json")
@example("a" * 242)
def test_the_list_of_missing_files_collides_with_no_top_folder(top: str) -> None:
    name = head_name(top, ".missing.json")
    assert name != top
    assert len(name.encode()) <= 255
    assert name.endswith(".missing.json")
    assert len(top.encode()) > 242 or name == f"{top}.missing.json"


TREE = [
    ("readme.txt", b"read me\n" * 100),
    ("run 1/empty", b""),
    ("run 1/" + "long" * 30 + ".dat", b"x" * 513),
    ("/".join(["d" * 60] * 5) + "/deep.bin", b"y" * 70_000),
    ("über/naïve — 文件.txt", b"z" * 512),
    ("quote \"' ;$(x) *", b"q"),
]
ENCODED = [("two\nlines", b"1"), ("carriage\rreturn", b"2")]
PERCENT = [("100%", b"1"), ("%0A", b"2"), ("%250d", b"3")]


def unpacked(tar: VirtualTar, tree: Tree, directory: Path, program: str = "tar") -> Path:
    path = directory / "bag.tar"
    path.write_bytes(whole_of(tar, tree))
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [program, "-xf", path, "-C", directory], env=env, capture_output=True, check=True
    )
    assert not done.stderr
    return directory / tar.top


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bagit_and_checksum_programs_validate_each_bag(
    algorithm: str, program: str, tmp_path: Path
) -> None:
    tar = tar_of(BagLayout(INFO, algorithm, LIST), TREE, "my cart")
    bag = unpacked(tar, TREE, tmp_path, program)
    info = validate(bag).info
    del info["Payload-Oxum"]
    assert info == {
        "Source-Organization": "Institute of Büroklammern",
        "External-Identifier": "my-cart",
        "External-Description": "A cart: of two lines",
        "Bagging-Date": "2026-09-21",
        "Bag-Software-Agent": "cartd",
    }
    if (tool := {"blake2b": "b2sum"}.get(algorithm, f"{algorithm}sum")) != "blake2ssum":
        for manifest in ("manifest", "tagmanifest"):
            checked = [tool, "--check", "--strict", f"{manifest}-{algorithm}.txt"]
            subprocess.run(checked, cwd=bag, capture_output=True, check=True)
    assert (bag / "bagit.txt").stat().st_mtime == int(CREATED)


def test_an_empty_cart_is_a_valid_bag(tmp_path: Path) -> None:
    bag = unpacked(tar_of(BagLayout(INFO, "sha512"), [], "empty"), [], tmp_path)
    assert (bag / "data").is_dir()
    assert (bag / "manifest-sha512.txt").read_bytes() == b""
    validate(bag)


def test_bagit_reads_encoded_line_breaks(tmp_path: Path) -> None:
    bag = unpacked(tar_of(BagLayout(INFO, "sha256"), ENCODED, "bag"), ENCODED, tmp_path)
    assert set(validate(bag).payload_entries()) == {f"data/{path}" for path, _ in ENCODED}


def test_a_percent_sign_is_encoded_as_the_rfc_says(tmp_path: Path) -> None:
    # bagit.py 1.9 encodes and decodes only line breaks, so that it cannot validate this.
    bag = unpacked(tar_of(BagLayout(INFO, "sha256"), PERCENT, "bag"), PERCENT, tmp_path)
    manifest = (bag / "manifest-sha256.txt").read_bytes()
    assert re.findall(rb"data/.*", manifest) == [b"data/100%25", b"data/%250A", b"data/%25250d"]
    assert set(read_manifest(manifest)) == {f"data/{path}" for path, _ in PERCENT}


def test_bag_info_has_one_line_for_each_value() -> None:
    info = BagInfo("a\nPayload-Oxum: 1.1\r\u2028b", 5.0)
    tar = tar_of(BagLayout(info, "md5"), [], "t")
    text = files_in(whole_of(tar, []))[1]["t/bag-info.txt"].decode()
    assert text.splitlines() == [
        "External-Identifier: a Payload-Oxum: 1.1  b",
        "Bagging-Date: 1970-01-01",
        "Payload-Oxum: 0.0",
        "Bag-Software-Agent: cartd",
    ]


def test_100_000_files_have_a_bag_whose_manifest_is_not_in_memory() -> None:
    tree = [(f"d{number // 1000}/{number}%.dat", b"%d" % number) for number in range(100_000)]
    tar = tar_of(BagLayout(INFO, "sha256"), tree, "top")
    manifest = next(m.content for m in tar.index.head if m.suffix == "/manifest-sha256.txt")
    assert manifest.weight < 33 * len(tree) + 100_000
    assert max(map(len, manifest.read(0, manifest.size))) < 50_000
    written = b"".join(manifest.read(0, manifest.size))
    lines = (f"{sha256(data)}  data/{path.replace('%', '%25')}\n" for path, data in tree)
    assert written == "".join(lines).encode()
    whole, files = whole_of(tar, tree), dict(tree)
    for start in range(0, tar.length, tar.length // 50):
        stop = min(start + 9000, tar.length)
        assert materialised(tar.segments(start, stop), files) == whole[start:stop]


def test_a_far_range_is_found_without_reading_what_precedes_it() -> None:
    tree = [(f"{number}", b"") for number in range(10_000)]
    tar = tar_of(BagLayout(INFO, "sha256"), tree, "top")
    [last] = [m.content for m in tar.index.head if m.suffix.startswith("/manifest")]
    assert b"".join(last.read(last.size - 10, last.size)) == b"data/9999\n"
    assert len(list(last.read(last.size - 10, last.size))) == 1


def kind(first: str, second: str | None = None, *, known: bool = True) -> HashTypes:
    return HashTypes(1, first, known, second)


@pytest.mark.parametrize(
    ("kinds", "algorithm"),
    [
        ([], "sha512"),
        ([kind("md5")], "md5"),
        ([kind("md5"), kind("MD5")], "md5"),
        ([kind("md5"), kind("sha1", "md5")], "md5"),
        ([kind("sha1", "sha256"), kind("sha256")], "sha256"),
        ([kind("sha1", "sha512"), kind("sha512", "sha1")], "sha512"),
        ([kind("md5", known=False), kind("sha1")], None),
        ([kind("md5"), kind("sha1")], None),
        ([kind("sha3_256")], None),
    ],
)
def test_the_best_common_hash_is_used(kinds: list[HashTypes], algorithm: str | None) -> None:
    if algorithm is None:
        with pytest.raises(Exception, match="no hash by one common algorithm") as raised:
            common_algorithm(kinds)
        assert raised.type.__name__ == "NoCommonHash"
    else:
        assert common_algorithm(kinds) == algorithm


def test_an_algorithm_has_several_names() -> None:
    assert spellings([kind("SHA1", "SHA2-256"), kind("sha256")], "sha256") == {"SHA2-256", "sha256"}


def test_sums_of_another_algorithm_are_refused() -> None:
    builder = TarIndexBuilder(BagLayout(INFO, "sha256"))
    refused: list[list[str | None]] = [[], ["ab" * 16], [None]]
    for sums in refused:
        with pytest.raises(ValueError, match="hashes"):
            builder.add(Members(["f"], [1], [1], ["md5"], [""], sums))


BAGS: dict[str, Layout] = {
    "the bag": BagLayout(INFO, "sha256"),
    "another algorithm": BagLayout(INFO, "sha512"),
    "missing files": BagLayout(INFO, "sha256", LIST),
    "another organization": BagLayout(BagInfo("my-cart", CREATED, INFO.name, ""), "sha256"),
    "another date": BagLayout(BagInfo("my-cart", 5.0, INFO.name, INFO.organization), "sha256"),
    "plain": PlainLayout(),
    "plain with missing files": PlainLayout(LIST, 7),
    "plain with other missing files": PlainLayout(Text(b"{}"), 7),
}


def test_other_bytes_have_another_etag() -> None:
    tars = {name: tar_of(layout, TREE, "top") for name, layout in BAGS.items()}
    assert len({tar.etag for tar in tars.values()}) == len(BAGS)
    assert len({whole_of(tar, TREE) for tar in tars.values()}) == len(BAGS)
    same = tars["the bag"].index.source == tars["plain"].index.source
    assert same and tars["plain"].index.source != tars["missing files"].index.source
    again = tar_of(BAGS["the bag"], TREE, "top", page=2)
    assert again.etag == tars["the bag"].etag


def test_recorded_facts_describe_the_bag_and_keep_its_date() -> None:
    tar = tar_of(BAGS["the bag"], TREE, "top")
    facts = bag_facts(tar.index, 77.25)
    loaded = loaded_facts(facts.dumped())
    assert loaded == facts
    assert (loaded.length("top"), loaded.etag("top")) == (tar.length, tar.etag)
    assert (facts.since, facts.algorithm, facts.layout) == (77.25, "sha256", BAG_LAYOUT)
    assert bag_facts(tar.index, 99.0, facts.dumped()) == facts
    other = tar_of(BAGS["another algorithm"], TREE, "top").index
    assert bag_facts(other, 99.0, facts.dumped()).since == 99.0
    assert bag_facts(other, 77.5, facts.dumped()).since == 78.0  # in no second of two bags
    assert loaded_facts(None) is loaded_facts("{}") is loaded_facts("[") is None


GOLDEN = {"bag-1": "d73e5baa232c796664f3ecf3d35a9b8c55b6d3997cd19cfa9a6c7cde843ddd79"}
"""By version of the layout, the digest of the bytes and the ETag of a bag."""


def test_a_changed_byte_of_a_bag_needs_a_new_layout_version() -> None:
    tar = tar_of(BagLayout(INFO, "sha256", LIST), [*TREE, *ENCODED, *PERCENT], "my cart")
    whole = whole_of(tar, [*TREE, *ENCODED, *PERCENT])
    assert hashlib.sha256(tar.etag.encode() + whole).hexdigest() == GOLDEN[BAG_LAYOUT]
