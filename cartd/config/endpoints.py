"""Parses ``ssl:`` and ``unix:`` endpoints.

The syntax is that of Twisted's endpoint strings: ``:`` separates, ``=`` assigns, and a backslash
escapes the next character.  The names of the arguments and their order are Twisted's too.

Twisted's own parser is not used.  For ``ssl:`` it loads the certificate itself, without the
intermediates in the same file, into an endpoint that cannot reload it; the splitting alone is
private; and the error for an unknown argument is a TypeError that does not name the known ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TLS_NAMES = (
    "port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain",
    "dhParameters",
)  # fmt: skip
_UNIX_NAMES = ("address", "mode", "backlog", "lockfile")

_FIELD = re.compile(r"((?:[^:\\]|\\.)*)(:|$)", re.DOTALL)
_NAMED = re.compile(r"((?:[^=\\]|\\.)*)=(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,10}")

_ANY_METHOD = frozenset({"SSLv23_METHOD", "TLS_METHOD", "TLS_SERVER_METHOD"})
_ONLY_1_2 = "TLSv1_2_METHOD"


@dataclass(frozen=True, slots=True)
class TlsEndpoint:
    """Where to listen, and with which key and certificates (PEM files)."""

    port: int
    private_key: Path
    certificate: Path
    """May contain intermediates after the certificate."""
    chain: Path | None
    """More intermediates."""
    dh_parameters: Path | None
    interface: str
    """An address; empty for every IPv4 interface."""
    backlog: int
    only_1_2: bool
    """Whether TLS 1.3 is disabled."""

    @property
    def files(self) -> tuple[Path, ...]:
        found = (self.private_key, self.certificate, self.chain, self.dh_parameters)
        return tuple(file for file in found if file is not None)


def parse_tls_endpoint(description: str) -> TlsEndpoint:
    """Parse ``ssl:PORT:privateKey=FILE...``; raise ValueError with the reason."""
    given = _arguments(description, _TLS_NAMES)
    if "port" not in given:
        raise ValueError("it has no port")
    key = given.get("privateKey", "server.pem")
    method = given.get("sslmethod", "TLS_METHOD")
    if method != _ONLY_1_2 and method not in _ANY_METHOD:
        raise ValueError(f"sslmethod {method} is not TLS_METHOD or {_ONLY_1_2}")
    return TlsEndpoint(
        port=_integer("port", given["port"], 65535),
        private_key=_path("privateKey", key),
        certificate=_path("certKey", given.get("certKey", key)),
        chain=_path("extraCertChain", given["extraCertChain"])
        if "extraCertChain" in given
        else None,
        dh_parameters=_path("dhParameters", given["dhParameters"])
        if "dhParameters" in given
        else None,
        interface=given.get("interface", ""),
        backlog=_integer("backlog", given.get("backlog", "50"), 2**31 - 1),
        only_1_2=method == _ONLY_1_2,
    )


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """Where to listen, and the mode of the socket, which decides who may connect."""

    path: Path
    mode: int | None
    """None: 660 less the bits of the umask."""
    backlog: int


def parse_unix_endpoint(description: str) -> UnixEndpoint:
    """Parse ``unix:PATH:mode=660...``; raise ValueError with the reason.

    ``lockfile`` is accepted and ignored: Twisted's lock file only has a process number.
    """
    given = _arguments(description, _UNIX_NAMES)
    path = given.get("address", "")
    if not path or "\0" in path:
        raise ValueError("it names no file")
    mode = given.get("mode")
    if mode is not None and not re.fullmatch(r"0?[0-7]{3}", mode):
        raise ValueError(f"mode {mode!r} is not an octal number from 000 to 777")
    backlog = _integer("backlog", given.get("backlog", "50"), 2**31 - 1)
    return UnixEndpoint(Path(path), None if mode is None else int(mode, 8), backlog)


def _arguments(description: str, names: Sequence[str]) -> dict[str, str]:
    """Return the arguments of an endpoint by name; ``names`` has the order of positional ones."""
    given: dict[str, str] = {}
    unnamed = iter(names)
    for field in _fields(description)[1:]:
        named = _NAMED.fullmatch(field)
        name = _plain(named[1]) if named else next(unnamed, "")
        if name not in names:
            known = ", ".join(names)
            raise ValueError(f"{name or _plain(field)} is none of its arguments ({known})")
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name] = _plain(named[2] if named else field)
    return given


def _fields(description: str) -> list[str]:
    fields = []
    position = 0
    while (match := _FIELD.match(description, position)) is not None:
        fields.append(match[1])
        position = match.end()
        if not match[2]:
            return fields
    raise ValueError("it ends in a backslash, which escapes nothing")


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _path(name: str, value: str) -> Path:
    if not value or "\0" in value:
        raise ValueError(f"{name} names no file")
    return Path(value)


def _integer(name: str, value: str, maximum: int) -> int:
    """A number from 0 to ``maximum``."""
    if not _NUMBER.fullmatch(value) or int(value) > maximum:
        raise ValueError(f"{name} {value!r} is not a whole number from 0 to {maximum}")
    return int(value)
