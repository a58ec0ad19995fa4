"""The file of tokens as text: what a line may be, and what of a secret is in it."""

from __future__ import annotations

import re

import pytest

from cartd.auth.entries import Entry, check_name, parse
from cartd.auth.secret_hash import KEY_SIZE, NOBODYS, SALT_SIZE, SecretHash
from cartd.model import User

SALT = bytes(range(SALT_SIZE))
KEPT = SecretHash.of(b"a secret", SALT)
LINE = f"alice user {KEPT}"


def test_a_line_holds_a_name_a_role_and_a_hash_from_which_the_secret_can_be_checked() -> None:
    entry = Entry(User("alice", admin=True), KEPT)
    assert str(entry).startswith("alice admin $scrypt$ln=14,r=8,p=1$")
    [read] = parse(str(entry)).values()
    assert read == entry
    assert read.hash.matches(b"a secret")
    assert not read.hash.matches(b"a Secret")


def test_the_hash_is_the_one_that_others_compute() -> None:
    """The third vector of RFC 7914, section 12."""
    key = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    kept = SecretHash(14, 8, 1, b"SodiumChloride", key)
    assert SecretHash.parse(str(kept)) == kept
    assert kept.matches(b"pleaseletmein")


def test_neither_salt_nor_key_is_in_what_is_shown_of_a_hash() -> None:
    assert repr(KEPT) == "SecretHash(log_n=14, r=8, p=1)"


def test_the_hash_of_nobody_takes_as_long_as_a_new_one_and_matches_nothing() -> None:
    assert (NOBODYS.log_n, NOBODYS.r, NOBODYS.p) == (KEPT.log_n, KEPT.r, KEPT.p)
    assert len(NOBODYS.key) == KEY_SIZE
    assert not NOBODYS.matches(b"")


def test_comments_and_empty_lines_are_nobodys() -> None:
    text = f"# who\n\n  \n\t# more\n{LINE}\n  bob   admin\t{KEPT}  \n"
    assert {name: entry.user for name, entry in parse(text).items()} == {
        "alice": User("alice"),
        "bob": User("bob", admin=True),
    }
    assert parse("") == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("alice", "line 1: is not NAME ROLE HASH"),
        (f"# x\n\n{LINE} more", "line 3: is not NAME ROLE HASH"),
        (LINE.replace("user", "User"), "line 1: the role is neither user nor admin"),
        (f"{LINE}\n{LINE}", "line 2: alice is there twice"),
        (LINE.replace("alice", ".alice"), "line 1: a name is "),
        ("alice user secret", "line 1: the hash is not $scrypt$"),
        ("alice user $scrypt$ln=14,r=8,p=1$!$!", "line 1: the hash is not $scrypt$"),
    ],
)
def test_a_fault_is_told_with_its_line_and_shows_no_hash(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)) as told:
        parse(text)
    assert str(KEPT).rpartition("$")[2] not in str(told.value)


@pytest.mark.parametrize(
    "cost", ["ln=16,r=8,p=1", "ln=30,r=8,p=1", "ln=14,r=33,p=1", "ln=0,r=8,p=1", "ln=1,r=1,p=17"]
)
def test_a_hash_that_takes_too_much_to_check_is_refused(cost: str) -> None:
    with pytest.raises(ValueError, match="64 MiB"):
        SecretHash.parse(str(KEPT).replace("ln=14,r=8,p=1", cost))


def test_one_of_twice_the_usual_cost_is_not() -> None:
    assert SecretHash.parse(str(KEPT).replace("ln=14", "ln=15")).matches(b"") is False


@pytest.mark.parametrize("name", ["a", "A-b.c_d~e@f.org", "0", "x" * 255, "~", "_"])
def test_names_that_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "@a", "a b", "a:b", "a/b", "a\n", "\u00fc", "a\0", "x" * 256, "a,b"]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name is 1 to 255 of"):
        check_name(name)
