"""Which problem an error is, for the file or the cart that failed with it."""

from __future__ import annotations

import errno

import pytest
from twisted.web.http_headers import Headers

from cartd.archive.outage_status import OutageTooLong
from cartd.archive.responses import ArchiveError, error_response, response_timeout
from cartd.archive.retry import FileFailed
from cartd.checksum import Checksum, Mismatch
from cartd.errors import (
    CartdError,
    DiskUnavailable,
    NoSpace,
    Problem,
    Unavailable,
    problem_of,
)
from cartd.model import CartFile

FILE = CartFile(position=3, archive_id="7", path="a", hash_type="md5", hash_sum="")


def mismatch(data: bytes, size: int, hash_sum: str = "") -> Mismatch:
    checksum = Checksum("md5", hash_sum, size)
    with pytest.raises(Mismatch) as raised:
        checksum.update(data)
        checksum.finish()
    return raised.value


def response(code: int, archive_id: str = "7") -> ArchiveError:
    return error_response("GET", archive_id, code, Headers(), b"", now=0)


MISSING = b'{"message": "", "traceback": "No such file or directory: \'/archive/7\'"}'


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (response(403), Problem.ARCHIVE_REFUSED),
        (response(404), Problem.FILE_NOT_IN_ARCHIVE),
        (response(410), Problem.FILE_NOT_IN_ARCHIVE),
        (response(404, "a/7"), Problem.ARCHIVE_REFUSED),  # perhaps of a proxy
        (response(500), Problem.ARCHIVE_REFUSED),
        (response(503), Problem.ARCHIVE_UNAVAILABLE),
        (error_response("GET", "7", 500, Headers(), MISSING, 0), Problem.FILE_NOT_IN_ARCHIVE),
        (response_timeout(1), Problem.ARCHIVE_UNAVAILABLE),
        (OutageTooLong("for days"), Problem.ARCHIVE_UNAVAILABLE),
        (mismatch(b"data", 3), Problem.SIZE_MISMATCH),
        (mismatch(b"data", 5), Problem.SIZE_MISMATCH),
        (mismatch(b"data", 4, 32 * "0"), Problem.HASH_MISMATCH),
        (NoSpace(), Problem.NO_SPACE),
        (OSError(errno.ENOSPC, "full"), Problem.NO_SPACE),
        (OSError(errno.EDQUOT, "full"), Problem.NO_SPACE),
        (OSError(errno.EIO, "broken"), Problem.VOLUME_UNAVAILABLE),
        (DiskUnavailable("away"), Problem.VOLUME_UNAVAILABLE),
        (OSError(errno.ENAMETOOLONG, "long"), Problem.INVALID_MANIFEST),
        (Unavailable("many", limit="cartd.max_carts_staging"), Problem.LIMIT_EXCEEDED),
        (CartdError("?"), Problem.INTERNAL_ERROR),
        (ValueError("?"), Problem.INTERNAL_ERROR),
    ],
    ids=lambda value: value if isinstance(value, Problem) else str(value)[:60],
)
def test_problem_of_an_error(error: Exception, problem: Problem) -> None:
    assert problem_of(error) is problem
    assert problem_of(FileFailed(FILE, error)) is problem
    assert FileFailed(FILE, error).facts.problem is problem


def test_mismatch_counts_more_than_the_last_attempt() -> None:
    failed = FileFailed(FILE, response(503), mismatch(b"data", 4, 32 * "0"))
    assert failed.problem is Problem.HASH_MISMATCH
