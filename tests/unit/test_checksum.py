"""Verification of streams against a declared size and hash, and its error messages."""

from __future__ import annotations

import hashlib

import pytest

from cartd.checksum import Checksum, Mismatch, canonical_name, digest_size, hash_name

DATA = b"what the archive sent" * 50
SHA1 = hashlib.sha1(DATA).hexdigest()


def test_bytes_as_declared_give_their_hash_whatever_the_blocks() -> None:
    for block in (1, 7, 64, len(DATA), 2 * len(DATA)):
        checksum = Checksum("sha1", SHA1, len(DATA))
        for start in range(0, len(DATA), block):
            checksum.update(DATA[start : start + block])
        assert checksum.finish() == SHA1


def test_a_hash_sum_in_capitals_is_the_same_number() -> None:
    checksum = Checksum("sha1", SHA1.upper(), len(DATA))
    checksum.update(DATA)
    assert checksum.finish() == SHA1


def test_an_unknown_hash_sum_is_computed_and_returned() -> None:
    checksum = Checksum("md5", "", len(DATA))
    checksum.update(DATA)
    assert checksum.finish() == hashlib.md5(DATA).hexdigest()


def test_a_second_hash_is_of_the_same_bytes() -> None:
    for declared in (SHA1, ""):
        checksum = Checksum("sha1", declared, len(DATA), "SHA-256")
        for start in range(0, len(DATA), 64):
            checksum.update(DATA[start : start + 64])
        assert checksum.finish() == SHA1
        assert checksum.also_sum() == hashlib.sha256(DATA).hexdigest()
    assert Checksum("sha1", "", 0).also_sum() is None
    with pytest.raises(ValueError, match="sha257"):
        Checksum("sha1", "", 0, "sha257")


def test_a_hash_has_one_name() -> None:
    names = {name: hash_name(name) for name in ("SHA-256", "sha3-256", "sha512_256", "MD5", "MD2")}
    # This Python has no MD2, but a database of another system may.
    assert list(names.values()) == ["sha256", "sha3_256", "sha512_256", "md5", "md2"]
    assert canonical_name("SHA2-512") == "sha512"
    for unusable in ("MD2", "", "shake_128"):
        with pytest.raises(ValueError):
            canonical_name(unusable)


def test_a_file_of_no_bytes_is_complete_without_an_update() -> None:
    assert Checksum("sha256", hashlib.sha256().hexdigest(), 0).finish() == (
        hashlib.sha256().hexdigest()
    )


def test_a_byte_too_many_is_reported_before_the_stream_ends() -> None:
    checksum = Checksum("sha1", SHA1, len(DATA))
    checksum.update(DATA)
    with pytest.raises(Mismatch, match=r"^it has more than the 1050 bytes that were declared$"):
        checksum.update(b"x")


def test_a_byte_too_many_stays_wrong_at_the_end() -> None:
    checksum = Checksum("sha1", "", 3)
    with pytest.raises(Mismatch):
        checksum.update(b"four")
    with pytest.raises(Mismatch, match=r"^it has 4 bytes where 3 were declared$"):
        checksum.finish()


def test_missing_bytes_are_reported_even_without_a_hash() -> None:
    checksum = Checksum("sha1", "", len(DATA))
    checksum.update(DATA[:-1])
    with pytest.raises(Mismatch, match=r"^it has 1049 bytes where 1050 were declared$"):
        checksum.finish()


def test_a_changed_byte_is_reported_with_both_hashes() -> None:
    wrong = b"X" + DATA[1:]
    checksum = Checksum("sha1", SHA1, len(DATA))
    checksum.update(wrong)
    computed = hashlib.sha1(wrong).hexdigest()
    with pytest.raises(Mismatch, match=f"^its sha1 is {computed} where {SHA1} was declared$"):
        checksum.finish()


@pytest.mark.parametrize(
    ("hash_type", "size"),
    [("md5", 16), ("sha1", 20), ("SHA256", 32), ("sha3_512", 64), ("blake2b", 64)],
)
def test_the_length_of_a_digest_is_known_by_the_name_of_its_hash(hash_type: str, size: int) -> None:
    assert digest_size(hash_type) == size


@pytest.mark.parametrize(
    ("hash_type", "reason"),
    [
        pytest.param("shake_128", "has no fixed length", id="shake-128"),
        pytest.param("SHAKE256", "has no fixed length", id="shake-256-by-another-name"),
        pytest.param("null", "has no fixed length|not a hash", id="null"),
        pytest.param("crc32", "'crc32' is not a hash that this Python can compute", id="unknown"),
        pytest.param("", "not a hash", id="empty"),
        pytest.param("sha1\0", "not a hash", id="nul"),
        pytest.param("\ud800", "not a hash", id="lone-surrogate"),
    ],
)
def test_a_hash_that_cannot_be_used_is_refused(hash_type: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        digest_size(hash_type)
    with pytest.raises(ValueError, match=reason):
        Checksum(hash_type, "", 0)


def test_a_long_name_is_refused_in_a_short_message() -> None:
    with pytest.raises(ValueError, match="not a hash") as caught:
        digest_size("a" * 100_000)
    assert len(str(caught.value)) < 100
