"""Processes that start ten times as fast, forked from one that has imported cartd's dependencies.

::

    process = preloaded.start([twistd, "-n", "cartd"], cwd=directory, env=env, output=log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0

The command is a Python script, ``python FILE`` or ``python -c CODE``, as for
:class:`subprocess.Popen`; the process has the methods of that class that the tests use.  Klein is
imported by each process, as it imports the reactor, which must not be forked.

A test program that replaces functions in modules does not affect modules that have imported such a
function already.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from select import select
from tempfile import TemporaryFile
from threading import Lock
from types import ModuleType
from typing import IO, cast

from tests.support import coverage_data

LOADED = (
    *("cartd.components", "cartd.options", "cartd.cli.main", "cartd.http.server"),
    *("cartd.directory_archive.directory", "cartd_client.cli.main", "rich.live"),
    *("alembic.script", "sqlalchemy.dialects.sqlite", "treq", "werkzeug"),
    *("twisted.internet.epollreactor", "twisted.internet.ssl", "twisted.scripts._twistd_unix"),
)
ORDER_SIZE = 2**20
LOG_STACKS = signal.SIGUSR1
"""It has a process write the stacks of its threads to its standard error."""
STACKS = "(most recent call first)"
"""What is written then, among others."""
SAVE_TIMEOUT = 10.0
"""Seconds to wait for coverage data: the process may be stopped."""
ROOT = Path(__file__).parents[2]


class Process:
    """A forked process; the process that waits for it reports its end."""

    def __init__(self, args: Sequence[str], keeper: socket.socket) -> None:
        self.args = args
        self.pid = int(keeper.recv(32))
        self.returncode: int | None = None
        self._keeper = keeper
        self._looking = Lock()

    def poll(self) -> int | None:
        """The exit status, or the negative number of the signal that ended it."""
        with self._looking:
            if self.returncode is None and self._has_ended(0):
                self.returncode = os.waitstatus_to_exitcode(int(self._keeper.recv(32)))
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the same once it has ended."""
        self._has_ended(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def _has_ended(self, timeout: float | None) -> bool:
        """Wait up to so many seconds for its end; return whether it has ended."""
        return self.returncode is not None or bool(select([self._keeper], [], [], timeout)[0])

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        if coverage_data.MEASURING:
            self.send_signal(coverage_data.SAVE_AND_DIE)
            with suppress(subprocess.TimeoutExpired):
                self.wait(SAVE_TIMEOUT)
        self.send_signal(signal.SIGKILL)


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    output: IO[bytes],
    errors: IO[bytes] | None = None,
) -> Process:
    """Start ``command``; its standard error is redirected to ``output``, too, unless given."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    order = json.dumps([list(command), str(cwd), dict(env)]).encode()
    files = [there.fileno(), output.fileno(), (errors or output).fileno()]
    with there:
        socket.send_fds(_server(), [order], files)
    return Process(command, here)


def run(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end, as :func:`subprocess.run`."""
    with TemporaryFile() as output, TemporaryFile() as errors:
        process = start(command, cwd=cwd, env=env, output=output, errors=errors)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        for file in (output, errors):
            file.seek(0)
        said = [file.read().decode() for file in (output, errors)]
    return subprocess.CompletedProcess(list(command), status, *said)


@cache
def _server() -> socket.socket:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (here, there):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ORDER_SIZE)
    with there:
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.preloaded", str(there.fileno())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
        )
    return here


def _serve(orders: socket.socket) -> None:
    """Fork a process for each order; returns in the forked processes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        order, files, _, _ = socket.recv_fds(orders, ORDER_SIZE, 3)
        if not order:
            sys.exit()
        if os.fork() == 0:
            orders.close()
            return _keep(order, *files)
        for file in files:
            os.close(file)


def _keep(order: bytes, telling: int, output: int, errors: int) -> None:
    """Fork a process, report its id and exit status; returns in the forked process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        with suppress(BrokenPipeError), socket.socket(fileno=telling) as there:
            there.send(str(pid).encode())
            there.send(str(os.waitpid(pid, 0)[1]).encode())
        os._exit(0)
    os.close(telling)
    # Ignored if the tests were started in the background, or under nohup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.closerange(3, max(output, errors) + 1)
    sys.argv, cwd, environment = json.loads(order)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)


def _run() -> None:
    """Run the command in ``sys.argv``, as Python would."""
    if sys.argv[0] == sys.executable:
        del sys.argv[0]
        # Before the packages, one of which has tests of that name, too.
        sys.path.insert(1, str(ROOT))
    if sys.argv[0] == "-c":
        code = sys.argv.pop(1)
        sys.path[0] = ""
        exec(code, {"__name__": "__main__"})
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


def _main() -> None:
    orders = socket.socket(fileno=int(sys.argv[1]))
    coverage_data.save_before_signals()
    faulthandler.register(LOG_STACKS)
    del sys.path[0]
    reactor = "twisted.internet.reactor"
    sys.modules[reactor] = cast("ModuleType", None)  # an import of it here must fail
    for name in LOADED:
        import_module(name)
    del sys.modules[reactor]
    sys.path.insert(0, "")
    gc.collect()
    gc.freeze()  # Forked processes need not traverse these objects, nor copy them.
    _serve(orders)
    _run()


if __name__ == "__main__":
    _main()
