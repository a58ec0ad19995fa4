"""Names of downloads: which are allowed, and what real clients read from the header."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartd.disposition import check_filename, content_disposition, default_filename, top_folder
from cartd.errors import InvalidInput
from tests.laid_out import lay_out

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
    "too long": "x" * 256,
    "too long in UTF-8": "é" * 128,
    "lone surrogate": "a\ud800.tar",
}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_name_a_file_or_its_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"^filename: "):
        check_filename(name)


NAMES = {
    # name: what a client reads that knows nothing but filename="..."
    "data.tar": "data.tar",
    "data": "data",
    "my data (2).tar": "my data (2).tar",
    "it's.tar": "it's.tar",
    ".hidden.tar": ".hidden.tar",
    "-O.tar": "-O.tar",
    'say "hi".tar': "say _hi_.tar",
    '"quoted".tar': "_quoted_.tar",
    "a;b.tar": "a_b.tar",
    "a; filename=evil.tar": "a_ filename=evil.tar",
    "100%.tar": "100_.tar",
    "a%2Fb.tar": "a_2Fb.tar",
    "naïve — 文件.tar": "na_ve _ __.tar",
    "two\nlines.tar": "two_lines.tar",
    "a\r\nSet-Cookie: b=c.tar": "a__Set-Cookie_ b=c.tar",
    "bell\x07\x7f.tar": "bell__.tar",
    "C:*?<>|.tar": "C______.tar",
}
CASES = pytest.mark.parametrize(("name", "plain"), NAMES.items(), ids=[ascii(n) for n in NAMES])


@CASES
def test_such_names_are_allowed(name: str, plain: str) -> None:
    assert check_filename(name) == name
    assert check_filename(plain) == plain


@CASES
def test_the_email_parser_reads_the_exact_name(name: str, plain: str) -> None:
    header = f"Content-Disposition: {content_disposition(name)}\r\n\r\n"
    message = message_from_string(header, policy=policy.HTTP)
    assert message.get_content_disposition() == "attachment"
    assert message.get_filename() == name
    assert message.keys() == ["Content-Disposition"]


@CASES
def test_a_simple_parser_reads_the_plain_name(name: str, plain: str) -> None:
    header = f"Content-Disposition: {content_disposition(name)}\r\n\r\n"
    assert message_from_string(header).get_filename() == plain


@contextmanager
def server_that_says(disposition: str) -> Iterator[str]:
    """One answer with the header, written as it is."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            head = f"HTTP/1.0 200 OK\r\nContent-Disposition: {disposition}\r\n\r\nbody"
            self.wfile.write(head.encode("latin-1"))

        def log_message(self, *args: object) -> None:
            """Say nothing."""

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
    with server_that_says(content_disposition(name)) as url:
        subprocess.run(["curl", "-sS", "--noproxy", "*", "-OJ", url], cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == [plain]
    assert (tmp_path / plain).read_bytes() == b"body"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_name_gets_out_of_its_header(name: str) -> None:
    value = content_disposition(name)
    assert re.fullmatch(
        r"""attachment; (filename\*=UTF-8''[\w!#$&+.^`|~%-]*; )?filename="[^"\\%;]*\"""", value
    )
    assert value.isascii() and value.isprintable()


@settings(deadline=None)
@given(st.text())
def test_a_name_that_is_allowed_makes_a_tar(name: str) -> None:
    try:
        check_filename(name)
    except InvalidInput:
        return
    assert lay_out([], top=top_folder(name), created=0).length == 10_240


@pytest.mark.parametrize(
    ("name", "folder"),
    [("data.tar", "data"), ("data", "data"), ("a.tar.tar", "a.tar"), ("a.tar.gz", "a.tar.gz")],
)
def test_the_folder_is_the_name_without_its_suffix(name: str, folder: str) -> None:
    assert top_folder(name) == folder


def test_the_default_name_is_the_local_time() -> None:
    now = time.mktime((2026, 3, 4, 5, 6, 7, 0, 0, -1))
    assert default_filename(now + 0.9) == "data_2026_03_04_05_06_07.tar"
    assert check_filename(default_filename(now)) == default_filename(now)
