"""The entry point of ``cart``: runs a command, and turns every end into an exit status."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from cartd_client import __version__
from cartd_client.cli import carts, login, manifest, signals, transfers
from cartd_client.cli.options import CartCommand, CartGroup, CommonOptions
from cartd_client.cli.session import Session, pass_session
from cartd_client.cli.terminal import Terminal, json_text
from cartd_client.errors import ClientError, ExitStatus, Interrupted, NoSpace, UsageError

HINTS = {
    ExitStatus.NO_SUCH_CART: "It was never posted, was deleted or evicted, or is another user's."
    " To have it staged anew, submit its manifest.",
    ExitStatus.CART_FAILED: "'cart files --failed UID' lists what failed; 'cart retry UID' stages"
    " it again.",
    ExitStatus.TIMEOUT: "The cart is staged all the same: run the same command again to go on.",
    ExitStatus.UNAVAILABLE: "Run the same command again later; without --retries, fetch, get and"
    " wait try until it works.",
    ExitStatus.NOT_ALLOWED: "'cart login' stores a token of the service.",
    ExitStatus.CART_CHANGED: "Run the same command with --restart to download the cart as it is"
    " now; what is here of the old one is then dropped.",
}
"""What to do about an error, in the next line."""
SHELLS = ("bash", "zsh", "fish")
COMPLETE_VARIABLE = "_CART_COMPLETE"
_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"cart {__version__}")
        ctx.exit()


@click.command(
    cls=CartGroup,
    no_args_is_help=False,  # it would be no error before click 8.2
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version.",
)
def cart() -> None:
    """Fetch files from an archive, through cartd: verified while they arrive, and resumable.

    A manifest lists the files. The service stages them as a cart, which is then downloaded:

    \b
      cart login --url https://cartd.example.org
      cart fetch my-data.json

    Common options may be given before the command or after it. 'cart COMMAND --help' describes a
    command, with examples.

    \b
    Exit status:
        0  whole and verified; or the command has done what it does
        1  any other error
        2  the command line is wrong
        3  there is no such cart
        4  partial: what came is right, but files are missing
        5  the cart is in error
        6  content is wrong: a hash sum or a size differs
        7  the time of --timeout has passed
        8  network or service trouble that may pass
        9  not allowed: the token is missing, wrong or not sufficient
       10  no space on a disk of this computer
       11  the cart is not the one of which a part is here
      130  interrupted: run the same command again to go on
    """


@click.command(cls=CartCommand)
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@pass_session
def completion(session: Session, shell: str | None) -> ExitStatus:
    """Print the script that completes commands and options in a shell.

    SHELL is bash, zsh or fish; the default is the one in the variable SHELL.

    \b
    Examples:
      cart completion bash > ~/.local/share/bash-completion/completions/cart
      cart completion zsh > ~/.zfunc/_cart
      cart completion fish > ~/.config/fish/completions/cart.fish
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    found = get_completion_class(name) if name in SHELLS else None
    if found is None:
        raise UsageError("Name the shell: bash, zsh or fish")
    group = click.get_current_context().find_root().command
    script = found(group, {}, "cart", COMPLETE_VARIABLE).source()
    session.result({"shell": name, "script": script}, script)
    return ExitStatus.OK


for _command in (
    *(transfers.fetch, transfers.submit, transfers.wait, transfers.get, transfers.verify),
    *(carts.status, carts.files, carts.list_carts, carts.label, carts.retry, carts.delete),
    *(carts.plan, manifest.manifest, login.login, completion),
):
    cart.add_command(_command)


def main() -> None:
    """Run the command of this process, and end the process."""
    if COMPLETE_VARIABLE in os.environ:
        cart.main(prog_name="cart")
    with signals.handled():
        status = run(sys.argv[1:])
        if status == ExitStatus.INTERRUPTED:
            # Threads that wait for the network must not delay the end.
            _flush()
            os._exit(status)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit status.  Raises nothing."""
    options = CommonOptions()
    try:
        try:
            with cart.make_context("cart", list(arguments), obj=options) as context:
                status = int(cart.invoke(context) or 0)
            sys.stdout.flush()
        except click.exceptions.Exit as ended:
            return ended.exit_code
        except BrokenPipeError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            options.json = options.json or "--json" in arguments  # the rest was not parsed
            failed = error_of(error, arguments)
            if options.verbose > 1 or type(failed) is InternalError:
                traceback.print_exc()
            return _failed(options, failed)
        else:
            return status
    except BrokenPipeError:
        # What reads the output has ended; nothing can be said to it.
        _discard_output()
        return ExitStatus.ERROR


class InternalError(ClientError):
    """A fault of the command itself."""

    title = "The command has a fault"


def error_of(error: BaseException, arguments: Sequence[str]) -> ClientError:
    """Return the error, with its exit status, that the end of a command stands for."""
    if isinstance(error, ClientError):
        return error
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _interrupted(arguments)
    if isinstance(error, click.UsageError):
        return _usage_error(error)
    if isinstance(error, click.ClickException):
        return ClientError(error.format_message())
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, MemoryError):
        return ClientError("There is not enough memory")
    fault = f"{type(error).__name__}: {error}"
    return InternalError(f"cart has a fault: {fault}. Please report it with the lines above")


def _usage_error(error: click.UsageError) -> UsageError:
    """Return click's error with the command whose help has more."""
    command = error.ctx.command_path if error.ctx is not None else "cart"
    return UsageError(f"{error.format_message().rstrip('.')}. See '{command} --help'")


def _interrupted(arguments: Sequence[str]) -> Interrupted:
    command = ["cart", *arguments]
    text = subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
    return Interrupted(
        f"Interrupted. To go on, run the same command again: {text}", command=command
    )


def _system_error(error: OSError) -> ClientError:
    reason = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _FULL:
        return NoSpace(f"{where}{reason}. Make space, and run the same command again: it goes on")
    return ClientError(f"{where}{reason}")


def _failed(options: CommonOptions, error: ClientError) -> int:
    """Write an error; return its exit status."""
    try:
        if options.json:
            sys.stdout.write(json_text(error.problem) + "\n")
        else:
            terminal = Terminal(colour=not options.no_color)
            terminal.note(f"cart: {error}", "red")
            if error.exit_status in HINTS and not options.quiet:
                terminal.note(HINTS[error.exit_status], "dim")
    except BrokenPipeError:
        _discard_output()
    return error.exit_status


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _discard_output() -> None:
    """Let the interpreter flush standard output to nowhere at its end."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
