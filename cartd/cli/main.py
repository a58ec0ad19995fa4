"""The command line of ``cartd-cmd``: its parser, and the function of each command."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from cartd.carts.download import TOUCH_INTERVAL
from cartd.cli.carts import Fixit, Purge, Verify, dump
from cartd.cli.tokens import add_actions, token
from cartd.components import Components
from cartd.config import Config
from cartd.errors import CartdError, ConfigError, admin_message
from cartd.files import user_name
from cartd.integrity.recovery import bind_volume
from cartd.options import Options, read_config
from cartd.runtime import use_monotonic_clock
from cartd.store import schema_state, sync, wait_for_database

Command = Callable[[Config, Namespace], int]


def main() -> None:
    """Run one command and exit with its status."""
    args = create_parser().parse_args()
    try:
        config = _config(args)
        os.umask(config.umask)
        _warn_if_root(config, args)
        sys.exit(args.command(config, args))
    except CartdError as error:
        sys.exit(f"cartd-cmd: {admin_message(error)}")


def _warn_if_root(config: Config, args: Namespace) -> None:
    """Warn that the service may not be able to use files that root creates."""
    if sys.platform == "win32" or os.geteuid() != 0 or args.command is _token:
        return
    with suppress(OSError):
        owner = config.volume_path.stat().st_uid
        if owner != 0:
            _warn(
                f"running as root, but the volume belongs to {user_name(owner)}: the service may be"
                f" unable to use the files that this command creates. Run it as {user_name(owner)}"
                f" (runuser -u {user_name(owner)} -- cartd-cmd ...)"
            )


def create_parser() -> ArgumentParser:
    """Return the parser of ``cartd-cmd``; ``args.command`` is the function to call."""
    parser = ArgumentParser(
        prog="cartd-cmd",
        description="Maintains cartd's database and volume; the service may be running or not.",
        epilog="Exit status: 0 for success, 1 for failure, 2 for a wrong command line.",
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration file (default: $CARTD_CONFIG or ~/.pacifica-cartd/config.ini)",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str) -> ArgumentParser:
        added = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command)
        return added

    check = add("dbchk", _dbchk, "Check that the database's schema is safe to use.")
    check.add_argument("--equal", action="store_true", help="require exactly the current schema")
    check.add_argument(
        "--no-wait", action="store_true", help="do not retry a database that does not answer"
    )
    add(
        "dbsync",
        _dbsync,
        "Create the database's schema, or upgrade it.\n"
        "A database of Pacifica Cartd is upgraded in place, with its carts.",
    )
    add(
        "bind-volume",
        _bind_volume,
        "Bind the configured volume to this database.\n"
        "For a replaced volume or a replaced database. Carts that are not on the volume are\n"
        "restaged when they are requested; carts that are not in the database stay unknown.",
    )
    add(
        "fixit",
        _fixit,
        "Restage missing files of carts, and wait until the carts are ready.\n"
        "If the running service is staging a cart, the command only waits for it.\n"
        "The failed files of a partial cart are tried again; the cart stays ready if they fail.",
    ).add_argument("--cartid", nargs="+", required=True, metavar="UID", help="the carts' uids")
    verify = add(
        "verify",
        _verify,
        "Compare the files of carts on the volume with their hashes.\n"
        "Verifies all ready carts, or the newest cart of each given uid.",
    )
    verify.add_argument("--cartid", nargs="+", metavar="UID", help="the carts' uids")
    verify.add_argument(
        "--repair",
        action="store_true",
        help="restage damaged files, and remove directories that belong to no cart",
    )
    add("dump", _dump, "Print every active cart with its files.").add_argument(
        "--json", action="store_true", help="as JSON instead of YAML"
    )
    purge = add(
        "purge",
        _purge,
        "Delete carts that have not been used for some time.\n"
        "Their rows stay in the database for the time of [cartd] retention.",
    )
    purge.add_argument(
        "--dry-run", action="store_true", help="print what would be deleted, and delete nothing"
    )
    purge.add_argument(
        "--time-ago",
        type=_parse_age,
        default=timedelta(days=180),
        metavar="TEXT",
        help='such as "60 days ago" or "12 hours ago" (default: 180 days ago)',
    )
    add_actions(
        add(
            "token",
            _token,
            "Manage the users' tokens.\n"
            "add NAME creates a token, with --admin for an administrator, and prints it once;\n"
            "list prints the names; revoke NAME revokes a token. A running service reloads the\n"
            "file within seconds.",
        )
    )
    return parser


def _token(config: Config, args: Namespace) -> int:
    return token(config, args, sys.stdout, sys.stderr)


def _parse_age(text: str) -> timedelta:
    """Parse ``NUMBER UNIT ago``, as Pacifica's command does."""
    try:
        number, unit, ago = text.split()
        time = timedelta(**{unit if unit.endswith("s") else f"{unit}s": float(number)})
        if ago in ("ago", "after") and time >= timedelta():
            return time
    except (ValueError, TypeError, OverflowError):
        pass
    raise ArgumentTypeError(f'"{text}" is not like "60 days ago"')


def _config(args: Namespace) -> Config:
    options = Options()
    options.parseOptions([] if args.config is None else ["--config", args.config])
    return read_config(options, os.environ)


# The commands that need no reactor


def _dbchk(config: Config, args: Namespace) -> int:
    _wait(replace(config, database_connect_attempts=1) if args.no_wait else config)
    state = schema_state(config.database_url)
    if state.current if args.equal else state.safe:
        return 0
    print(state.explanation, file=sys.stderr)
    return 1


def _dbsync(config: Config, _args: Namespace) -> int:
    _wait(config)
    state = sync(config.database_url)
    print("The database has the current schema." if state.current else state.explanation)
    return 0


def _wait(config: Config) -> None:
    wait_for_database(
        config.database_url,
        attempts=config.database_connect_attempts,
        wait=config.database_connect_wait,
        sleep=time.sleep,
        notify=_warn,
    )


def _warn(line: str) -> None:
    print(f"cartd-cmd: {line}", file=sys.stderr)


def _bind_volume(config: Config, _args: Namespace) -> int:
    _wait(config)
    _check_schema(config)
    bind_volume(config.database_url, config.volume_path, force=True)
    print(f"{config.volume_path} is the volume of this database.")
    return 0


def _check_schema(config: Config) -> None:
    state = schema_state(config.database_url)
    if not state.safe:
        raise ConfigError(state.explanation)


# The commands that work with the service's components


def _fixit(config: Config, args: Namespace) -> int:
    async def work(components: Components) -> int:
        fixit = _create_fixit(components)
        fixed = [await fixit.fix(uid) for uid in dict.fromkeys(args.cartid)]
        return 0 if all(fixed) else 1

    return _with_components(config, work)


def _create_fixit(components: Components) -> Fixit:
    return Fixit(
        components.store,
        components.repair,
        components.stager.begin,
        components.reactor,
        sys.stderr,
    )


def _verify(config: Config, args: Namespace) -> int:
    async def work(components: Components) -> int:
        fixit = _create_fixit(components)
        verify = Verify(
            components.store,
            components.verification,
            components.orphans,
            fixit.restore if args.repair else None,
            sys.stdout,
            sys.stderr,
            components.now,
        )
        if args.cartid is None:
            return 0 if await verify.all() else 1
        right = [await verify.named(uid) for uid in dict.fromkeys(args.cartid)]
        return 0 if all(right) else 1

    return _with_components(config, work)


def _dump(config: Config, args: Namespace) -> int:
    async def work(components: Components) -> int:
        try:
            await dump(components.store, components.volume, sys.stdout, as_json=args.json)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader closed the pipe; prevent a second error when the interpreter flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return 0

    return _with_components(config, work)


def _purge(config: Config, args: Namespace) -> int:
    async def work(components: Components) -> int:
        before = components.now() - args.time_ago.total_seconds()
        purge = Purge(
            components.store, components.removal, before, sys.stdout, dry_run=args.dry_run
        )
        await purge.run()
        return 0

    return _with_components(config, work)


def _with_components(config: Config, work: Callable[[Components], Awaitable[int]]) -> int:
    """Run ``work`` in a reactor and return its exit status."""
    _wait(config)
    # The service writes its access times late, so carts used very recently must not be evicted.
    # Carts being sent are locked; on file systems without locks only this protects them.
    unseen = TOUCH_INTERVAL + 2 * config.lru_interval
    config = replace(config, lru_buffer_time=max(config.lru_buffer_time, unseen))
    _check_schema(config)
    volume_number = bind_volume(config.database_url, config.volume_path)
    _log_warnings()
    outcome: list[int | CartdError] = []

    async def run(reactor: Any) -> None:
        use_monotonic_clock(reactor)
        components = Components(config, reactor, volume_number, warn=_warn)
        try:
            components.start(resume=False)
            outcome.append(await work(components))
        except CartdError as error:
            outcome.append(error)
        except OSError as error:
            outcome.append(CartdError(f"{config.volume_path} cannot be used: {error}"))
        finally:
            await components.stop()
            if hanging := await components.close():
                _warn(f"exiting while a disk does not respond: {hanging}")

    try:
        task.react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    except SystemExit as ended:
        if not outcome:
            raise
        if isinstance(outcome[0], CartdError):
            raise outcome[0] from ended
        return outcome[0]
    raise AssertionError("react always exits")


def _log_warnings() -> None:
    observer = FilteringLogObserver(
        textFileLogObserver(sys.stderr),
        [LogLevelFilterPredicate(defaultLogLevel=LogLevel.error)],
    )
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
