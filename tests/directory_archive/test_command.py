"""``twistd -n cartd-archive`` from a shell, and the commands of its page."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cartd.directory_archive.service import Options
from tests.support import preloaded
from tests.support.real_archive import real_archive

PAGE = Path(__file__).parents[2] / "docs/directory-archive.md"
TWISTD = (str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "cartd-archive")


@contextmanager
def started(root: Path, *options: str) -> Iterator[str]:
    """Start the service on a free port and yield its URL; SIGTERM must stop it cleanly."""
    process = subprocess.Popen(
        [*TWISTD, "--root", str(root), "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root.parent,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            found = re.search(r"ArchiveSite starting on (\d+)", line)
            if found:
                break
        else:
            raise AssertionError("it did not start")
        yield f"http://127.0.0.1:{found[1]}/"
        process.send_signal(signal.SIGTERM)
        log = process.stdout.read()
        assert "Traceback" not in log
        assert "Server Shut Down" in log
        assert process.wait(10) == -signal.SIGTERM  # twistd ends by the signal that it was sent
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def shell(command: str, directory: Path) -> str:
    done = subprocess.run(command, shell=True, cwd=directory, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def documented_commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_of_its_page_works_as_documented(tmp_path: Path) -> None:
    make, start, *curls = documented_commands(PAGE)
    assert shell(make, tmp_path) == ""
    assert start == "twistd -n cartd-archive --root archive --port 8080"
    (tmp_path / "hello.txt").write_text("Hello there\n")
    with started(tmp_path / "archive") as url:
        here = [command.replace("http://127.0.0.1:8080/", url) for command in curls]
        said = [shell(command.replace("curl", "curl -sS", 1), tmp_path) for command in here]
    assert said[0] == '{"message": "File added to archive", "total_bytes": 12}'
    documented = re.findall(r"^[A-Z][\w-]+: .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    headers = dict(line.split(": ", 1) for line in said[1].splitlines()[1:] if line)
    for line in documented:
        name, value = line.split(": ", 1)
        # The tag covers the time of the last change, too.
        assert name in headers if name in ("X-Pacifica-Ctime", "ETag") else headers[name] == value
    assert said[2:5] == ["Hello there\n", "Hello", "Hello"]
    assert said[5] == '{"message": "File was staged", "file": "texts/hello"}'
    assert said[6:] == [
        '{"message": "File Moved Successfully"}',
        "",
        '{"message": "Pacifica Archive Interface Up and Running"}',
        '{"message": "File added to archive", "total_bytes": 12}',
    ]
    for answer in (said[0], *said[5:7], said[8]):
        assert answer in PAGE.read_text(encoding="utf-8")


REFUSED = [
    ([], "--root DIR is needed"),
    (["--root", "missing"], "--root: missing is not a directory"),
    (["--root", ".", "--port", "x"], "--port: 0 to 65535, not 'x'"),
    (["--root", ".", "--port", "65536"], "--port: 0 to 65535, not '65536'"),
    (["--root", ".", "--tape-delay", "-1"], "--tape-delay: 0 or more seconds, not '-1'"),
    (["--root", ".", "--tape-delay", "nan"], "--tape-delay: 0 or more seconds, not 'nan'"),
    (["--root", ".", "--tape-rate", "0"], "--tape-rate: more than 0 files a second, not '0'"),
    (["--root", ".", "--tape-rate", "1"], "--tape-rate has no effect without --tape-delay"),
    (["--root", ".", "--frobnicate"], "option --frobnicate not recognized"),
    (["--root", ".", "more"], "unexpected argument: more"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED, ids=[r[1][:24] for r in REFUSED])
def test_an_option_that_cannot_be_used_is_refused_in_one_line(
    arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        Options().parseOptions(arguments)
    assert refused.value.code == f"cartd-archive: {reason}"


def refused_start(*options: str) -> subprocess.CompletedProcess[str]:
    done = preloaded.run([*TWISTD, *options], cwd=Path.cwd(), env=os.environ)
    assert done.returncode == 1
    return done


def test_a_refused_start_has_status_1_and_one_line() -> None:
    refused = refused_start("--root", "missing")
    assert refused.stderr == "cartd-archive: --root: missing is not a directory\n"
    assert refused.stdout == ""


def test_a_port_in_use_stops_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = refused_start("--root", str(tmp_path), "--port", str(port))
    last = refused.stdout.splitlines()[-1]  # twistd's log has begun and takes what goes to stderr
    assert "cartd-archive: " in last
    assert f"127.0.0.1:{port}" in last


def test_every_option_is_on_its_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, *_ in Options.optParameters:
        assert f"| `--{name} " in page
    for name, *_ in Options.optFlags:
        assert f"| `--{name}` " in page


def test_stale_incoming_files_are_swept(tmp_path: Path) -> None:
    incoming = tmp_path / "archive/.cartd-archive"
    incoming.mkdir(parents=True)
    (incoming / "old").touch()
    (incoming / "young").touch()
    os.utime(incoming / "old", (1, 1))
    with started(tmp_path / "archive") as url:
        shell(f"curl -sS {url}", tmp_path)
        assert [part.name for part in incoming.iterdir()] == ["young"]


EXCHANGES = [
    "-H Expect: -T file URL5",
    "-I URL5",
    "URL5",
    "'URL5?byte_range=2-4'",
    "-X POST -d '' URL5",
    "URL",
    "-X DELETE URL5",
]
TRANSPORT = {"server", "date", "transfer-encoding", "connection", "content-length", "allow"}
MORE = {"cache-control", "x-pacifica-message", "etag", "accept-ranges", "last-modified"}
"""Headers that Pacifica's archive does not send."""


def exchanges(url: str, directory: Path) -> list[tuple[str, set[str], str]]:
    """Return status, header names, and the body without the parts that may differ."""
    answers = []
    for arguments in EXCHANGES:
        said = shell(f"curl -sS -i {arguments.replace('URL', url)}", directory)
        head, _, body = said.replace("\r\n", "\n").partition("\n\n")
        status, *lines = head.splitlines()
        names = {line.partition(":")[0].lower() for line in lines} - TRANSPORT
        answers.append((status.split()[1], names, body))
    return answers


def test_it_answers_as_pacificas_own_service_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("some bytes")
    with real_archive(tmp_path / "real") as real:
        theirs = exchanges(real.url, tmp_path)
    root = tmp_path / "archive"
    root.mkdir()
    with started(root) as url:
        ours = exchanges(url, tmp_path)
    for request, (status, names, body), (status_, names_, body_) in zip(
        EXCHANGES, ours, theirs, strict=True
    ):
        assert status == status_, request
        assert names_ <= names <= names_ | MORE, request
        assert body == body_ or json.loads(body) == json.loads(body_), request
