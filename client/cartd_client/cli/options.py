"""Options of the command line: common ones, before or after the command; durations and sizes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, ClassVar, TypeVar

import click

from cartd_client.cli.progress import MODES

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # it takes no parameters before click 8.4

_F = TypeVar("_F", bound=Callable[..., Any])
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SECONDS = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


@dataclass
class CommonOptions:
    """The options of every command, as given; ``None`` if not given."""

    url: str | None = None
    profile: str | None = None
    token_file: str | None = None
    cacert: str | None = None
    retries: int | None = None
    json: bool = False
    quiet: bool = False
    verbose: int = 0
    no_color: bool = False


class Duration(ParamType):
    """Seconds, or a number with a unit: ``90``, ``30min``, ``12h``, ``2d``."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", value.strip().lower())
        if not found or found[2] not in _SECONDS:
            self.fail(f"{value!r} is no duration: give seconds, or 30min, 12h, 2d", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


class Number(ParamType):
    """A whole number of at least ``low``."""

    name = "number"

    def __init__(self, low: int) -> None:
        self._low = low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not re.fullmatch("[0-9]{1,9}", str(value)) or int(value) < self._low:
            self.fail(f"{value!r} is no number of at least {self._low}", param, ctx)
        return int(value)


class ByteRate(ParamType):
    """Bytes per second, with a decimal unit: ``500k``, ``20M``, ``1.5G``; ``20MB/s``, too."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)b?(?:/s)?", value.strip().lower())
        if not found or not float(found[1]):
            self.fail(
                f"{value!r} is no rate: give bytes per second, or 500k, 20M, 1.5G", param, ctx
            )
        return float(found[1]) * _UNITS[found[2]]


# Common options


def _note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep the value of a common option; that after the command is the last, and counts."""
    if value is not None and value is not False and value != 0:
        setattr(ctx.ensure_object(CommonOptions), str(param.name), value)
    elif param.name == "retries" and value == 0:
        ctx.ensure_object(CommonOptions).retries = 0


class CommonOption(click.Option):
    """One of the options that every command has."""


def common_options() -> list[click.Parameter]:
    """Return the options that every command takes, before its name and after it."""

    def option(*names: str, **more: Any) -> click.Parameter:
        return CommonOption(list(names), expose_value=False, callback=_note, **more)

    return [
        option("--url", metavar="URL", help="Address of the service (CARTD_URL)."),
        option(
            "--profile", metavar="NAME", help="Profile of the configuration file (CARTD_PROFILE)."
        ),
        option(
            "--token-file",
            metavar="FILE",
            help="File with the token; else CARTD_TOKEN, the keyring, netrc.",
        ),
        option(
            "--cacert", metavar="FILE", help="Certificates of the authorities to trust, as PEM."
        ),
        option(
            "--retries",
            type=Number(0),
            metavar="N",
            help="Tries after a failure that may pass. Default: without end for fetch, get and"
            " wait, else 3.",
        ),
        option(
            "--json", is_flag=True, help="Write one JSON document to standard output, errors too."
        ),
        option(
            "-q", "--quiet", is_flag=True, help="Write nothing but errors and what was asked for."
        ),
        option(
            "-v", "--verbose", count=True, help="Say more; twice: with the traceback of an error."
        ),
        option("--no-color", is_flag=True, help="Write without colours (NO_COLOR)."),
    ]


class CartCommand(click.Command):
    """A command with the common options, which its help lists apart."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.params.extend(common_options())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the common ones."""
        shown = [(param, param.get_help_record(ctx)) for param in self.get_params(ctx)]
        parts: list[tuple[str, list[tuple[str, str]]]] = [("Options", []), ("Common options", [])]
        for param, record in shown:
            if record is not None and not isinstance(param, click.Argument):
                parts[isinstance(param, CommonOption)][1].append(record)
        for title, records in parts:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class CartGroup(CartCommand, click.Group):
    """The command ``cart``: commands in the order of a cart's life; suggests near names."""

    command_class = CartCommand
    parts: ClassVar[Sequence[tuple[str, Sequence[str]]]] = (
        ("Get files", ("fetch", "submit", "wait", "get", "verify")),
        ("See and change carts", ("status", "files", "list", "label", "retry", "delete")),
        ("Prepare", ("plan", "manifest", "login", "completion")),
    )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for _, names in self.parts for name in names]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"No such command '{name}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        CartCommand.format_options(self, ctx, formatter)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands before the options."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_commands(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in self.parts:
            with formatter.section(title):
                commands = [(name, self.commands[name]) for name in names]
                formatter.write_dl(
                    [(name, found.get_short_help_str(80)) for name, found in commands]
                )


# Options of several commands


def progress_option(command: _F) -> _F:
    """``--progress``."""
    return click.option(
        "--progress",
        type=click.Choice(MODES),
        help="How to show progress, on standard error. Default: auto, which is a bar on a terminal,"
        " else a line every 30 seconds or 5 %.",
    )(command)


def waiting_options(command: _F) -> _F:
    """``--timeout`` and ``--progress``."""
    return click.option(
        "--timeout",
        type=Duration(),
        metavar="T",
        help="Wait at most so long for the cart, as 90, 30min, 12h or 2d; then exit status 7. It"
        " is staged all the same.",
    )(progress_option(command))


def partial_option(command: _F) -> _F:
    """``--partial``."""
    return click.option(
        "--partial",
        type=click.Choice(["ok", "fail"]),
        default="fail",
        show_default=True,
        help="How to end if files are missing, but all that came is right: with exit status 0"
        " or 4.",
    )(command)


def download_options(command: _F) -> _F:
    """How to download; for ``get`` and ``fetch``."""
    for decorate in reversed(
        [
            click.option(
                "--bag", is_flag=True, help="Download a BagIt bag instead of a plain tar."
            ),
            click.option(
                "-j",
                "--jobs",
                type=Number(1),
                metavar="N",
                help="Ranges to download at once. Default: 1.",
            ),
            click.option(
                "--limit-rate",
                type=ByteRate(),
                metavar="RATE",
                help="Bytes per second at most, as 500k or 20M.",
            ),
            click.option(
                "--restart",
                is_flag=True,
                help="Start anew if the cart is not the one of which a part is here; without it,"
                " exit status 11.",
            ),
            click.option("--keep-tar", is_flag=True, help="Keep the tar, too, as NAME.tar in DIR."),
            partial_option,
            click.option(
                "--delete-after",
                is_flag=True,
                help="Delete the cart from the service once all files are here and verified.",
            ),
        ]
    ):
        command = decorate(command)
    return command
