"""The table of all settings: :class:`Config`, whose fields have their names, defaults and parsers.

The options of the command line, the parsing of environment and file, and the tables of
``docs/configuration.md`` follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from cartd.config import parsers
from cartd.config.parsers import Network

T = TypeVar("T")

_SETTING = "setting"
"""The key of the metadata of a field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table: the names of a setting, its default, its parser and its description."""

    field: str = ""
    """The attribute of :class:`Config`."""
    section: str
    key: str = ""
    """The name in a file."""
    default: str
    """As it is written in a file."""
    parse: Callable[[str], Any]
    unit: str
    description: str
    """One sentence, for ``--help`` and the documentation."""
    environment: str | None = None
    option: str | None = None
    short: str | None = None
    repeatable: bool = False
    """Takes several values: one per line in a file, separated by white space in a variable."""
    pacifica_key: str | None = None
    """Pacifica's name of the key, as ``pacifica_variable`` of the variable, where it differs."""
    pacifica_variable: str | None = None


def setting(section: str, *, parse: Callable[[str], T], **names: Any) -> T:
    """Return a field of :class:`Config` for a setting; its key is the field's name by default.

    The declared type is that of the parsed value, so that mypy compares a field with its parser.
    """
    declared: T = field(metadata={_SETTING: Setting(section=section, parse=parse, **names)})
    return declared


def repeatable_setting(section: str, *, parse: Callable[[str], T], **names: Any) -> tuple[T, ...]:
    """As :func:`setting`; ``parse`` parses one of several values."""
    row = Setting(section=section, parse=parse, repeatable=True, **names)
    declared: tuple[T, ...] = field(metadata={_SETTING: row})
    return declared


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The parsed configuration.  Sizes are in bytes, times in seconds."""

    # [server]
    port: int = setting(
        "server",
        default="8081",
        parse=parsers.integer(0, 65535),
        unit="TCP port",
        description="TCP port to listen on; 0 takes any free port.",
        environment="CARTD_PORT",
        option="port",
        short="p",
    )
    address: str = setting(
        "server",
        default="127.0.0.1",
        parse=parsers.text,
        unit="IP address",
        description=(
            "IP address to listen on; 0.0.0.0 is every IPv4 interface, :: every IPv6 interface."
        ),
        environment="CARTD_ADDRESS",
        option="address",
        short="a",
    )
    endpoints: tuple[str, ...] = repeatable_setting(
        "server",
        key="endpoint",
        default="none",
        parse=parsers.endpoint,
        unit="Twisted endpoint",
        description=(
            "Endpoint to listen on instead of port and address, such as"
            " ssl:443:privateKey=KEY:certKey=CERT or unix:/run/cartd/http.sock:mode=660."
            " Repeatable."
        ),
        environment="CARTD_ENDPOINT",
        option="endpoint",
        short="e",
    )
    """Replace port and address, unless empty."""
    public_url: str | None = setting(
        "server",
        default="none",
        parse=parsers.public_url,
        unit="URL",
        description=(
            "URL at which clients reach the service, such as https://carts.example.org/; the URLs"
            " in responses begin with it, and its host need not be in allowed_hosts. none: they"
            " are paths."
        ),
        environment="CARTD_PUBLIC_URL",
    )
    allowed_hosts: tuple[str, ...] = setting(
        "server",
        default="none",
        parse=parsers.hosts,
        unit="host names",
        description=(
            "Host names, besides IP addresses and localhost, that requests may name while [auth] is"
            " off; separated by white space or commas. * allows any."
        ),
        environment="CARTD_ALLOWED_HOSTS",
    )
    allowed_origins: tuple[str, ...] = setting(
        "server",
        default="none",
        parse=parsers.origins,
        unit="origins",
        description=(
            "Origins of other sites whose pages may use the service, such as"
            " https://portal.example.org; separated by white space or commas."
        ),
    )
    shutdown_grace: float = setting(
        "server",
        default="30",
        parse=parsers.seconds,
        unit="seconds",
        description="How long running downloads may continue after the signal to stop.",
    )
    # Limits of clients: the error of a client that exceeds one has its name, such as
    # server.max_entries.
    max_manifest_size: int = setting(
        "server",
        default="256 MB",
        parse=parsers.positive_size,
        unit="size",
        description="Maximum size of a manifest.",
    )
    max_entries: int = setting(
        "server",
        default="5000000",
        parse=parsers.integer(1, 1_000_000_000),
        unit="entries",
        description="Maximum number of entries in a manifest.",
    )
    manifest_memory: int = setting(
        "server",
        default="32 MB",
        parse=parsers.positive_size,
        unit="size",
        description=(
            "Maximum total size of the manifests that are parsed and stored at the same time;"
            " further ones wait. Parsing takes about three times this size in memory."
        ),
    )
    temp_file_limit: int = setting(
        "server",
        default="2 GB",
        parse=parsers.positive_size,
        unit="size",
        description="Maximum total size of the temporary files of all requests in progress.",
    )
    max_header_size: int = setting(
        "server",
        default="16 Kb",
        parse=parsers.positive_size,
        unit="size",
        description="Maximum size of a request's head: the request line and all headers.",
    )
    max_headers: int = setting(
        "server",
        default="500",
        parse=parsers.integer(1, 1_000_000),
        unit="headers",
        description="Maximum number of headers in a request.",
    )
    header_timeout: float = setting(
        "server",
        default="60",
        parse=parsers.positive_seconds,
        unit="seconds",
        description=(
            "Maximum time for a complete request head, from the connection or from the first byte"
            " of a later request."
        ),
    )
    body_timeout: float = setting(
        "server",
        default="3600",
        parse=parsers.positive_seconds,
        unit="seconds",
        description="Maximum time for a complete request body.",
    )
    idle_timeout: float = setting(
        "server",
        default="60",
        parse=parsers.positive_seconds,
        unit="seconds",
        description="Maximum gap within a request body.",
    )
    keepalive_timeout: float = setting(
        "server",
        default="75",
        parse=parsers.positive_seconds,
        unit="seconds",
        description=(
            "How long an idle connection is kept open for the next request. Must be longer than a"
            " proxy in front keeps it, which is 60 s in most."
        ),
    )
    stall_timeout: float = setting(
        "server",
        default="600",
        parse=parsers.positive_seconds,
        unit="seconds",
        description=(
            "Maximum time for a client to receive each 64 KiB of a download; until then the cart"
            " stays pinned."
        ),
    )
    max_download_time: float = setting(
        "server",
        default="86400",
        parse=parsers.seconds,
        unit="seconds",
        description=(
            "Maximum duration of a download; until then the cart stays pinned. 0 is no limit."
        ),
    )
    max_connections: int = setting(
        "server",
        default="4000",
        parse=parsers.integer(1, 1_000_000),
        unit="connections",
        description="Maximum number of client connections.",
    )
    max_connections_per_address: int = setting(
        "server",
        default="2000",
        parse=parsers.integer(1, 1_000_000),
        unit="connections",
        description=(
            "Maximum number of client connections from one address; for IPv6, from one /64 network."
        ),
    )
    max_event_streams: int = setting(
        "server",
        default="1000",
        parse=parsers.integer(0, 1_000_000),
        unit="streams",
        description=(
            "Maximum number of open event streams, each of which is one of the connections;"
            " further clients poll. 0 disables events."
        ),
    )

    # [cartd]
    volume_path: Path = setting(
        "cartd",
        default="volume",
        parse=parsers.path,
        unit="directory",
        description="Directory for staged carts; created if it does not exist.",
        environment="VOLUME_PATH",
        option="volume-path",
    )
    organization: str = setting(
        "cartd",
        default="",
        parse=parsers.one_line,
        unit="text",
        description=(
            "Source-Organization in the bag-info.txt of bags. A change changes the bytes and ETags"
            " of all bags, except those on the volume."
        ),
    )
    umask: int = setting(
        "cartd",
        default="077",
        parse=parsers.umask,
        unit="octal",
        description=(
            "Umask for directories, files and the SQLite database that cartd creates. 027: the"
            " group may read; 022: everybody may read."
        ),
        environment="CARTD_UMASK",
        option="umask",
    )
    transfer_size: int = setting(
        "cartd",
        default="4 Mb",
        parse=parsers.positive_size,
        unit="size",
        description=(
            "Bytes sent per download before switching to the next one; with TLS, the read size."
        ),
        environment="TRANSFER_SIZE",
    )
    lru_buffer_time: float = setting(
        "cartd",
        default="0",
        parse=parsers.seconds,
        unit="seconds",
        description="How long a cart cannot be evicted after its last use.",
        environment="LRU_BUFFER_TIME",
    )
    lru_purge: bool = setting(
        "cartd",
        default="on",
        parse=parsers.boolean,
        unit="on or off",
        description="Whether to evict the least recently used carts when the volume needs space.",
        environment="LRU_PURGE",
    )
    lru_interval: float = setting(
        "cartd",
        default="60",
        parse=parsers.positive_seconds,
        unit="seconds",
        description=(
            "How often free space is checked; a cart that needs space triggers a check at once."
        ),
    )
    scrub_interval: float = setting(
        "cartd",
        default="0",
        parse=parsers.seconds,
        unit="seconds",
        description="Re-verify every ready cart about once per this many seconds. 0 disables it.",
    )
    retention: float = setting(
        "cartd",
        default="90",
        parse=parsers.days,
        unit="days",
        description=(
            "How long the database keeps a cart's rows after its removal from the volume. 0 keeps"
            " them forever."
        ),
    )
    """Seconds; 0 keeps the rows forever."""
    bundle_task: bool = setting(
        "cartd",
        default="off",
        parse=parsers.boolean,
        unit="on or off",
        description=(
            "Whether a cart is stored on the volume as one tar if its manifest does not say."
        ),
        environment="BUNDLE_TASK",
    )
    require_hashsum: bool = setting(
        "cartd",
        default="off",
        parse=parsers.boolean,
        unit="on or off",
        description="Whether to reject a manifest with an empty hashsum.",
    )
    volume_quota: int | None = setting(
        "cartd",
        default="none",
        parse=parsers.optional(parsers.positive_size),
        unit="size, or none",
        description="Maximum total size of all carts on the volume.",
    )
    volume_reserve: int = setting(
        "cartd",
        default="1 GB",
        parse=parsers.parse_size,
        unit="size",
        description="Minimum free space to keep on the volume's file system.",
    )
    max_carts_staging: int = setting(
        "cartd",
        default="10000",
        parse=parsers.integer(1, 1_000_000_000),
        unit="carts",
        description="Maximum number of unfinished carts, over all users.",
    )

    # [staging]
    also_hash: str | None = setting(
        "staging",
        default="none",
        parse=parsers.optional(parsers.hash_type),
        unit="hash, or none",
        description=(
            "Second hash that is computed of every staged file, such as sha256, unless its manifest"
            " gives that one."
        ),
    )
    """A canonical name."""

    # [archiveinterface]
    archive_url: str = setting(
        "archiveinterface",
        key="url",
        default="http://127.0.0.1:8080/",
        parse=parsers.archive_url,
        unit="URL",
        description="URL of the archive, http: or https:, optionally with a path.",
        environment="ARCHIVE_INTERFACE_URL",
        option="archive",
    )
    """Ends in ``/``."""
    archive_max_connections: int = setting(
        "archiveinterface",
        key="max_connections",
        default="32",
        parse=parsers.integer(1, 1000),
        unit="connections",
        description=(
            "Maximum parallel requests to the archive. Reduced automatically while the archive"
            " drops connections or returns wrong files."
        ),
    )
    archive_max_attempts: int = setting(
        "archiveinterface",
        key="max_attempts",
        default="5",
        parse=parsers.integer(1, 1000),
        unit="attempts",
        description=(
            "Maximum attempts per failing request, including the first, with growing waits in"
            " between."
        ),
    )
    archive_outage_limit: float = setting(
        "archiveinterface",
        key="outage_limit",
        default="86400",
        parse=parsers.seconds,
        unit="seconds",
        description="How long a cart waits during an outage of the archive before it fails.",
    )
    archive_connect_timeout: float = setting(
        "archiveinterface",
        key="connect_timeout",
        default="10",
        parse=parsers.positive_seconds,
        unit="seconds",
        description="Timeout for connecting to the archive.",
    )
    archive_stall_timeout: float = setting(
        "archiveinterface",
        key="stall_timeout",
        default="60",
        parse=parsers.positive_seconds,
        unit="seconds",
        description="How long the archive may send nothing, before or within a response.",
    )
    archive_min_rate: int = setting(
        "archiveinterface",
        key="min_rate",
        default="1 KB",
        parse=parsers.parse_size,
        unit="size per second",
        description=(
            "Minimum transfer rate of a file, averaged over five minutes; a slower transfer is"
            " aborted and retried. 0 is no limit."
        ),
    )
    """Bytes a second."""
    archive_tape_poll_rate: int = setting(
        "archiveinterface",
        key="tape_poll_rate",
        default="100",
        parse=parsers.integer(1, 1_000_000),
        unit="requests per second",
        description=(
            "Maximum rate of the requests that poll whether files have been read from tape."
        ),
    )
    """Requests a second."""
    archive_recall_retry_interval: float = setting(
        "archiveinterface",
        key="recall_retry_interval",
        default="21600",
        parse=parsers.seconds,
        unit="seconds",
        description="How long to wait for a file recalled from tape before the recall is repeated.",
    )
    archive_ca_file: Path | None = setting(
        "archiveinterface",
        key="ca_file",
        default="none",
        parse=parsers.optional(parsers.path),
        unit="file (PEM), or none",
        description="CA certificates to verify an https: archive with; none uses the system's.",
    )
    archive_cert_file: Path | None = setting(
        "archiveinterface",
        key="cert_file",
        default="none",
        parse=parsers.optional(parsers.path),
        unit="file (PEM), or none",
        description=(
            "Client certificate, followed by intermediates, for an https: archive that requests"
            " one."
        ),
    )
    archive_key_file: Path | None = setting(
        "archiveinterface",
        key="key_file",
        default="none",
        parse=parsers.optional(parsers.path),
        unit="file (PEM), or none",
        description="Private key of cert_file; none means that cert_file contains it.",
    )

    # [auth]: off if neither of the first two is set
    auth_token_file: Path | None = setting(
        "auth",
        key="token_file",
        default="none",
        parse=parsers.optional(parsers.path),
        unit="file, or none",
        description="File with the users' names and hashed tokens, managed by cartd-cmd token.",
    )
    auth_proxy_header: str | None = setting(
        "auth",
        key="proxy_header",
        default="none",
        parse=parsers.optional(parsers.header_name),
        unit="header's name, or none",
        description=(
            "Header in which a trusted proxy passes the user's name, such as X-Remote-User."
        ),
    )
    auth_trusted_proxies: tuple[Network, ...] = setting(
        "auth",
        key="trusted_proxies",
        default="none",
        parse=parsers.networks,
        unit="IP addresses, networks, unix",
        description=(
            "Peers from which proxy_header is accepted, separated by white space or commas; unix is"
            " every client of a unix: endpoint."
        ),
    )
    auth_max_carts_staging: int | None = setting(
        "auth",
        key="max_carts_staging",
        default="none",
        parse=parsers.limit_or_none(parsers.integer(0, 1_000_000_000)),
        unit="carts, or none",
        description="Maximum number of unfinished carts per user.",
    )
    auth_max_files: int | None = setting(
        "auth",
        key="max_files",
        default="none",
        parse=parsers.limit_or_none(parsers.integer(0, 1_000_000_000)),
        unit="files, or none",
        description=(
            "Maximum number of unstaged files per user, including those of the cart being posted."
        ),
    )
    auth_max_bytes: int | None = setting(
        "auth",
        key="max_bytes",
        default="none",
        parse=parsers.limit_or_none(parsers.parse_size),
        unit="size, or none",
        description=(
            "Reject new carts of a user who has at least this many bytes waiting to be staged."
        ),
    )

    # [page]
    page_list: bool = setting(
        "page",
        key="list",
        default="off",
        parse=parsers.boolean,
        unit="on or off",
        description=(
            "Whether carts are listed although [auth] is off; then all clients learn all uids."
        ),
    )

    # [database]
    database_url: str = setting(
        "database",
        key="url",
        default="sqlite:///db.sqlite3",
        parse=parsers.sqlalchemy_url,
        unit="URL",
        description="Database of the carts' records; sqlite: or postgresql:.",
        environment="DATABASE_URL",
        option="database",
        pacifica_key="peewee_url",
        pacifica_variable="PEEWEE_URL",
    )
    """In SQLAlchemy's form."""
    database_connect_attempts: int = setting(
        "database",
        key="connect_attempts",
        default="10",
        parse=parsers.integer(1, 1_000_000),
        unit="attempts",
        description="Maximum attempts to connect to the database at the start.",
        environment="DATABASE_CONNECT_ATTEMPTS",
    )
    database_connect_wait: float = setting(
        "database",
        key="connect_wait",
        default="20",
        parse=parsers.seconds,
        unit="seconds",
        description="Wait between these attempts.",
        environment="DATABASE_CONNECT_WAIT",
    )

    # [log]
    log_format: str = setting(
        "log",
        key="format",
        default="text",
        parse=parsers.one_of("text", "json"),
        unit="text or json",
        description="Format of the log: text, or one JSON object a line.",
    )
    log_request_id_proxies: tuple[Network, ...] = setting(
        "log",
        key="request_id_proxies",
        default="none",
        parse=parsers.networks,
        unit="IP addresses, networks, unix",
        description=(
            "Peers whose X-Request-ID is taken over, in addition to trusted_proxies of [auth];"
            " separated by white space or commas. Other requests get a new id."
        ),
    )

    # [metrics]
    metrics_enabled: bool = setting(
        "metrics",
        key="enabled",
        default="on",
        parse=parsers.boolean,
        unit="on or off",
        description=(
            "Whether to serve metrics at /-/metrics, for admins; while [auth] is off, for clients"
            " on the same machine."
        ),
    )
    metrics_endpoint: str | None = setting(
        "metrics",
        key="endpoint",
        default="none",
        parse=parsers.optional(parsers.endpoint),
        unit="Twisted endpoint, or none",
        description=(
            "Endpoint such as tcp:9464:interface=127.0.0.1 that serves the metrics instead, and the"
            " health, to every client that reaches it, without a token."
        ),
    )

    warnings: tuple[str, ...]
    """Lines to log once at the start: what is ignored."""


SETTINGS = tuple(
    replace(row, field=declared.name, key=row.key or declared.name)
    for declared in fields(Config)
    if (row := declared.metadata.get(_SETTING)) is not None
)
