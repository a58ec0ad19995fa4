"""A process that is killed, or meets a limit of the system, while it uses a volume.

``python -m tests.support.volume_writer WHAT ROOT``, where WHAT is one of

* ``kill``: writes some blocks of a file of cart 7, prints ``writing`` and waits to be killed;
* ``limit``: the system allows only small files; prints the error of the volume for a large one;
* ``links``: the system rejects symbolic links; prints the level of each message logged for two.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from cartd.volume import Volume
from cartd.volume.incoming import BLOCK, IncomingFile
from tests.support.volume_parts import InThisThread, a_cart, a_file, checksum_of, result_of

BODY = bytes(4 * BLOCK)


def begun(volume: Volume) -> IncomingFile:
    file = a_file(BODY)
    incoming = volume.incoming.open(a_cart(), file, checksum_of(file))
    for start in range(0, 3 * BLOCK, BLOCK):
        incoming.write(BODY[start : start + BLOCK])
    return incoming


def kill(volume: Volume) -> None:
    begun(volume)
    print("writing", flush=True)
    sys.stdin.read()


def limit(volume: Volume) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BLOCK, 2 * BLOCK))
    try:
        result_of(begun(volume).finish())
    except OSError as error:
        print(error.errno, error)


def links(volume: Volume) -> None:
    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event == "os.symlink":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def show(event: LogEvent) -> None:
        print(event["log_level"].name)

    sys.addaudithook(refuse)
    globalLogPublisher.addObserver(cast(ILogObserver, show))
    result_of(volume.links.place(a_cart()))
    result_of(volume.links.place(a_cart()))


def written_by(what: str, root: Path) -> str:
    """Return what such a process prints."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.volume_writer", what, str(root)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout


WORK: dict[str, Callable[[Volume], None]] = {"kill": kill, "limit": limit, "links": links}

if __name__ == "__main__":
    volume = Volume(Path(sys.argv[2]), InThisThread())
    volume.prepare()
    WORK[sys.argv[1]](volume)
