"""What strangers wrote, put into messages: on one line, seen, and not too long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.errors import CartdError, InvalidInput
from cartd.text import clean, shown


@pytest.mark.parametrize(
    ("name", "as_shown"),
    [
        ("a/b c", "a/b c"),
        ("Ünï/日本", "Ünï/日本"),
        ("a\\b", "a\\b"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[2J\x07\x7f\x85", "\\x1b[2J\\x07\\x7f\\x85"),
        ("\u202egpj.exe\u2028", "\\u202egpj.exe\\u2028"),
        ("\ud800", "\\ud800"),
        ("'\n\"", "'\\n\""),
    ],
)
def test_a_name_is_shown_as_it_is_but_for_what_cannot_be_seen(name: str, as_shown: str) -> None:
    assert shown(name) == as_shown


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" no\x07such\n file\u202e ", "no such file"),
        ("", ""),
        ("\x1b" * 1000, ""),
        ("y" * 500, "y" * 200),
    ],
)
def test_prose_is_one_line_of_what_can_be_seen(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(st.text(), st.integers(1, 50))
def test_neither_holds_what_cannot_be_seen(text: str, limit: int) -> None:
    assert shown(text).isprintable() and clean(text, limit).isprintable()
    assert len(clean(text, limit)) <= limit


def test_no_error_says_what_cannot_be_seen() -> None:
    assert str(InvalidInput("no \x1b[2J\n")) == "no \\x1b[2J\\n"
    assert str(CartdError()) == ""
