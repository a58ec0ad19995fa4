"""``twistd -n cartd-archive``: its command line, its HTTP server, and the service."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from io import BytesIO
from math import inf
from pathlib import Path
from typing import IO, Any, ClassVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python import usage
from twisted.web.resource import IResource
from twisted.web.server import Site

from cartd.config import load, parsers
from cartd.deferreds.threads import Threads
from cartd.directory_archive.directory import Directory, TapeLibrary
from cartd.directory_archive.routes import ArchiveInterface
from cartd.http.connection import LimitedChannel
from cartd.http.request import RequestChannel, RequestNormalizer, RequestSite, ValidatedRequest
from cartd.http.request_limits import Limits, RequestRules
from cartd.runtime import disable_pidfile, use_monotonic_clock
from cartd.tracing import LogContext

THREADS = 8
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
IN_MEMORY = 100_000
"""Bytes; a longer body is written to a temporary file."""
LIMITS = replace(
    Limits.of(load(options={}, environ={}, ini=None)),
    max_headers=100,
    body_timeout=inf,
    stall_timeout=3600.0,
)
"""The defaults of cartd, except that a file may take any time, if bytes arrive every minute."""

log = Logger()


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


class ArchiveChannel(LimitedChannel):
    """A channel with fixed limits."""

    limits = LIMITS
    sends_request_id = False  # its responses are those of Pacifica's archive interface
    limit_name = staticmethod(lambda limit: None)

    def on_disconnect(self) -> None:
        """Connections are not counted."""


class ArchiveSite(Site, RequestSite):
    """Spools bodies to the archive's own file system, not to ``/tmp``; has no access log."""

    protocol: Any = ArchiveChannel

    def __init__(
        self,
        reactor: Any,
        routes: IResource,
        directory: Directory,
        hosts: Collection[str],
        origins: Collection[str],
    ) -> None:
        """``hosts``: accepted host names; ``origins``: sites whose pages may change files."""
        self._rules = RequestRules(
            _methods,
            METHODS,
            length_required=(b"PUT",),
            allowed_hosts=frozenset(hosts),
            hosts_setting="its option --allowed-host",
            allowed_origins=origins,
            origins_setting="its option --allowed-origin",
        )
        super().__init__(
            RequestNormalizer(routes, self._rules),
            requestFactory=ValidatedRequest,
            parsePOSTFormSubmission=False,  # bodies of POST are ignored
            reactor=reactor,
        )
        self.timeOut = None  # the channels have their own timeouts
        self._directory = directory

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel: Any = super().buildProtocol(addr)
        channel.rules = self._rules
        return channel

    def getContentFile(self, length: int | None) -> IO[bytes]:
        """Called by :meth:`twisted.web.server.Request.gotLength`; None: unknown length."""
        if length is not None and length < IN_MEMORY:
            return BytesIO()
        return self._directory.spool()

    def log(self, request: object) -> None:
        """Log nothing: a line would cost more than most requests."""

    def log_disconnected(self, request: ValidatedRequest) -> None:
        """Log nothing, for the same reason."""

    def log_rejection(
        self, channel: RequestChannel, code: int, sent: int, context: LogContext
    ) -> None:
        """Log nothing: the rejection log has a line already."""


def _methods(path: Sequence[str]) -> Sequence[str]:
    return METHODS if path else ("GET", "HEAD")


class DirectoryArchive(Service):
    """The service that twistd starts and stops."""

    def __init__(self, options: Options, reactor: Any, clock: IReactorTime) -> None:
        """``clock``: for the simulated tapes."""
        self._reactor = reactor
        self._address: str = options["address"]
        self._number: int = options["port"]
        self._directory = Directory(Path(options["root"]), replaces=bool(options["replace"]))
        self._threads = Threads(reactor, THREADS)
        delay = options["tape-delay"]
        tape = None if delay is None else TapeLibrary(clock, delay, options["tape-rate"])
        interface = ArchiveInterface(self._directory, self._threads, tape)
        self.site = ArchiveSite(
            reactor,
            interface.app.resource(),
            self._directory,
            options["allowed-host"],
            options["allowed-origin"],
        )
        self.port: IListeningPort | None = None
        """The listening port, after the start."""

    def privilegedStartService(self) -> None:
        """Listen before twistd drops privileges, for ports below 1024."""
        if self.port is None:
            try:
                self.port = self._reactor.listenTCP(
                    self._number, self.site, interface=self._address
                )
            except CannotListenError as error:
                raise SystemExit(f"cartd-archive: {error}") from None

    def startService(self) -> None:
        self._directory.sweep()
        self._threads.start()
        self.privilegedStartService()
        super().startService()

    async def _stop(self) -> None:
        if self.port is not None:
            await maybeDeferred(self.port.stopListening)
            self.port = None
        if hanging := self._threads.stop():
            log.error("Stopping while a disk does not respond: {what}", what=hanging)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


def makeService(
    options: Options, reactor: Any = None, clock: IReactorTime | None = None
) -> DirectoryArchive:
    """Return the service for twistd; tests pass their own reactor and clock."""
    if reactor is None:
        from twisted.internet import reactor  # twistd has installed it by now
    use_monotonic_clock(reactor)
    return DirectoryArchive(options, reactor, reactor if clock is None else clock)
