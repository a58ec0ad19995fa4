"""The command ``cart``: in this process, as a process of its own, and on a terminal.

::

    ended = cart("status", "my-cart", "--json")
    assert (ended.status, ended.json["status"]) == (0, "ready")
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from jsonschema_rs import Draft202012Validator

from cartd_client.cli.main import run
from tests.support import preloaded
from tests.support.running_cartd import DEADLINE, command, wait_for

SCHEMA = json.loads(files("cartd_client.cli").joinpath("output.schema.json").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Ended:
    """A run of the command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def conforming(self, name: str) -> Any:
        """Return the document of ``--json``, which must be one of that name in the schema."""
        document = self.json
        validator(name).validate(document)
        return document


_numbers = count(1)


@cache
def validator(name: str) -> Draft202012Validator:
    """Return the validator of one document of the schema."""
    return Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"})


@dataclass(frozen=True, slots=True)
class CartCommand:
    """Runs ``cart`` in ``directory``, which has its settings, too."""

    directory: Path
    url: str
    more: dict[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of the command: nothing of the user's own."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "CARTD_URL": self.url,
            "CARTD_CLIENT_CONFIG": str(self.directory / "client.toml"),
            **self.more,
            **more,
        }

    def __call__(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Ended:
        """Run it in this process, without a terminal."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
        given = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
        before = Path.cwd()
        os.chdir(self.directory)
        try:
            with (
                mock.patch.dict(os.environ, self.environment(**environment), clear=True),
                mock.patch.object(sys, "stdin", given),
                redirect_stdout(out),
                redirect_stderr(err),
            ):
                status = run(arguments)
        finally:
            os.chdir(before)
        return Ended(status, _written(out), _written(err))

    def start(self, *arguments: str, out: str = "", **environment: str) -> RunningCart:
        """Start it as a process of its own, without a terminal; it writes to ``out`` if given."""
        number = next(_numbers)
        output, errors = (self.directory / f".{name}-{number}" for name in ("out", "err"))
        if out:
            output = Path(out)
        with output.open("wb") as writing, errors.open("wb") as also:
            process = preloaded.start(
                [command("cart"), *arguments],
                cwd=self.directory,
                env=self.environment(**environment),
                output=writing,
                errors=also,
            )
        return RunningCart(process, output, errors)

    def process(self, *arguments: str, **environment: str) -> Ended:
        """Run it as a process of its own, without a terminal."""
        return self.start(*arguments, out="", **environment).ended()


@dataclass(frozen=True, slots=True)
class RunningCart:
    """A process of the command."""

    process: preloaded.Process
    _out: Path
    _err: Path

    def ended(self) -> Ended:
        """Wait until it has ended."""
        try:
            status = self.process.wait(DEADLINE)
        finally:
            self.process.kill()
        out = self._out.read_text("utf-8") if self._out.is_file() else ""
        return Ended(status, out, self.err)

    @property
    def err(self) -> str:
        """What it has written to standard error by now."""
        return self._err.read_text("utf-8")


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal emulator, without a window."""

    socket: Path
    environment: dict[str, str]

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-S", str(self.socket), *arguments],
            check=True, capture_output=True, text=True, timeout=DEADLINE, env=self.environment,
        )  # fmt: skip
        return done.stdout

    @property
    def screen(self) -> str:
        """What it shows, with its colours removed."""
        return self.tmux("capture-pane", "-p", "-t", "cart").rstrip()

    def type(self, *keys: str) -> None:
        self.tmux("send-keys", "-t", "cart", *keys)

    def wait_for(self, text: str) -> str:
        """Wait until it shows ``text``; return the screen."""
        seen = [""]

        def shows() -> bool:
            seen[0] = self.screen
            return text in seen[0]

        try:
            wait_for(shows)
        except AssertionError as error:
            raise AssertionError(f"{text!r} is not on the terminal:\n{seen[0]}") from error
        return seen[0]


@contextmanager
def terminal(
    cart: CartCommand, arguments: Sequence[str], width: int, term: str = "xterm-256color"
) -> Iterator[Terminal]:
    """Run the command in a terminal; at its end, that shows ``ended: STATUS``."""
    shown = Terminal(cart.directory / f"tmux-{next(_numbers)}", cart.environment())
    words = " ".join(f"'{word}'" for word in [command("cart"), *arguments])
    script = f"trap : INT; TERM={term}; export TERM; {words}; echo ended: $?; exec cat"
    shown.tmux(
        *("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", "24", "-s", "cart"),
        *("-c", str(cart.directory), "sh", "-c", script),
    )
    try:
        yield shown
    finally:
        shown.tmux("kill-server")
