"""The one table of what can be set.

The options of the command line, the reading of environment and file, and the tables of
``docs/configuration.md`` all follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cartd.config import values


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table."""

    field: str
    """The attribute of :class:`~cartd.config.Config`."""
    section: str
    key: str
    default: str
    """As an administrator would write it."""
    parse: Callable[[str], Any]
    unit: str
    about: str
    """One sentence, for ``--help`` and the documentation."""
    environment: str | None = None
    option: str | None = None
    short: str | None = None
    several: bool = False
    """Given again for more; one a line in the file, between white space in the environment."""
    old_key: str | None = None
    """Pacifica's key, and ``old_environment`` its variable, where this one has another name."""
    old_environment: str | None = None


SETTINGS = (
    Setting(
        "port",
        "server",
        "port",
        "8081",
        values.whole(0, 65535),
        "TCP port",
        "Where to listen; 0 takes any free port.",
        "CARTD_PORT",
        "port",
        "p",
    ),
    Setting(
        "address",
        "server",
        "address",
        "127.0.0.1",
        values.text,
        "IP address",
        "The interface to listen on; 0.0.0.0 is every one of IPv4, :: of IPv6.",
        "CARTD_ADDRESS",
        "address",
        "a",
    ),
    Setting(
        "endpoints",
        "server",
        "endpoint",
        "none",
        values.endpoint,
        "Twisted endpoint",
        "Where to listen in place of port and address, as ssl:443:privateKey=KEY:certKey=CERT"
        " or unix:/run/cartd.sock; may be given again.",
        "CARTD_ENDPOINT",
        "endpoint",
        "e",
        several=True,
    ),
    Setting(
        "shutdown_grace",
        "server",
        "shutdown_grace",
        "30",
        values.seconds,
        "seconds",
        "How long running downloads may go on when the service is asked to stop.",
    ),
    Setting(
        "max_manifest",
        "server",
        "max_manifest",
        "256 MB",
        values.size_above_zero,
        "size",
        "The largest manifest that is taken.",
    ),
    Setting(
        "volume_path",
        "cartd",
        "volume_path",
        "volume",
        values.path,
        "directory",
        "Where staged carts are kept; made if it is not there.",
        "VOLUME_PATH",
        "volume-path",
    ),
    Setting(
        "umask",
        "cartd",
        "umask",
        "077",
        values.umask,
        "octal",
        "What other accounts may not do with what is made: directories, files, the database;"
        " 027 or 022 lets them read.",
        "CARTD_UMASK",
        "umask",
    ),
    Setting(
        "transfer_size",
        "cartd",
        "transfer_size",
        "4 Mb",
        values.size_above_zero,
        "size",
        "How much of a download is sent before others have their turn;"
        " over TLS, how much of it is read from the volume at a time.",
        "TRANSFER_SIZE",
    ),
    Setting(
        "lru_buffer_time",
        "cartd",
        "lru_buffer_time",
        "0",
        values.seconds,
        "seconds",
        "How long after its last use a cart may not be evicted.",
        "LRU_BUFFER_TIME",
    ),
    Setting(
        "lru_purge",
        "cartd",
        "lru_purge",
        "on",
        values.switch,
        "on or off",
        "Whether the least recently used carts are evicted when the volume needs room.",
        "LRU_PURGE",
    ),
    Setting(
        "lru_interval",
        "cartd",
        "lru_interval",
        "60",
        values.seconds_above_zero,
        "seconds",
        "How often the volume is looked at for room; a cart that needs room asks at once.",
    ),
    Setting(
        "scrub_interval",
        "cartd",
        "scrub_interval",
        "0",
        values.seconds,
        "seconds",
        "Within about how long each ready cart is compared once with its hashes; 0 is never.",
    ),
    Setting(
        "bundle_task",
        "cartd",
        "bundle_task",
        "off",
        values.switch,
        "on or off",
        "Whether a cart whose manifest does not say is written to the volume as one tar.",
        "BUNDLE_TASK",
    ),
    Setting(
        "require_hashsum",
        "cartd",
        "require_hashsum",
        "off",
        values.switch,
        "on or off",
        "Whether a manifest with an empty hash sum is refused.",
    ),
    Setting(
        "volume_quota",
        "cartd",
        "volume_quota",
        "none",
        values.optional(values.size_above_zero),
        "size, or none",
        "The most that all carts together may take of the volume.",
    ),
    Setting(
        "volume_reserve",
        "cartd",
        "volume_reserve",
        "1 GB",
        values.parse_size,
        "size",
        "What is left free on the volume's file system.",
    ),
    Setting(
        "archive_url",
        "archiveinterface",
        "url",
        "http://127.0.0.1:8080/",
        values.archive_url,
        "URL",
        "The archive; http: or https:, with a path if it has one.",
        "ARCHIVE_INTERFACE_URL",
        "archive",
    ),
    Setting(
        "archive_connections",
        "archiveinterface",
        "connections",
        "32",
        values.whole(1, 1000),
        "connections",
        "How many requests the archive is asked at the same time, at most; it is asked for fewer"
        " while it closes connections or mixes up files.",
    ),
    Setting(
        "archive_retries",
        "archiveinterface",
        "retries",
        "5",
        values.whole(1, 1000),
        "tries",
        "How often a failing request is tried, the first time included, with growing waits.",
    ),
    Setting(
        "archive_outage_limit",
        "archiveinterface",
        "outage_limit",
        "86400",
        values.seconds,
        "seconds",
        "How long a cart waits for an archive that is away before it is in error.",
    ),
    Setting(
        "archive_connect_timeout",
        "archiveinterface",
        "connect_timeout",
        "10",
        values.seconds_above_zero,
        "seconds",
        "How long connecting to the archive may take.",
    ),
    Setting(
        "archive_stall_timeout",
        "archiveinterface",
        "stall_timeout",
        "60",
        values.seconds_above_zero,
        "seconds",
        "How long the archive may be silent, before its answer or within it.",
    ),
    Setting(
        "archive_ca_file",
        "archiveinterface",
        "ca_file",
        "none",
        values.optional(values.path),
        "file (PEM), or none",
        "The authorities that may vouch for an https: archive; none means the system's.",
    ),
    Setting(
        "database_url",
        "database",
        "url",
        "sqlite:///db.sqlite3",
        values.sqlalchemy_url,
        "URL",
        "The database that keeps the carts; sqlite: or postgresql:.",
        "DATABASE_URL",
        "database",
        old_key="peewee_url",
        old_environment="PEEWEE_URL",
    ),
    Setting(
        "database_connect_attempts",
        "database",
        "connect_attempts",
        "10",
        values.whole(1, 1_000_000),
        "tries",
        "How often the database is tried at the start.",
        "DATABASE_CONNECT_ATTEMPTS",
    ),
    Setting(
        "database_connect_wait",
        "database",
        "connect_wait",
        "20",
        values.seconds,
        "seconds",
        "The wait between two of these tries.",
        "DATABASE_CONNECT_WAIT",
    ),
)
