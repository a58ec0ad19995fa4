"""The format of the token file: valid lines, errors, and no secrets in them."""

from __future__ import annotations

import re

import pytest

from cartd.auth.tokens import (
    DUMMY_HASH,
    Entry,
    TokenHash,
    check_name,
    new_token,
    parse_entries,
    token_name,
)
from cartd.model import User

TOKEN = b"cartd_alice." + b"x" * 43  # not a new one: it stands in the names of tests
KEPT = TokenHash.of(TOKEN)
LINE = f"alice user {KEPT}"


def test_a_line_holds_name_role_and_token_hash() -> None:
    entry = Entry(User("alice", admin=True), KEPT)
    assert re.fullmatch("alice admin sha256:[0-9a-f]{64}", str(entry))
    [read] = parse_entries(str(entry)).values()
    assert read == entry
    assert read.hash.matches(TOKEN)
    assert not read.hash.matches(TOKEN[:-1] + (b"A" if TOKEN[-1:] != b"A" else b"B"))


def test_a_token_has_256_random_bits_and_a_scanner_prefix() -> None:
    tokens = {new_token("alice@example.org") for _ in range(100)}
    assert len(tokens) == 100
    for token in tokens:
        assert re.fullmatch(r"cartd_alice@example\.org\.[A-Za-z0-9_-]{43}", token)
        assert token_name(token.encode()) == b"alice@example.org"


def test_the_hash_is_a_plain_sha256() -> None:
    """NIST's example for SHA-256 (FIPS 180-4) of one block, "abc"."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert str(TokenHash.of(b"abc")) == f"sha256:{expected}"


@pytest.mark.parametrize("chosen", [b"hunter2", b"alice.hunter2", b"cartd_alice.hunter2", b""])
def test_a_password_hashed_by_hand_never_matches(chosen: bytes) -> None:
    assert not TokenHash.of(chosen).matches(chosen)


def test_a_hash_is_not_in_its_repr() -> None:
    assert repr(KEPT) == "TokenHash()"


def test_the_hash_of_an_unknown_name_matches_nothing() -> None:
    assert not DUMMY_HASH.matches(TOKEN)
    assert not DUMMY_HASH.matches(b"")


def test_comments_and_empty_lines_have_no_name() -> None:
    text = f"# who\n\n  \n\t# more\n{LINE}\n  bob   admin\t{KEPT}  \n"
    assert {name: entry.user for name, entry in parse_entries(text).items()} == {
        "alice": User("alice"),
        "bob": User("bob", admin=True),
    }
    assert parse_entries("") == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("alice", "line 1: must be NAME ROLE HASH"),
        (f"# x\n\n{LINE} more", "line 3: must be NAME ROLE HASH"),
        (LINE.replace("user", "User"), "line 1: the role must be user or admin"),
        (f"{LINE}\n{LINE}", "line 2: alice occurs twice"),
        (LINE.replace("alice", ".alice"), "line 1: a name has "),
        ("alice user secret", "line 1: the hash must be sha256:"),
        ("alice user sha256:", "line 1: the hash must be sha256:"),
        (LINE[:-1], "line 1: the hash must be sha256:"),
        (LINE + "0", "line 1: the hash must be sha256:"),
        (LINE.replace("sha256", "SHA256"), "line 1: the hash must be sha256:"),
        ("alice user $scrypt$ln=14,r=8,p=1$c2FsdA$a2V5", "line 1: the hash must be sha256:"),
    ],
    ids=lambda value: re.sub("[0-9a-f]{63,}", "HEX", value),  # the same in every process
)
def test_an_error_names_its_line_and_shows_no_hash(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)) as raised:
        parse_entries(text)
    assert KEPT.digest.hex()[:-1] not in str(raised.value)


@pytest.mark.parametrize("name", ["a", "A-b.c_d~e@f.org", "0", "x" * 255, "~", "_"])
def test_valid_user_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "@a", "a b", "a:b", "a/b", "a\n", "\u00fc", "a\0", "x" * 256, "a,b"]
)
def test_invalid_user_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name has 1 to 255 characters of"):
        check_name(name)
