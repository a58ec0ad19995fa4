"""Lines of checksum files, as coreutils writes and reads them.

A plain line is ``HEX  PATH``, as for ``sha256sum -c``; a tagged one ``SHA256 (PATH) = HEX``, of
which ``cksum -c`` reads different algorithms in one file.  Both escape a path in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cartd.checksum import hash_name
from cartd.errors import NoCommonHash
from cartd.model import CartFile, HashTypes

_TAGS = {
    "md5": "MD5",
    "sha1": "SHA1",
    "sha224": "SHA224",
    "sha256": "SHA256",
    "sha384": "SHA384",
    "sha512": "SHA512",
    "blake2b": "BLAKE2b",
    "sm3": "SM3",
    # Since coreutils 9.8.
    "sha3_224": "SHA3-224",
    "sha3_256": "SHA3-256",
    "sha3_384": "SHA3-384",
    "sha3_512": "SHA3-512",
}
"""The tags of the algorithms that coreutils has, by their names in hashlib."""
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})

Line = Callable[[CartFile], str]
"""Returns the line of a staged file; :raises NoCommonHash: it lacks the hash."""


def line_format(types: Sequence[HashTypes], wanted: str | None) -> Line:
    """Return how the lines of a cart's files are made, whose hashes are ``types``.

    Plain lines of the hash ``wanted``, a canonical name; if that is None, of the files' own hash if
    they have but one, else tagged lines.

    :raises NoCommonHash: a file lacks the hash.
    """
    if wanted is None:
        own = {hash_name(one.hash_type) for one in types}
        _check(types, None)
        return _own_plain_line if len(own) <= 1 else _own_tagged_line
    _check(types, wanted)
    return lambda file: plain_line(file.path, _hash_sum(file, wanted))


def encode_lines(line: Line, files: Iterable[CartFile]) -> bytes:
    return "".join(map(line, files)).encode()


def plain_line(path: str, hash_sum: str) -> str:
    escaped = _escaped(path)
    return f"{_mark(escaped)}{hash_sum}  {escaped}\n"


def tagged_line(path: str, hash_type: str, hash_sum: str) -> str:
    escaped = _escaped(path)
    return f"{_mark(escaped)}{_tag(hash_type)} ({escaped}) = {hash_sum}\n"


def _own_plain_line(file: CartFile) -> str:
    return plain_line(file.path, file.hash_sum)


def _own_tagged_line(file: CartFile) -> str:
    return tagged_line(file.path, file.hash_type, file.hash_sum)


def _escaped(path: str) -> str:
    # coreutils takes "-" for its standard input.
    return path.translate(_ESCAPES) if path != "-" else "./-"


def _mark(escaped: str) -> str:
    """Return what a line begins with: a backslash if its path has escapes."""
    return "\\" if "\\" in escaped else ""


def _tag(hash_type: str) -> str:
    name = hash_name(hash_type)
    return _TAGS.get(name) or name.upper().replace("_", "-")


def _hash_sum(file: CartFile, wanted: str) -> str:
    if hash_name(file.hash_type) == wanted and file.hash_sum:
        return file.hash_sum
    if file.also_hash_type is not None and hash_name(file.also_hash_type) == wanted:
        return file.also_hash_sum or ""
    raise NoCommonHash(f"{file.path!r} has no {wanted}")


def _check(types: Sequence[HashTypes], wanted: str | None) -> None:
    """:raises NoCommonHash: a file lacks the hash, or any if ``wanted`` is None."""
    lacking = sum(one.files for one in types if not one.has(wanted))
    if lacking:
        total = sum(one.files for one in types)
        raise NoCommonHash(
            f"{lacking} of {total} staged files have no {wanted or 'hash'}; the files have"
            f" {_listed(types)}"
        )


def _listed(types: Sequence[HashTypes]) -> str:
    names = {name for one in types for name in one.names}
    return ", ".join(sorted(names)) or "no known hash"
