"""Headers of the response to a HEAD, valid and malformed."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.web.http_headers import Headers

from cartd.archive import FileState
from cartd.archive.responses import read_state
from tests.support.archive_client_fixture import ClientUnderTest, failure_of
from tests.support.archive_faults import state

pytest_plugins = ("tests.support.archive_fixtures",)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"last_modified": "12.999"}, FileState(10240, 12, True), id="fraction"),
        pytest.param({"last_modified": "12"}, FileState(10240, 12, True), id="whole"),
        pytest.param({"last_modified": "-0.5"}, FileState(10240, 0, True), id="before-1970"),
        pytest.param(
            {"last_modified": "Sun, 06 Nov 1994 08:49:37 GMT"},
            FileState(10240, 784111777, True),
            id="http-date",
        ),
        pytest.param(
            {"last_modified": "Sunday, 06-Nov-94 08:49:37 GMT"},
            FileState(10240, 784111777, True),
            id="rfc-850-date",
        ),
        pytest.param(
            {"last_modified": "Sun Nov  6 08:49:37 1994"},
            FileState(10240, 784111777, True),
            id="asctime-date",
        ),
        pytest.param(
            {"x_content_length": "0"}, FileState(0, 1700000000, True), id="no-bytes"
        ),
        pytest.param(
            {"x_pacifica_file_storage_media": "Disk"}, FileState(10240, 1700000000, True), id="Disk"
        ),
        pytest.param(
            {"x_pacifica_file_storage_media": "t"}, FileState(10240, 1700000000, False), id="tape"
        ),
        pytest.param(
            {"x_pacifica_file_storage_media": "0"}, FileState(10240, 1700000000, False), id="0"
        ),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_the_headers_of_a_state_are_read(
    asked: ClientUnderTest, changed: dict[str, str | None], expected: FileState
) -> None:
    asked.faulty.fault("7", state(**changed))
    assert await asked.archive.status("7") == expected


@pytest.mark.parametrize(
    ("changed", "message", "retryable"),
    [
        pytest.param({"x_content_length": None}, "has no X-Content-Length", True, id="no-length"),
        pytest.param({"x_content_length": "-1"}, "X-Content-Length header is", True, id="minus"),
        pytest.param({"x_content_length": "1e3"}, "is malformed: 1e3", True, id="exponent"),
        pytest.param({"x_content_length": "\u00b2"}, "is malformed", True, id="superscript"),
        pytest.param({"x_content_length": "File Not Found"}, "malformed: File", True, id="words"),
        pytest.param({"x_content_length": "9" * 20}, "Length header is", False, id="huge"),
        pytest.param({"x_content_length": "9" * 5000}, "is malformed", True, id="long"),
        pytest.param(
            {"x_pacifica_file_storage_media": None},
            "has no X-Pacifica-File-Storage-Media header", True, id="no-media",
        ),
        pytest.param({"last_modified": None}, "has no Last-Modified", True, id="no-time"),
        pytest.param({"last_modified": "soon"}, "Last-Modified header is", True, id="soon"),
        pytest.param({"last_modified": "nan"}, "Last-Modified header is", True, id="nan"),
        pytest.param({"last_modified": "-inf"}, "Last-Modified header is", True, id="inf"),
        pytest.param({"last_modified": "1e9"}, "Last-Modified header is", True, id="exponent2"),
        pytest.param({"last_modified": "1" + "0" * 18}, "is malformed: 1", True, id="19-digits"),
        pytest.param(
            {"last_modified": "9" * 15 + "." + "0" * 5000}, "out of range", False, id="fraction"
        ),
        pytest.param({"last_modified": "1" * 14}, "Last-Modified header is", False, id="far-off"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_a_header_that_cannot_be_read_is_named(
    asked: ClientUnderTest, changed: dict[str, str | None], message: str, retryable: bool
) -> None:
    asked.faulty.fault("7", state(**changed))
    error = await failure_of(asked.archive.status("7"))
    assert message in str(error)
    assert error.retryable is retryable
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    ("value", "seconds"), [("90", 90.0), ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0), ("soon", None)]
)
def test_a_state_may_say_when_to_ask_again(value: str, seconds: float | None) -> None:
    headers = Headers(
        {
            "X-Content-Length": ["5"],
            "Last-Modified": ["7"],
            "X-Pacifica-File-Storage-Media": ["tape"],
            "Retry-After": [value],
        }
    )
    assert read_state(headers, 1_700_000_000.0) == FileState(5, 7, False, seconds)
