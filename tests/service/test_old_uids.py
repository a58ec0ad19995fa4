"""Carts of Pacifica Cartd with uids that new carts cannot have: usable and harmless."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.pacifica_schema import add_cart, begin, make_tables
from tests.support.running_cartd import (
    Answer,
    RunningCartd,
    manifest,
    running_cartd,
    unpacked,
    wait_for,
)
from tests.support.served_directory import served_directory
from tests.support.wire import WireAnswer, ask, assert_is_error

OLD = {
    "a space": "w w", "an accent": "Übung", "letters": "\u65e5\u672c", "a point": ".hidden",
    "a dash": "-rf", "only a dash": "-", "a semicolon": "a;b", "a percent sign": "a%2Fb",
    "a line": "x\ny", "a header": "x\r\nX-Evil: 1", "a control sequence": "\x1b[2J",
    "a line separator": "x\u2028y", "a quote": 'q"q', "a backslash": "back\\slash", "a star": "*",
    "a question mark": "a?b", "a hash": "#", "braces": "{id} {}", "255 letters": "u" * 255,
    "a formatted number": "%s%n", "spaces around": " a ",
}  # fmt: skip
NOWHERE = {"the directory above": "..", "the directory itself": "."}
"""Uids that cannot be directory names, though Pacifica's database may contain them."""
LOST = {"a line": "lost\ny", "a line separator": "lost\u2028y", "a sequence": "lost\x1b[2J"}
"""Uids of carts whose files are missing on the volume, which is logged."""
DATA = b"what was staged"
BAD_UID = "uid: must be 1 to 255 characters of A-Z a-z 0-9 . _ ~ - and not begin with . or -"
NOT_THERE = "The cart does not exist or has already been deleted"
each_old = pytest.mark.parametrize("uid", OLD.values(), ids=OLD.keys())


@pytest.fixture(scope="module")
def cartd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCartd]:
    """The service with the carts of OLD, and those of LOST without their files."""
    with cartd_of_pacifica(tmp_path_factory.mktemp("old"), OLD.values(), LOST.values()) as running:
        yield running


@pytest.fixture(scope="module")
def quiet_cartd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCartd]:
    """A service whose volume no other test changes, not even by a cart that is being restaged."""
    directory = tmp_path_factory.mktemp("quiet")
    with cartd_of_pacifica(directory, OLD.values(), NOWHERE.values()) as running:
        yield running


@contextmanager
def cartd_of_pacifica(
    directory: Path, present: Collection[str], absent: Collection[str]
) -> Iterator[RunningCartd]:
    """The service with a database of Pacifica that has one ready cart for each uid.

    The volume has only the files of those in ``present``.
    """
    database = f"sqlite:///{directory / 'db.sqlite3'}"
    with (
        served_directory(directory) as archive,
        running_cartd(
            directory / "cartd", archive=archive.url, database=database, started=False
        ) as running,
    ):
        with begin(database) as connection:
            make_tables(connection, "2.0")
            for number, uid in enumerate([*present, *absent], 1):
                tree = running.volume / str(number) / uid
                add_cart(
                    connection,
                    number,
                    "ready",
                    uid=uid,
                    bundle_path=str(tree),
                    files=[
                        {
                            "file_name": "none",
                            "bundle_path": "a",
                            "hash_value": hashlib.sha1(DATA).hexdigest(),
                        }
                    ],
                )
                if uid in present:
                    tree.mkdir(parents=True)
                    (tree / "a").write_bytes(DATA)
        archive.put("none", DATA)
        running.run("cartd-cmd", "dbsync")
        running.start()
        yield running
        assert running.terminate() == 0
        assert_no_unexpected_errors(running.log)


def head(cartd: RunningCartd, uid: str) -> WireAnswer:
    target = quote(uid, safe="")
    return ask(
        cartd.port, f"HEAD /{target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), to_head=True
    )


def request(cartd: RunningCartd, method: str, uid: str, body: bytes | None = None) -> Answer:
    return cartd.request(method, f"/{quote(uid, safe='')}", body)


@each_old
def test_cart_with_an_old_uid_can_be_used_and_deleted(cartd: RunningCartd, uid: str) -> None:
    reply = head(cartd, uid)
    assert (reply.status, reply.headers["x-pacifica-status"]) == (204, "ready")
    got = request(cartd, "GET", uid)
    assert (got.status, unpacked(got.body)) == (200, {"a": DATA})
    deleted = request(cartd, "DELETE", uid)
    assert (deleted.status, deleted.json) == (200, {"message": "Cart Deleted Successfully"})
    gone = head(cartd, uid)
    assert (gone.status, gone.headers["x-pacifica-status"]) == (404, "error")
    assert gone.headers["x-pacifica-message"].startswith("No cart with uid ")
    assert "x-evil" not in gone.headers
    assert_is_error(request(cartd, "DELETE", uid), 404, "Not Found")


@each_old
def test_a_new_cart_must_have_a_uid_of_the_new_rule(cartd: RunningCartd, uid: str) -> None:
    if uid == "u" * 255:
        return
    assert_is_error(request(cartd, "POST", uid, manifest([])), 400, BAD_UID)


@pytest.mark.parametrize("uid", NOWHERE.values(), ids=NOWHERE.keys())
def test_old_uid_that_is_no_file_name_causes_no_error(quiet_cartd: RunningCartd, uid: str) -> None:
    before = sorted(quiet_cartd.volume.rglob("*"))
    port = quiet_cartd.port
    raw = f" /{uid} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    assert ask(port, b"HEAD" + raw, to_head=True).status == 204
    assert ask(port, b"GET" + raw).status == 202
    wait_for(lambda: ask(port, b"HEAD" + raw, to_head=True).status == 500)
    assert ask(port, b"GET" + raw).json["message"] == "uid: cannot be the name of a directory"
    assert ask(port, b"DELETE" + raw).status == 200
    assert ask(port, b"GET" + raw).status == 404
    assert sorted(quiet_cartd.volume.rglob("*")) == before


@pytest.mark.parametrize("uid", ["nobody's", "x\0y", "v" * 256, "w" * 6000, "\ud7ff", "'; DROP--"])
def test_a_uid_that_no_cart_has_is_not_found(cartd: RunningCartd, uid: str) -> None:
    reply = head(cartd, uid)
    assert (reply.status, reply.headers["x-pacifica-status"]) == (404, "error")
    assert len(reply.headers["x-pacifica-message"]) < 2000
    assert_is_error(request(cartd, "GET", uid), 404, NOT_THERE)
    assert_is_error(request(cartd, "DELETE", uid), 404, "Not Found")


@pytest.mark.parametrize("uid", LOST.values(), ids=LOST.keys())
def test_old_uid_is_escaped_in_the_log(cartd: RunningCartd, uid: str) -> None:
    shown = uid.replace("\n", r"\n").replace("\u2028", r"\u2028").replace("\x1b", r"\x1b")
    assert request(cartd, "GET", uid).status == 202
    lines = [line for line in cartd.log.split("\n") if f"({shown}): restaging" in line]
    assert len(lines) == 1
    assert uid not in cartd.log
