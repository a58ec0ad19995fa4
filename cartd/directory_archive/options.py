"""The command line of ``twistd cartd-archive``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from twisted.python import usage

from cartd.config import parsers
from cartd.pidfile import disable_pidfile


class Options(usage.Options):
    """A bad option ends twistd with one line and exit status 1."""

    synopsis = "[options]"
    longdesc = (
        "Serves the files of a directory with Pacifica's Archive Interface protocol: the id of a "
        "file is its path relative to the directory."
    )
    optParameters: ClassVar[list[list[Any]]] = [
        ["root", "r", None, "Directory to serve; it must exist."],
        ["port", "p", "8080", "TCP port to listen on; 0 takes any free port."],
        ["address", "a", "127.0.0.1", "Address to listen on."],
        [
            "tape-delay",
            None,
            None,
            "Seconds that a recall from tape takes; without it all files are on disk.",
        ],
        [
            "tape-rate",
            None,
            None,
            "Files per second from tape, one after the other; default: all at once.",
        ],
        ["fail-rate", None, "0", "Fraction of requests that fail, from 0 to 1."],
        ["fail-seed", None, None, "Integer; the same seed gives the same sequence of failures."],
    ]

    optFlags: ClassVar[list[list[Any]]] = [
        ["replace", None, "Let PUT and PATCH replace an existing file; without it they get 409."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["allowed-host"] = ()
        self["allowed-origin"] = ()

    def opt_allowed_host(self, names: str) -> None:
        """Host name to accept besides IP addresses and localhost; repeatable."""
        self._add("allowed-host", parsers.hosts, names)

    def opt_allowed_origin(self, origins: str) -> None:
        """Origin of another site whose pages may change files; repeatable."""
        self._add("allowed-origin", parsers.origins, origins)

    def _add(self, key: str, parse: Callable[[str], tuple[str, ...]], text: str) -> None:
        try:
            self[key] += parse(text)
        except ValueError as error:
            raise usage.UsageError(f"--{key}: {error}") from None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"cartd-archive: {error}") from None
        disable_pidfile(getattr(self, "parent", None))

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument: {arguments[0]}")

    def postOptions(self) -> None:
        if self["root"] is None:
            raise usage.UsageError("--root DIR is needed")
        if not Path(self["root"]).is_dir():
            raise usage.UsageError(f"--root: {self['root']} is not a directory")
        self._convert("port", int, "0 to 65535", lambda port: 0 <= port <= 65535)
        self._convert("tape-delay", float, "0 or more seconds", lambda delay: 0 <= delay < 1e9)
        self._convert("tape-rate", float, "more than 0 files a second", lambda rate: 0 < rate < 1e9)
        if self["tape-rate"] is not None and self["tape-delay"] is None:
            raise usage.UsageError("--tape-rate has no effect without --tape-delay")
        self._convert("fail-rate", float, "0 to 1", lambda rate: 0 <= rate <= 1)
        self._convert("fail-seed", int, "a whole number", lambda seed: True)

    def _convert(
        self, key: str, kind: type[int] | type[float], what: str, valid: Callable[[float], bool]
    ) -> None:
        text = self[key]
        if text is None:
            return
        try:
            value = kind(text)
            usable = valid(value)
        except ValueError:
            usable = False
        if not usable:
            raise usage.UsageError(f"--{key}: {what}, not {text!r}")
        self[key] = value
