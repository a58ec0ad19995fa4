"""An archive that mixes up requests: cartd repeats the request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_twisted

from cartd.archive import ArchiveError, FileState
from cartd.archive.responses import names_file
from tests.support.archive_client_fixture import ClientFactory, ClientUnderTest, asking
from tests.support.archive_faults import Fault, Seen, Send, Step, StoredFile, head, state_headers

pytest_plugins = ("tests.support.archive_fixtures",)


@pytest_twisted.async_yield_fixture
async def asked(make_client: ClientFactory) -> AsyncIterator[ClientUnderTest]:
    async with asking(make_client) as asked:
        asked.faulty.put("7", b"seven", mtime="1500000007")
        yield asked


def says(path: str, size: int) -> Fault:
    """The response to a HEAD that describes a file at ``path``, of so many bytes."""

    def fault(request: Seen, file: StoredFile | None) -> Sequence[Step]:
        described = StoredFile(bytes(size), mtime="1500000000")
        return [Send(head(204, [*state_headers(described), ("X-Pacifica-File", path)]))]

    return fault


@pytest_twisted.ensureDeferred
async def test_the_state_of_another_file_is_ignored(asked: ClientUnderTest) -> None:
    asked.faulty.fault("7", says("/srv/archive/8", 8))
    assert await asked.archive.status("7") == FileState(5, 1500000007, True)
    assert len(asked.faulty.seen("HEAD", "7")) == 2


@pytest_twisted.ensureDeferred
async def test_mixed_up_responses_are_retryable(
    asked: ClientUnderTest,
) -> None:
    asked.faulty.fault("7", says("/srv/archive/8", 8))
    asked.faulty.fault("7", says("/srv/archive/9", 9), request=2)
    with pytest.raises(ArchiveError, match="described another file") as caught:
        await asked.archive.status("7")
    assert caught.value.retryable
    assert await asked.archive.status("7") == FileState(5, 1500000007, True)


@pytest_twisted.ensureDeferred
async def test_an_unknown_file_name_is_accepted_when_repeated(
    asked: ClientUnderTest,
) -> None:
    asked.faulty.fault("7", says("/pool/c0ffee", 70), times=None)
    assert await asked.archive.status("7") == FileState(70, 1500000000, True)
    assert len(asked.faulty.seen("HEAD", "7")) == 2


@pytest.mark.parametrize("path", ["/srv/archive/7", "7", "/file.7", "/srv/archive/"])
@pytest_twisted.ensureDeferred
async def test_a_file_named_after_its_id_is_requested_once(
    path: str, asked: ClientUnderTest
) -> None:
    asked.faulty.fault("7", says(path, 70), times=None)
    assert await asked.archive.status("7") == FileState(70, 1500000000, True)
    assert len(asked.faulty.seen("HEAD", "7")) == 1


@pytest.mark.parametrize(
    ("file_name", "archive_id", "named"),
    [
        ("/srv/1234", "1234", True),
        ("/srv/d2/4d2", "1234", True),
        ("/srv/file.d2", "210", True),
        ("/srv/run 7/a", "run 7/a", True),
        ("run%207/%C3%BC", "run 7/\u00fc", True),
        ("", "1234", True),
        ("/srv/1235", "1234", False),
        ("/srv/234", "1234", False),
        ("/srv/4d2", "1235", False),
    ],
)
def test_a_file_name_matches_its_id_in_decimal_or_hexadecimal(
    file_name: str, archive_id: str, named: bool
) -> None:
    assert names_file(file_name, archive_id) is named
