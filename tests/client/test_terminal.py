"""What the command writes: foreign text, columns and wrapped text, numbers for people."""

from __future__ import annotations

import io
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cartd_client.cli.terminal import Terminal, count, duration, moment, safe, wrapped

ROWS = (["my-cart", "ready", "1,200 files", "412 GB"], ["数据", "error", "1 file", ""])


def shown(width: int | None) -> tuple[Terminal, io.StringIO]:
    """Return what writes to a terminal of this width, or to a file, and what it has written."""
    written = io.StringIO()
    with redirect_stdout(written), redirect_stderr(written):
        made = Terminal(colour=False)
    if width is not None:
        made.out = Console(file=written, width=width, force_terminal=True, color_system=None)
    return made, written


@given(st.text())
def test_escaped_text_has_nothing_that_a_terminal_obeys(text: str) -> None:
    categories = {unicodedata.category(letter) for letter in safe(text)}

    assert not categories & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(safe(text)) & set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2069")


def test_readable_text_is_written_as_it_is() -> None:
    assert safe("Übung 文件 (1).dat") == "Übung 文件 (1).dat"
    assert safe("a\x1b[31m\r\n\u202eb\udce9") == "a\\x1b[31m\\r\\n\\u202eb\\udce9"


def test_columns_fit_their_cells_and_wide_letters_count_twice() -> None:
    terminal, written = shown(None)
    terminal.table(("CART", "STATUS", "FILES", "SIZE"), ROWS)

    assert written.getvalue().splitlines() == [
        "CART     STATUS  FILES        SIZE",
        "my-cart  ready   1,200 files  412 GB",
        "数据     error   1 file",
    ]


def test_a_table_becomes_paragraphs_on_a_narrow_terminal() -> None:
    terminal, written = shown(30)
    terminal.table(("CART", "STATUS", "FILES", "SIZE"), ROWS)

    assert written.getvalue().splitlines() == [
        "my-cart",
        "  ready, 1,200 files, 412 GB",
        "数据",
        "  error, 1 file",
    ]


def test_facts_are_wrapped_below_each_other() -> None:
    terminal, written = shown(30)
    terminal.facts([("Status", "ready"), ("", "The cart is ready for download.")])

    assert written.getvalue().splitlines() == [
        "Status  ready",
        "        The cart is ready for",
        "        download.",
    ]


def test_text_is_wrapped_only_for_a_terminal() -> None:
    text = "http://127.0.0.1:8081/my-cart: the answer broke off"

    assert wrapped(text, None, 2) == ["  " + text]
    assert wrapped(text, 30, 0) == ["http://127.0.0.1:8081/my-cart:", "the answer broke off"]
    assert wrapped("a" * 50, 30, 0) == ["a" * 50], "the terminal folds it, and it can be copied"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_an_encoding_that_lacks_a_letter_does_not_end_the_command(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    with redirect_stdout(stream), redirect_stderr(stream):
        Terminal().line("run/文件.dat")
    stream.flush()

    assert stream.buffer.getvalue() == b"run/\\u6587\\u4ef6.dat\n"


def test_numbers_for_people() -> None:
    assert [count(1, "file"), count(1200, "file")] == ["1 file", "1,200 files"]
    spans = (0, 99.4, 100, 5999, 7500, 100_000, 172_799, 400_000, 432_000)
    assert [duration(seconds) for seconds in spans] == [
        *("0 s", "99 s", "2 min", "1 h 40 min", "2 h 5 min", "27 h 47 min", "2 d", "4 d 15 h"),
        "5 d",
    ]
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert moment(now - timedelta(hours=3), now).endswith(" (3 h ago)")
    assert "ago" not in moment(now + timedelta(hours=1), now), "the clocks may differ"
