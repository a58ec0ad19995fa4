"""File names of downloads: validation, and what real clients read from the header."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.http import parse_options_header

from cartd.errors import InvalidInput
from cartd.http.headers import check_filename, content_disposition, default_filename, top_folder
from tests.support.built_tars import build_tar

REFUSED = {
    "nothing": "",
    "only the suffix": ".tar",
    "here": ".",
    "parent": "..",
    "here as a folder": "..tar",
    "parent as a folder": "...tar",
    "slash": "a/b.tar",
    "absolute": "/etc/passwd",
    "backslash": "a\\b.tar",
    "NUL": "a\0.tar",
    "a line feed": "two\nlines.tar",
    "an injected header": "a\r\nSet-Cookie: b=c.tar",
    "a tab": "a\tb.tar",
    "DEL": "a\x7f.tar",
    "an escape sequence of a terminal": "a\x1b[2J.tar",
    "C1": "a\x85b.tar",
    "a line separator": "a\u2028b.tar",
    "a paragraph separator": "a\u2029b.tar",
    "an override of the direction": "photo\u202egpj.tar",
    "an isolated direction": "a\u2066b\u2069.tar",
    "too long": "x" * 256,
    "too long in UTF-8": "é" * 128,
    "lone surrogate": "a\ud800.tar",
}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED.keys())
def test_invalid_filename_is_rejected(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"^filename: "):
        check_filename(name)


NAMES = {
    # name: what a client reads that supports only filename="..."
    "data.tar": "data.tar",
    "data": "data",
    "my data (2).tar": "my data (2).tar",
    "it's.tar": "it's.tar",
    ".hidden.tar": ".hidden.tar",
    "-O.tar": "-O.tar",
    'say "hi".tar': "say _hi_.tar",
    '"quoted".tar': "_quoted_.tar",
    "a;b.tar": "a;b.tar",
    "a; filename=evil.tar": "a; filename=evil.tar",
    "run:3 a,b?c*d<e>|.tar": "run:3 a,b?c*d<e>|.tar",
    "100%.tar": "100%.tar",
    "100%zz.tar": "100%zz.tar",
    "a%2Fb%c3%a9.tar": "a_2Fb_c3_a9.tar",
    "\u00e4.tar": "a.tar",
    "\u00f6.tar": "o.tar",
    "o\u0308.tar": "o.tar",
    "x\u0301.tar": "x.tar",
    "\u00dcbung \u6587\u4ef6.tar": "Ubung __.tar",
    "na\u00efve \u2014 \u6587\u4ef6.tar": "naive _ __.tar",
    "\ufb01le \u2463 \u338f.tar": "file 4 kg.tar",
    "\u0301.tar": "_.tar",
    "\u2025": "_..",
    "\u2025\uff0ftmp\uff3cx.tar": ".._tmp_x.tar",
    "\uff05\uff12\uff26": "_2F",
    "\U0001f600.tar": "_.tar",
    "\u200fa.tar": "_a.tar",
}
CASES = pytest.mark.parametrize(("name", "plain"), NAMES.items(), ids=[ascii(n) for n in NAMES])


@CASES
def test_valid_filename_is_accepted(name: str, plain: str) -> None:
    assert check_filename(name) == name
    assert check_filename(plain) == plain


@CASES
def test_parser_of_filename_star_reads_the_exact_name(name: str, plain: str) -> None:
    disposition, parameters = parse_options_header(content_disposition(name))
    assert (disposition, parameters) == ("attachment", {"filename": name})


@CASES
def test_plain_filename_precedes_filename_star(name: str, plain: str) -> None:
    value = content_disposition(name)
    assert value.startswith(f'attachment; filename="{plain}"')
    assert ("; filename*=UTF-8''" in value) is (name != plain)


@CASES
def test_a_simple_parser_reads_the_plain_name(name: str, plain: str) -> None:
    header = f"Content-Disposition: {content_disposition(name)}\r\n\r\n"
    assert message_from_string(header).get_filename() == plain


@contextmanager
def server_sending(disposition: str) -> Iterator[str]:
    """Serve one response with this header, unmodified."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            head = f"HTTP/1.0 200 OK\r\nContent-Disposition: {disposition}\r\n\r\nbody"
            self.wfile.write(head.encode("latin-1"))

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/uid"
        finally:
            server.shutdown()
            thread.join()


@CASES
def test_curl_saves_it_under_the_plain_name(name: str, plain: str, tmp_path: Path) -> None:
    with server_sending(content_disposition(name)) as url:
        subprocess.run(["curl", "-sS", "--noproxy", "*", "-OJ", url], cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == [plain]
    assert (tmp_path / plain).read_bytes() == b"body"


@pytest.mark.parametrize("name", [name for name in NAMES if "%2F" not in name])
def test_wget_saves_it_under_the_exact_name(name: str, tmp_path: Path) -> None:
    with server_sending(content_disposition(name)) as url:
        subprocess.run(
            ["wget", "-q", "--content-disposition", "--restrict-file-names=nocontrol", url],
            cwd=tmp_path,
            env={**os.environ, "no_proxy": "127.0.0.1", "LC_ALL": "C.UTF-8"},
            check=True,
        )
    assert [path.name for path in tmp_path.iterdir()] == [name]


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("\ufdfa" * 85)
def test_no_name_breaks_out_of_its_header(name: str) -> None:
    value = content_disposition(name)
    matched = re.fullmatch(
        r"""attachment; filename="([^"\\/]+)"(; filename\*=UTF-8''[\w!#$&+.^`|~%-]*)?""", value
    )
    assert matched
    assert value.isascii() and value.isprintable()
    assert check_filename(matched[1]) == matched[1]
    assert not re.search("%[0-9A-Fa-f]{2}", matched[1])


@given(st.text())
def test_a_name_that_is_allowed_makes_a_tar(name: str) -> None:
    try:
        check_filename(name)
    except InvalidInput:
        return
    assert build_tar([], top=top_folder(name)).length == 10_240


@pytest.mark.parametrize(
    ("name", "folder"),
    [("data.tar", "data"), ("data", "data"), ("a.tar.tar", "a.tar"), ("a.tar.gz", "a.tar.gz")],
)
def test_the_folder_is_the_name_without_its_suffix(name: str, folder: str) -> None:
    assert top_folder(name) == folder


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_default_filename_is_the_time_in_utc(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert default_filename(1772600767.9) == "data_2026_03_04_05_06_07.tar"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert check_filename(default_filename(0)) == default_filename(0)
