"""Parsers of the values of settings, endpoints included.

Each takes text and raises ValueError with a reason that can follow the setting's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from cartd.checksum import canonical_name

T = TypeVar("T")

_PREFIXES = ("", "K", "M", "G", "T")
SIZE_UNITS = {
    prefix + letter: base**power
    for letter, base in (("B", 1000), ("b", 1024))
    for power, prefix in enumerate(_PREFIXES)
}
"""Pacifica's units: powers of 1,000 end in ``B``, powers of 1,024 in ``b``."""
SIZE_LIMIT = 2**63 - 1

UNIX = "unix"
"""In place of a network: every peer on a Unix socket."""
Network = IPv4Network | IPv6Network | str
"""A string is :data:`UNIX`."""

_DATABASES = {
    **dict.fromkeys(("sqlite", "sqliteext", "sqlite+pysqlite"), "sqlite"),
    **dict.fromkeys(
        ("postgresql", "postgres", "postgresext", "postgresqlext", "postgresql+psycopg"),
        "postgresql+psycopg",
    ),
}
_PEEWEE_ONLY = {"max_connections", "stale_timeout", "register_hstore", "server_side_cursors"}


def text(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("is empty" if not value else "contains a NUL")
    return value


def one_line(value: str) -> str:
    """Return a text for people, which may be empty."""
    if not value.isprintable():
        raise ValueError("contains a control character")
    return value


def path(value: str) -> Path:
    return Path(text(value))


def optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    """Return a parser that accepts an empty text or ``none`` as None."""

    def parse_optional(value: str) -> T | None:
        return None if value.lower() in ("", "none") else parse(value)

    return parse_optional


def limit_or_none(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    """Return a parser that accepts an empty text, ``none`` or 0 as None."""

    def parse_limit(value: str) -> int | None:
        return optional(parse)(value) or None

    return parse_limit


def one_of(*words: str) -> Callable[[str], str]:
    def parse_word(value: str) -> str:
        if value not in words:
            raise ValueError(f"expected is {' or '.join(words)}")
        return value

    return parse_word


def integer(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse_integer(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", value) or not minimum <= int(value) <= maximum:
            raise ValueError(f"{value!r} is not a whole number from {minimum} to {maximum}")
        return int(value)

    return parse_integer


def umask(value: str) -> int:
    """Parse an octal umask."""
    if not re.fullmatch(r"[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise ValueError(f"{value!r} is not an octal number from 000 to 777")
    if int(value, 8) & 0o700:
        raise ValueError(f"{value!r} would deny cartd access to its own files")
    return int(value, 8)


def seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{value!r} is not a number of seconds")
    return number


def positive_seconds(value: str) -> float:
    if not (number := seconds(value)):
        raise ValueError("must be more than 0 seconds")
    return number


def days(value: str) -> float:
    """Parse days and return seconds."""
    try:
        return seconds(value) * 86400
    except ValueError:
        raise ValueError(f"{value!r} is not a number of days") from None


def boolean(value: str) -> bool:
    """Parse a boolean as :mod:`configparser` does."""
    try:
        return ConfigParser.BOOLEAN_STATES[value.lower()]
    except KeyError:
        raise ValueError(f"{value!r} is neither on nor off (yes, no, true, false, 1, 0)") from None


def parse_size(value: str) -> int:
    """Parse a size with one of Pacifica's units: ``4 Mb`` is 4 * 1,048,576 bytes.

    The space is optional, a number alone is bytes, and units are case-sensitive.
    """
    match = re.fullmatch(r"\s*([0-9]{1,20}(?:\.[0-9]{0,20})?)\s*([A-Za-z]*)\s*", value)
    unit = SIZE_UNITS.get(match[2] or "B") if match else None
    if match is None or unit is None:
        raise ValueError(
            f"{value!r} is not a size: a number of B, KB, MB, GB, TB (1,000s)"
            " or of b, Kb, Mb, Gb, Tb (1,024s)"
        )
    size = int(Decimal(match[1]) * unit)
    if size > SIZE_LIMIT:
        raise ValueError(f"{value!r} is too large")
    return size


def positive_size(value: str) -> int:
    if not (size := parse_size(value)):
        raise ValueError("must be more than 0 bytes")
    return size


def hash_type(value: str) -> str:
    return canonical_name(value)


def header_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", value):
        raise ValueError(f"{value!r} is not the name of a header")
    return value


def networks(value: str) -> tuple[Network, ...]:
    """Parse addresses and networks (CIDR), separated by white space or commas."""
    try:
        return tuple(UNIX if word == UNIX else ip_network(word) for word in _words(value))
    except ValueError as error:
        raise ValueError(
            f"{error}; expected are addresses, networks such as 10.0.0.0/8, or {UNIX}"
        ) from None


def hosts(value: str) -> tuple[str, ...]:
    """Parse host names without ports, or ``*``, into lower case."""
    names = _words(value.lower())
    for name in names:
        if not re.fullmatch(r"\*|[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?", name):
            raise ValueError(f"{name!r} is not a host name without a port")
    return names


def origins(value: str) -> tuple[str, ...]:
    """Parse origins into what browsers send (RFC 6454, section 6.2): no path, no default port."""
    return tuple(_origin(word) for word in _words(value.lower()))


def _origin(word: str) -> str:
    found = re.fullmatch(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?", word)
    if found is None:
        raise ValueError(f"{word!r} is not an origin such as https://portal.example.org")
    scheme, host, port = found.groups()
    usual = port is None or int(port) == {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{host}" if usual else f"{scheme}://{host}:{int(port)}"


def _words(value: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[\s,]+", value) if word.lower() not in ("", "none"))


def public_url(value: str) -> str | None:
    """Parse the service's own URL and end it with ``/``, or ``none`` for none."""
    return None if value.lower() == "none" else _base_url(value, "but paths are appended to it")


def archive_url(value: str) -> str:
    """Parse the archive's URL and end it with ``/``, so that ids can be appended."""
    return _base_url(value, "but ids are appended to it")


def _base_url(value: str, purpose: str) -> str:
    if re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ValueError("contains white space or a control character")
    parts = _split(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is not http://HOST... or https://HOST...")
    if parts.username is not None:
        raise ValueError("contains a user or a password, which cartd does not send")
    if "?" in value or "#" in value:
        raise ValueError(f"{value!r} has a query or a fragment, {purpose}")
    value = parts.scheme + value[len(parts.scheme) :]
    return value if value.endswith("/") else value + "/"


def sqlalchemy_url(value: str) -> str:
    """Convert the URL of a database, peewee's or SQLAlchemy's, to SQLAlchemy's.

    peewee's ``sqliteext:``, ``postgres:``, ``postgresext:`` and the pooled variants are accepted
    (its playhouse.db_url), its pool parameters are dropped, and an ``@`` or a space in a password
    need not be encoded.  A reason never shows the URL, which may contain a password.
    """
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("contains a control character")
    kind, _, rest = value.partition(":")
    kind = kind.lower().removesuffix("+pool")
    dialect = _DATABASES.get(kind)
    if dialect is None:
        raise ValueError(_unknown_database(kind if rest else ""))
    if dialect == "sqlite":
        if re.fullmatch(r"///[^?]*[^?\s]", rest.partition("?")[0]) is None or ":memory:" in rest:
            raise ValueError("an SQLite database is written sqlite:///FILE or sqlite:////DIR/FILE")
        return f"{dialect}:{_without_peewee_parameters(rest)}"
    if "#" in rest:
        # Some parsers begin a fragment there, others take it as part of the host or password.
        raise ValueError("contains a #; encode it as %23")
    authority = re.fullmatch(r"//([^/?]*)(.*)", rest, re.DOTALL)
    if authority is None:
        raise ValueError("a PostgreSQL database is written postgresql://USER:PASSWORD@HOST/NAME")
    login, at, host = authority[1].rpartition("@")
    if re.search(r"\s", host + authority[2]):
        raise ValueError("contains white space; encode it as %20")
    hosts = [_host_and_port(one) for one in host.split(",")]
    login = re.sub(r"[@\s]", lambda found: quote(found[0]), login)
    place = _without_peewee_parameters(authority[2])
    if len(hosts) == 1:
        return f"{dialect}://{login}{at}{host}{place}"
    # libpq's form of several hosts; SQLAlchemy takes them in the query.
    if re.search(r"[?&](host|port)=", place):
        raise ValueError("names hosts both after the user and in the query")
    names, ports = (",".join(column) for column in zip(*hosts, strict=True))
    listed = urlencode({"host": names, "port": ports} if ports.strip(",") else {"host": names})
    return f"{dialect}://{login}{at}{place}{'&' if '?' in place else '?'}{listed}"


def _host_and_port(text: str) -> tuple[str, str]:
    """Split HOST:PORT of a URL into the host, without brackets, and the port, maybe empty."""
    if text.endswith(":"):
        raise ValueError("is not a URL: no port after the colon")
    port = _split(f"//{text}").port
    name = re.sub(r":[0-9]*$", "", text) if port is not None else text
    return unquote(name.strip("[]")), "" if port is None else str(port)


def _unknown_database(kind: str) -> str:
    works = "cartd supports SQLite (sqlite:) and PostgreSQL (postgresql:)"
    for name in ("mysql", "mariadb"):
        if kind.startswith(name):
            return (
                f"{name}: databases are not supported; {works}. To migrate, copy the tables to a"
                " PostgreSQL database (with pgloader) and run cartd-cmd dbsync, or start with an"
                " empty database"
            )
    if kind.startswith(("postgres", "sqlite")) and "+" in kind:
        return f"names an unsupported driver: remove +{kind.partition('+')[2]}"
    # Without a colon, what looks like the kind may be a name or a password.
    return f"is not a supported kind of database; {works}" if kind else works


def _without_peewee_parameters(rest: str) -> str:
    place, mark, query = rest.partition("?")
    if not mark:
        return rest
    pairs = parse_qsl(query, keep_blank_values=True)
    kept = urlencode([(key, setting) for key, setting in pairs if key not in _PEEWEE_ONLY])
    return f"{place}?{kept}" if kept else place


def _split(value: str) -> SplitResult:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL: its host or its port is invalid") from None
    return parts


# The syntax of endpoints is that of Twisted's endpoint strings: ``:`` separates, ``=`` assigns, and
# a backslash escapes the next character.  The names of the arguments and their order are Twisted's
# too.
#
# Twisted's own parser is not used.  For ``ssl:`` it loads the certificate itself, without the
# intermediates in the same file, into an endpoint that cannot reload it; the splitting alone is
# private; and the error for an unknown argument is a TypeError that does not name the known ones.

ENDPOINT_KINDS = ("tcp", "tcp6", "ssl", "tls", "unix", "systemd", "haproxy")
"""The kinds of Twisted's server endpoints that can serve HTTP."""

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


def endpoint(value: str) -> str:
    """Check the kind of a Twisted endpoint, and the arguments of ``ssl:`` and ``unix:``."""
    value = text(value)
    kind, colon, _ = value.partition(":")
    if not colon or kind not in ENDPOINT_KINDS:
        raise ValueError(
            f"{value!r} does not begin with one of {', '.join(f'{k}:' for k in ENDPOINT_KINDS)}"
        )
    try:
        if kind == "ssl":
            parse_tls_endpoint(value)
        elif is_unix(value):
            parse_unix_endpoint(value.removeprefix("haproxy:"))
    except ValueError as error:
        raise ValueError(f"{value!r} is not an endpoint: {error}") from None
    return value


def is_unix(endpoint: str) -> bool:
    """Whether the endpoint is a Unix socket, with or without the PROXY protocol."""
    return endpoint.removeprefix("haproxy:").startswith("unix:")


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
    given = _endpoint_arguments(description, _TLS_NAMES)
    if "port" not in given:
        raise ValueError("it has no port")
    key = given.get("privateKey", "server.pem")
    method = given.get("sslmethod", "TLS_METHOD")
    if method != _ONLY_1_2 and method not in _ANY_METHOD:
        raise ValueError(f"sslmethod {method} is not TLS_METHOD or {_ONLY_1_2}")
    return TlsEndpoint(
        port=_integer_argument("port", given["port"], 65535),
        private_key=_file_argument("privateKey", key),
        certificate=_file_argument("certKey", given.get("certKey", key)),
        chain=_file_argument("extraCertChain", given["extraCertChain"])
        if "extraCertChain" in given
        else None,
        dh_parameters=_file_argument("dhParameters", given["dhParameters"])
        if "dhParameters" in given
        else None,
        interface=given.get("interface", ""),
        backlog=_integer_argument("backlog", given.get("backlog", "50"), 2**31 - 1),
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
    given = _endpoint_arguments(description, _UNIX_NAMES)
    path = given.get("address", "")
    if not path or "\0" in path:
        raise ValueError("it names no file")
    mode = given.get("mode")
    if mode is not None and not re.fullmatch(r"0?[0-7]{3}", mode):
        raise ValueError(f"mode {mode!r} is not an octal number from 000 to 777")
    backlog = _integer_argument("backlog", given.get("backlog", "50"), 2**31 - 1)
    return UnixEndpoint(Path(path), None if mode is None else int(mode, 8), backlog)


def _endpoint_arguments(description: str, names: Sequence[str]) -> dict[str, str]:
    """Return the arguments of an endpoint by name; ``names`` has the order of positional ones."""
    given: dict[str, str] = {}
    unnamed = iter(names)
    for field in _endpoint_fields(description)[1:]:
        named = _NAMED.fullmatch(field)
        name = _unescape(named[1]) if named else next(unnamed, "")
        if name not in names:
            known = ", ".join(names)
            raise ValueError(f"{name or _unescape(field)} is none of its arguments ({known})")
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name] = _unescape(named[2] if named else field)
    return given


def _endpoint_fields(description: str) -> list[str]:
    fields = []
    position = 0
    while (match := _FIELD.match(description, position)) is not None:
        fields.append(match[1])
        position = match.end()
        if not match[2]:
            return fields
    raise ValueError("it ends in a backslash, which escapes nothing")


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _file_argument(name: str, value: str) -> Path:
    if not value or "\0" in value:
        raise ValueError(f"{name} names no file")
    return Path(value)


def _integer_argument(name: str, value: str, maximum: int) -> int:
    """A number from 0 to ``maximum``."""
    if not _NUMBER.fullmatch(value) or int(value) > maximum:
        raise ValueError(f"{name} {value!r} is not a whole number from 0 to {maximum}")
    return int(value)
