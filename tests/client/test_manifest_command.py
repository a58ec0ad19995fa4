"""``cart manifest``: tables, lists and checksum files become manifests that the service accepts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cartd.manifest import parse
from tests.support.cart_command import CartCommand

SHA1 = hashlib.sha1(b"first").hexdigest()
SHA256 = hashlib.sha256(b"second").hexdigest()
WITH_SUMS = [
    {"id": "101", "path": "run 1/a.dat", "hashtype": "sha1", "hashsum": SHA1},
    {"id": "p/7", "path": "b.dat", "hashtype": "sha256", "hashsum": SHA256},
]
WITHOUT = [{**entry, "hashtype": "sha256", "hashsum": ""} for entry in WITH_SUMS]


@pytest.fixture
def cart(tmp_path: Path) -> CartCommand:
    return CartCommand(tmp_path, "http://127.0.0.1:1")


def made(cart: CartCommand, *arguments: str, stdin: str) -> list[dict[str, Any]]:
    """Return the entries of the manifest, which cartd must accept."""
    ended = cart("manifest", *arguments, stdin=stdin.encode())
    assert (ended.status, ended.err) == (0, "")
    parse(ended.out.encode())
    ended.conforming("manifest")
    entries: list[dict[str, Any]] = json.loads(ended.out)["fileids"]
    return entries


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (f"id,path,hashsum\n101,run 1/a.dat,{SHA1}\np/7,b.dat,{SHA256}\n", WITH_SUMS),
        (f"path\tid\thash\r\nrun 1/a.dat\t101\t{SHA1}\r\nb.dat\tp/7\t{SHA256}", WITH_SUMS),
        (f"\ufeff101,run 1/a.dat,{SHA1}\n\np/7,b.dat,{SHA256.upper()}\n", WITH_SUMS),
        ('101,"run 1/a.dat"\np/7,b.dat\n', WITHOUT),
        ("# ids and paths\n101  run 1/a.dat\np/7 b.dat\n", WITHOUT),
        ("101\trun 1/a.dat\np/7\tb.dat\n", WITHOUT),
    ],
    ids=["csv", "tsv", "csv without names", "quoted", "list", "tsv without names"],
)  # fmt: skip
def test_a_table_or_list_is_recognised(
    cart: CartCommand, text: str, entries: list[dict[str, Any]]
) -> None:
    assert made(cart, "-", stdin=text) == entries


@pytest.mark.parametrize(
    "text",
    [
        f"{SHA1}  run 1/a.dat\n{SHA256} *b.dat\n",
        f"SHA1 (run 1/a.dat) = {SHA1}\nSHA256 (b.dat) = {SHA256}\n",
        f"# sums\n\\{SHA1}  run 1/a.dat\r\n{SHA256}  ./b.dat",
    ],
    ids=["coreutils", "tagged", "escaped"],
)
def test_a_checksum_file_is_recognised_and_paths_become_ids(cart: CartCommand, text: str) -> None:
    entries = made(cart, "-", "--id-prefix", "p/", stdin=text)

    assert [entry["id"] for entry in entries] == ["p/run 1/a.dat", "p/b.dat"]
    assert [{**entry, "id": ""} for entry in entries] == [
        {**entry, "id": ""} for entry in WITH_SUMS
    ]


def test_the_suffix_counts_before_the_first_line(cart: CartCommand) -> None:
    (cart.directory / "files.tsv").write_text("a,b\tc,d\n")
    (cart.directory / "files.CSV").write_text("a\tb,c\td\n")

    for name, found in (("files.tsv", ("a,b", "c,d")), ("files.CSV", ("a\tb", "c\td"))):
        [entry] = json.loads(cart("manifest", name).out)["fileids"]
        assert (entry["id"], entry["path"]) == found


def test_the_other_keys_are_written(cart: CartCommand) -> None:
    options = ("--name", "Run 7", "--label", "a", "--label", "b", "--bag")
    ended = cart(
        "manifest", "-", *options, "--partial", "--max-failed", "5%", "-o", "my.json", "--json",
        stdin=b"1 a\n",
    )  # fmt: skip

    assert ended.conforming("manifest") == {"file": "my.json", "files": 1}
    text = (cart.directory / "my.json").read_bytes()
    parse(text)
    document = json.loads(text)
    assert {key: document[key] for key in document if key != "fileids"} == {
        "name": "Run 7",
        "labels": ["a", "b"],
        "format": "bag",
        "on_error": "partial",
        "max_failed": "5%",
    }
    assert cart("manifest", "-", "-o", "my.json", stdin=b"1 a\n").out == "1 file in my.json\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"101\n", "list.txt: line 1: expected an id and a path"),
        (b"1 a\n2 ../b\n", "list.txt: "),
        (b"1 a\n2 \xff\n", "list.txt: is not UTF-8"),
        (b"1,a,xyz\n", "list.txt: line 1: the hash sum is not hexadecimal"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(
    cart: CartCommand, text: bytes, said: str
) -> None:
    (cart.directory / "list.txt").write_bytes(text)
    (cart.directory / "my.json").write_text("old")
    ended = cart("manifest", "list.txt", "-o", "my.json")

    assert ended.status == 1
    assert ended.err.startswith(f"cart: {said}")
    assert (cart.directory / "my.json").read_text() == "old"
    assert sorted(path.name for path in cart.directory.iterdir()) == ["list.txt", "my.json"]
