"""How the archive is asked: the settings of the section ``[archiveinterface]``."""

from __future__ import annotations

from cartd.config import values
from cartd.config.setting import Setting

ARCHIVE = (
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
        "archive_least_rate",
        "archiveinterface",
        "least_rate",
        "1 KB",
        values.parse_size,
        "size a second",
        "How slowly a file may come, on the average of five minutes, before its transfer is given"
        " up and tried again; 0 is no limit.",
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
        "archive_cert_file",
        "archiveinterface",
        "cert_file",
        "none",
        values.optional(values.path),
        "file (PEM), or none",
        "The certificate that is shown to an https: archive which asks for one.",
    ),
    Setting(
        "archive_key_file",
        "archiveinterface",
        "key_file",
        "none",
        values.optional(values.path),
        "file (PEM), or none",
        "The key of cert_file; none means that it is in the same file.",
    ),
)
