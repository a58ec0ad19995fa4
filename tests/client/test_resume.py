"""The state, the journal and the lock of a download."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd_client.errors import ClientError
from cartd_client.resume import Journal, Lock, State, load_state, read_journal, save_state
from cartd_client.tar_stream import Member

MEMBERS = st.builds(
    Member,
    st.text(st.characters(exclude_characters="\0"), min_size=1) | st.just("\udcff\udc80"),
    st.integers(0, 2**63),
    st.integers(-(2**63), 2**63),
    st.integers(0, 0o7777),
    st.booleans(),
    st.integers(0, 2**63),
    st.integers(0, 2**63),
)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from([None, "", "md5"]), MEMBERS)))
def test_a_journal_has_all_lines_up_to_a_torn_one(
    entries: list[tuple[int, str | None, Member]],
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        journal = Journal(path)
        for index, outcome, member in entries:
            journal.add(index, member, outcome)
        journal.close()
        assert list(read_journal(path)) == entries
        if entries:
            path.write_bytes(path.read_bytes()[:-1])
            assert list(read_journal(path)) == entries[:-1]


def test_a_state_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state = State("http://x/", "a.tar", "tar", '"e"', 5000, 1000, 3, 10, {"md5": 2}, 1)
    save_state(path, state)
    assert load_state(path) == state
    assert b'"spans": [\n  [\n   0,\n   1000\n  ]\n ]' in path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'{"version": 2}', b"\xff", b'{"url": 1, "more": 2}']
)
def test_what_is_no_state_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    assert load_state(tmp_path / "state") is None
    assert load_state(tmp_path / "not-there") is None


def test_a_lock_holds_until_it_is_released(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock", "the target")
    with pytest.raises(ClientError, match="Another process downloads to the target"):
        Lock(tmp_path / "lock", "the target")
    lock.release()
    Lock(tmp_path / "lock", "the target").release()
