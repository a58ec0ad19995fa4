"""What a command works with: its options, the client of its service, and its output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Callable

import click

from cartd_client.cli.options import CommonOptions, Number, ParamType
from cartd_client.cli.progress import MODES, Display, display
from cartd_client.cli.terminal import Terminal, duration, json_text
from cartd_client.client import Client
from cartd_client.config import Settings, load
from cartd_client.errors import ClientError, InvalidSetting, UsageError
from cartd_client.manifest import Manifest
from cartd_client.ranges import CannotResume
from cartd_client.transport import Retry

RETRIES = 3
"""Further attempts of a command that does not wait, unless ``--retries`` says otherwise."""
STDIN = "-"


class Session:
    """One run of a command."""

    def __init__(self, options: CommonOptions) -> None:
        self.options = options
        self.terminal = Terminal(colour=not options.no_color)
        self.display = Display(self.terminal)
        self._client: Client | None = None
        self._settings: Settings | None = None

    # The service

    @property
    def settings(self) -> Settings:
        """Address and credentials: of the options, the environment and the profile.

        :raises InvalidSetting: one of them is missing or invalid.
        """
        if self._settings is None:
            given = self.options
            with _settings_errors():
                self._settings = load(
                    url=given.url,
                    profile=given.profile,
                    token_file=given.token_file,
                    cacert=given.cacert,
                )
            for note in self._settings.notes:
                self.warn(note)
        return self._settings

    def setting(self, name: str, kind: ParamType) -> Any:
        """Return a further key of the profile; ``None`` if it has none."""
        value = self.settings.options.get(name)
        if value is None:
            return None
        try:
            return kind.convert(value, None, None)
        except click.BadParameter as error:
            raise InvalidSetting(f"The key {name} of the profile: {error.message}") from error

    def client(self, *, waits: bool = False) -> Client:
        """Return the client; one that ``waits`` tries again without end by default."""
        if self._client is None:
            settings, retries = self.settings, self.options.retries
            if retries is None:
                retries = self.setting("retries", Number(0))
            if retries is None and not waits:
                retries = RETRIES
            with _settings_errors():
                self._client = Client(
                    settings.url,
                    token=settings.token,
                    login=settings.login,
                    cacert=settings.cacert,
                    retries=retries,
                    on_retry=self._on_retry,
                )
        return self._client

    def page_of(self, uid: str) -> str:
        """Return the URL of a cart's page."""
        return self.client().page(uid)

    def close(self) -> None:
        """Close what the session has opened."""
        if self._client is not None:
            self._client.close()

    def _on_retry(self, retry: Retry) -> None:
        """Say that the service is in trouble; at the first failure only if it lasts."""
        if isinstance(retry.error, CannotResume):
            self.warn(f"{retry.error}; starting over in {duration(retry.delay)}")
        elif retry.attempt > 1 or self.options.verbose:
            self.display.trouble(str(retry.error), retry.delay)

    @contextmanager
    def showing(self, mode: str | None) -> Iterator[Display]:
        """Show progress meanwhile; by default as the profile says, else ``auto``."""
        if mode is None:
            mode = self.setting("progress", click.Choice(MODES)) or "auto"
        with display(mode, self.terminal, quiet=self.options.quiet) as shown:
            self.display = shown
            try:
                yield shown
            finally:
                self.display = Display(self.terminal)

    # Input

    def read_manifest(self, name: str) -> Manifest:
        """Return the manifest of a file, or of standard input for ``-``."""
        if name == STDIN:
            return Manifest(sys.stdin.buffer.read())
        return Manifest.read(Path(name))

    @property
    def can_ask(self) -> bool:
        """Whether a question would reach the user."""
        return sys.stdin is not None and sys.stdin.isatty()

    def confirm(self, question: str) -> bool:
        """Ask on the terminal; no is the default."""
        return click.confirm(question, default=False, err=True)

    # Output

    def say(self, text: str, style: str = "") -> None:
        """Write a result for people; not with ``--json`` or ``--quiet``."""
        if not self.options.json and not self.options.quiet:
            self.terminal.paragraph(text, style)

    def warn(self, text: str) -> None:
        """Write a warning to standard error, also with ``--quiet``; not with ``--json``."""
        if not self.options.json:
            self.terminal.note(f"cart: warning: {text}", "yellow")

    def more(self, text: str) -> None:
        """Write what only ``--verbose`` wants to know to standard error."""
        if self.options.verbose and not self.options.json:
            self.terminal.note(f"cart: {text}", "dim")

    def json(self, document: Any) -> None:
        """Write the document of ``--json``."""
        sys.stdout.write(json_text(document) + "\n")

    def json_list(self, name: str, items: Iterable[Any], **members: Any) -> None:
        """Write a document with a list of any length, item by item."""
        head = json_text({**members, name: []})[: -len("]}")]
        # Nothing is written before the first item is there: an error is the only document then.
        ahead = iter(items)
        first = next(ahead, None)
        sys.stdout.write(head)
        if first is not None:
            sys.stdout.write(json_text(first))
        for item in ahead:
            sys.stdout.write(f",\n{json_text(item)}")
        sys.stdout.write("]}\n")

    def result(
        self, document: Mapping[str, Any], lines: str, error: ClientError | None = None
    ) -> None:
        """Write a result: the document with ``--json``, else lines; with ``--quiet`` those, too.

        With an ``error``, the problem is a member of the document.
        """
        if self.options.json:
            problem = {} if error is None else {"problem": error.problem}
            self.json({**document, **problem})
        else:
            for line in lines.splitlines():
                self.terminal.line(line)

    def error(self, error: ClientError) -> None:
        """Write an error; with ``--json`` nothing, as the document has it."""
        if not self.options.json:
            self.terminal.note(f"cart: {error}", "red")

    def each(
        self, uids: Iterable[str], action: Callable[[str], Any]
    ) -> tuple[list[str], ClientError | None]:
        """Do something to each cart; return those done, and the last error."""
        done, last = [], None
        for uid in uids:
            try:
                action(uid)
            except ClientError as error:
                last = error
                self.error(error)
            else:
                done.append(uid)
        return done, last


@contextmanager
def _settings_errors() -> Iterator[None]:
    """Turn errors of settings into those that are not of the command line."""
    try:
        yield
    except UsageError as error:
        raise InvalidSetting(error.message) from error


def pass_session(command: Callable[..., Any]) -> Callable[..., Any]:
    """Call the command with a :class:`Session` as the first argument."""

    @click.pass_context
    @wraps(command)
    def call(context: click.Context, /, **arguments: Any) -> Any:
        session = Session(context.ensure_object(CommonOptions))
        context.call_on_close(session.close)
        return command(session, **arguments)

    return call
