"""Redirects of the archive: followed within the same server only."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.support.archive_client_fixture import DATA, ClientUnderTest, failure_of
from tests.support.archive_faults import redirect

pytest_plugins = ("tests.support.archive_fixtures",)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest_twisted.ensureDeferred
async def test_a_redirect_within_the_same_server_is_followed(
    asked: ClientUnderTest, method: str, code: int
) -> None:
    asked.faulty.fault("moved", redirect("/7", code))
    asked.faulty.put("moved", b"never seen")
    if method == "HEAD":
        assert (await asked.archive.status("moved")).size == len(DATA)
    else:
        assert await asked.fetch("moved") == DATA
    assert [(r.method, r.target) for r in asked.faulty.requests][1:] == [(method, "/7")]
    assert asked.faulty.total_connections == 1


@pytest_twisted.ensureDeferred
async def test_a_redirected_post_stays_a_post(
    asked: ClientUnderTest,
) -> None:
    asked.faulty.fault("moved", redirect("/7", 307))
    await asked.archive.stage("moved")
    assert len(asked.faulty.seen("POST", "7")) == 1
    asked.faulty.fault("gone", redirect("/7", 303))
    error = await failure_of(asked.archive.stage("gone"))
    assert "303 See Other to POST" in str(error)
    assert asked.faulty.seen("GET") == []


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://127.0.0.2:{port}/7", "redirects to another server"),
        ("//127.0.0.1:1/7", "redirects to another server"),
        ("https://127.0.0.1:{port}/7", "redirects to another server"),
        ("http://u@127.0.0.1:{port}/7", "redirects to another server"),
        ("file:///etc/passwd", "redirects to another server"),
        ("http://[oops/", "redirects to an invalid URL"),
        ("http:", "redirects to an invalid URL: http:"),
        ("http:7", "redirects to an invalid URL: http:7"),
        ("", "redirects without a Location"),
        ("/moved", "redirects more than 5 times"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_redirect_to_another_server_is_rejected(
    asked: ClientUnderTest, location: str, message: str
) -> None:
    location = location.format(port=asked.faulty.port)
    asked.faulty.fault("moved", redirect(location), times=None)
    error = await failure_of(asked.archive.status("moved"))
    assert message in str(error)
    assert len(asked.faulty.requests) <= 6
    assert await asked.fetch("7") == DATA
