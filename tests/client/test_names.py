"""Names that may be paths, and names that would be one file."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd_client.names import Collisions, NameRules, UnsafeName

LINUX = NameRules()
MACOS = NameRules(ignores_case=True, normalizes=True)
WINDOWS = NameRules(ignores_case=True, windows=True)


@pytest.mark.parametrize(
    "name",
    [
        *("/a", "//a", "..", "a/..", "../a", "a/../../b", "./..", "", ".", "./", "a\0b"),
        *("x" * 256, "ä" * 128, "a/" * 501 + "a"),
    ],
)
def test_names_that_lead_elsewhere_are_rejected_everywhere(name: str) -> None:
    for rules in (LINUX, MACOS, WINDOWS):
        if not (rules.windows and "ä" in name):  # there, names have 255 characters
            with pytest.raises(UnsafeName):
                rules.parts(name)


@pytest.mark.parametrize(
    "name",
    [
        *("a\\..\\b", "C:\\a", "c:a", "a:stream", "a?", "a*", '"', "a|b", "<", ">", "a\x01"),
        *("a.", "a ", "a./b", "...", "CON", "con", "nul.txt", "a/AUX", "COM1", "lpt9.tar.gz"),
        *("COM¹", "CON .txt", "CONOUT$"),
    ],
)
def test_names_that_windows_has_not_are_rejected_there_only(name: str) -> None:
    with pytest.raises(UnsafeName):
        WINDOWS.parts(name)
    assert LINUX.parts(name) == tuple(name.split("/"))


def test_ordinary_names_are_paths() -> None:
    for rules in (LINUX, MACOS, WINDOWS):
        assert rules.parts("./a//b/./c d.txt") == ("a", "b", "c d.txt")
        assert rules.parts("console/ü/..a/.b") == ("console", "ü", "..a", ".b")


def colliding(rules: NameRules, *names: str) -> set[str]:
    collisions = Collisions(rules)
    for name in names:
        collisions.add(rules.parts(name))
    suspects = collisions.suspects()
    return {name for name in names if suspects.intersection(collisions.digests(rules.parts(name)))}


def test_names_collide_as_the_file_system_compares_them() -> None:
    nfc, nfd = (unicodedata.normalize(form, "b/é") for form in ("NFC", "NFD"))
    normalizing = NameRules(normalizes=True)
    assert colliding(LINUX, "a", "A", nfc, nfd, "c/d", "c/e") == set()
    assert colliding(MACOS, "a", "A", nfc, nfd, "c/d", "c/e") == {"a", "A", nfc, nfd}
    assert colliding(normalizing, "a", "A", nfc, nfd) == {nfc, nfd}
    assert colliding(WINDOWS, "x/a", "X/b", "y/a") == {"x/a", "X/b"}  # one directory, two spellings
    assert colliding(LINUX, "a/b", "c", "a") == {"a/b", "a"}  # a file and a directory
    assert colliding(WINDOWS, "A/b", "c", "a") == {"A/b", "a"}
    assert colliding(LINUX, "a", "b", "./a") == {"a", "./a"}


@given(st.lists(st.text("aA/.ée\u0301ßsS", min_size=1, max_size=6), max_size=8))
def test_names_without_collisions_make_a_tree(names: list[str]) -> None:
    for rules in (LINUX, MACOS):
        valid = []
        for name in names:
            try:
                valid.append(rules.parts(name))
            except UnsafeName:
                assert name.startswith("/") or ".." in name or not name.strip("./")
        collisions = Collisions(rules)
        files: set[str] = set()
        directories: dict[str, str] = {}
        collide = False
        for parts in valid:
            collisions.add(parts)
            path = rules.fold("/".join(parts))
            collide |= path in files
            files.add(path)
            for depth in range(1, len(parts)):
                above = "/".join(parts[:depth])
                collide |= directories.setdefault(rules.fold(above), above) != above
        collide |= bool(files & set(directories))
        assert bool(collisions.suspects()) == collide
