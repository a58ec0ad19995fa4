"""Commands from a manifest to files that are whole: fetch, submit, wait, get, verify."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, TypeVar

import click

from cartd_client.cli.carts import show_status, status_of, uid_argument
from cartd_client.cli.options import (
    ByteRate,
    CartCommand,
    Number,
    download_options,
    partial_option,
    progress_option,
    waiting_options,
)
from cartd_client.cli.progress import Display, staging, transfer
from cartd_client.cli.session import STDIN, Session, pass_session
from cartd_client.errors import ExitStatus, UsageError
from cartd_client.manifest import default_uid
from cartd_client.model import (
    Directory,
    FileEntry,
    FileProblem,
    Options,
    Report,
    Status,
    Stdout,
    TarFile,
    Target,
)
from cartd_client.verify import verify as verify_path

_F = TypeVar("_F", bound=Callable[..., Any])
SHOWN_FILES = 20
"""Files that are wrong or missing that are listed; ``--json`` has all."""


def _uid_option(command: Any) -> Any:
    return click.option(
        "--uid",
        metavar="UID",
        help="Id of the cart. The default follows from the manifest and the user: the same again"
        " for the same.",
    )(command)


def _name_option(default: str) -> Callable[[_F], _F]:
    return click.option(
        "--name",
        metavar="NAME",
        callback=_checked_name,
        help=f"Name of the folder of the files, and of the tar without .tar. Default: {default}.",
    )


def _checked_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not value or value != file_name(value)):
        raise click.BadParameter(f"{value!r} is no name of a folder")
    return value


def file_name(text: str) -> str:
    """Return ``text`` as the name of one file, on any system."""
    name = re.sub(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|]', "_", text)
    return name if name.strip(". ") else "cart"


def unpacked_in(directory: str, name: str, uid: str) -> str:
    """Return where the files are: a cart that was bundled before has its uid as the folder."""
    found = [Path(directory) / folder for folder in (name, uid)]
    return str(next((path for path in found if path.is_dir()), Path(directory)))


@click.command(cls=CartCommand)
@click.argument("manifest", metavar="MANIFEST")
@click.option(
    "-d",
    "--directory",
    metavar="DIR",
    default=".",
    help="Unpack into the folder NAME in DIR, which is created if missing. Default: the current"
    " directory.",
)
@_name_option("that of the manifest, without its suffix")
@_uid_option
@waiting_options
@download_options
@pass_session
def fetch(
    session: Session,
    manifest: str,
    directory: str,
    name: str | None,
    uid: str | None,
    timeout: float | None,
    progress: str | None,
    **given: Any,
) -> ExitStatus:
    """Fetch the files of a manifest: submit, wait, download, unpack and verify.

    MANIFEST is a file, or - for standard input. Every file gets its name only when it is complete
    and its hash sum is right.

    After any end (Ctrl-C, a crash, a lost network), run the same command again: it goes on where
    it was. A restart of the service, or trouble with the network, is waited for.

    \b
    Examples:
      cart fetch my-data.json
      cart fetch my-data.json -d /scratch --timeout 2d
      cart fetch my-data.json -j 4 --limit-rate 50M --delete-after
      cart manifest files.csv | cart fetch - --name my-data
    """
    posted = session.read_manifest(manifest)
    client = session.client(waits=True)
    uid = uid or default_uid(posted, client.user)
    name = name or file_name(uid if manifest == STDIN else Path(manifest).stem)
    if manifest != STDIN and Path(manifest) == Path(directory) / name:
        raise UsageError("The folder would have the name of the manifest: give --name")
    with session.showing(progress) as shown:
        uid = client.submit(posted, uid)
        session.more(f"cart {uid}, {client.page(uid)}")
        client.wait(uid, timeout, lambda status: _show(shown, status))
        report = client.download(
            uid,
            Directory(Path(directory)),
            filename=f"{name}.tar",
            format="bag" if given["bag"] else "tar",
            expected=client.expected(posted, uid),
            options=_options(session, given),
            on_progress=lambda progress: shown.show(transfer(progress)),
        )
    return _end(session, uid, report, given, directory=unpacked_in(directory, name, uid))


@click.command(cls=CartCommand)
@click.argument("manifest", metavar="MANIFEST")
@_uid_option
@pass_session
def submit(session: Session, manifest: str, uid: str | None) -> ExitStatus:
    """Post a manifest, and print the uid of its cart. Does not wait.

    MANIFEST is a file, or - for standard input. Submitting the same again is the same cart, unless
    that is in error: then a new one is staged under the uid.

    \b
    Examples:
      cart submit my-data.json
      uid=$(cart submit -q my-data.json) && cart wait "$uid"
    """
    client = session.client()
    uid = client.submit(session.read_manifest(manifest), uid)
    page = client.page(uid)
    session.result({"uid": uid, "page": page}, uid)
    session.more(f"its page: {page}")
    return ExitStatus.OK


@click.command(cls=CartCommand)
@uid_argument
@waiting_options
@partial_option
@pass_session
def wait(
    session: Session, uid: str, timeout: float | None, progress: str | None, partial: str
) -> ExitStatus:
    """Wait until a cart is ready or in error, and show its status.

    Ends with 0 if the cart is ready, 4 if it is without some of its files, 5 if it is in error,
    and 7 if the time has passed.

    \b
    Examples:
      cart wait my-cart
      cart wait my-cart --timeout 12h --progress lines
    """
    with session.showing(progress) as shown:
        status = session.client(waits=True).wait(uid, timeout, lambda status: _show(shown, status))
    if session.options.json:
        session.json(status.document)
    elif not session.options.quiet:
        show_status(session, status)
    return _accepted(status_of(status), partial)


@click.command(cls=CartCommand)
@uid_argument
@click.option("-o", "--output", metavar="FILE", help="Save the tar as FILE; - is standard output.")
@click.option(
    "-x",
    "--extract",
    metavar="DIR",
    help="Unpack into the folder NAME in DIR, which is created if missing.",
)
@click.option(
    "--manifest",
    metavar="MANIFEST",
    help="Verify against this manifest instead of the service's list of files.",
)
@_name_option("that of the FILE of -o, else UID")
@waiting_options
@download_options
@pass_session
def get(
    session: Session,
    uid: str,
    output: str | None,
    extract: str | None,
    manifest: str | None,
    name: str | None,
    timeout: float | None,
    progress: str | None,
    **given: Any,
) -> ExitStatus:
    """Download a cart, and verify it while it arrives. Waits until it is ready.

    Without -o and -x the tar is saved as NAME.tar. A download that was interrupted is continued
    by the same command; only one to standard output cannot be.

    \b
    Examples:
      cart get my-cart -x /scratch --name my-data
      cart get my-cart -o my-data.tar
      cart get my-cart --bag -o my-data.tar
      cart get my-cart -o - | tar xf -
    """
    if output is not None and extract is not None:
        raise UsageError("Give -o or -x; -x with --keep-tar keeps the tar, too")
    if given["keep_tar"] and extract is None:
        raise UsageError("--keep-tar needs -x: without it the tar is what is kept")
    if output == STDIN and session.options.json:
        raise UsageError("--json and -o - both need standard output")
    if output == STDIN and (given["jobs"] or 1) > 1:
        raise UsageError("-o - is one stream: it cannot be downloaded in several ranges (-j)")
    target: Target
    given_name, name = name, name or file_name(uid)
    if extract is not None:
        target = Directory(Path(extract))
    elif output == STDIN:
        target = Stdout()
    else:
        target = TarFile(Path(output or f"{name}.tar"))
        name = given_name or file_name(target.path.name.removesuffix(".tar"))
    given_manifest = None if manifest is None else session.read_manifest(manifest)
    client = session.client(waits=True)
    with session.showing(progress) as shown:
        client.wait(uid, timeout, lambda status: _show(shown, status))
        report = client.download(
            uid,
            target,
            filename=f"{name}.tar",
            format="bag" if given["bag"] else "tar",
            expected=None if given_manifest is None else client.expected(given_manifest, uid),
            options=_options(session, given),
            on_progress=lambda progress: shown.show(transfer(progress)),
        )
    place = {}
    if isinstance(target, Directory):
        place["directory"] = unpacked_in(str(target.path), name, uid)
    elif isinstance(target, TarFile):
        place["file"] = str(target.path)
    return _end(session, uid, report, given, to_stderr=output == STDIN, **place)


def _show(shown: Display, status: Status) -> None:
    """Show how far the service is, until the cart has ended."""
    if not status.is_ended:
        shown.show(staging(status))


def _options(session: Session, given: dict[str, Any]) -> Options:
    """Return how to download: as the command line says, else the profile."""
    return Options(
        jobs=given["jobs"] or session.setting("jobs", Number(1)) or 1,
        limit_rate=given["limit_rate"] or session.setting("limit_rate", ByteRate()),
        restart=given["restart"],
        keep_tar=given["keep_tar"],
    )


def _end(
    session: Session,
    uid: str,
    report: Report,
    given: dict[str, Any],
    *,
    to_stderr: bool = False,
    **members: Any,
) -> ExitStatus:
    """Show the report of a download, and delete the cart if that was asked for."""
    exit_status = _accepted(report.exit_status, given["partial"])
    deletes = (
        given["delete_after"] and report.exit_status == ExitStatus.OK and not report.unverified
    )
    if deletes:
        session.client().delete(uid)
        members["deleted"] = True
    elif given["delete_after"]:
        session.warn(f"The cart {uid} was not deleted, as not all of its files are verified.")
    if report.exit_status == ExitStatus.OK and "directory" in members:
        _forget_missing(Path(members["directory"]), uid)
    hints = []
    if report.missing:
        hints.append(f"Stage them again: cart retry {uid}")
    if report.failed:
        hints.append("Run the same command again to download them anew.")
    show_report(session, report, hints, to_stderr=to_stderr, uid=uid, **members)
    return exit_status


def _forget_missing(folder: Path, uid: str) -> None:
    """Remove the list of missing files of a download before, now that the files are there."""
    listed = folder.with_name(f"{folder.name}.missing.json")
    with suppress(OSError, ValueError):
        document = json.loads(listed.read_bytes())
        if isinstance(document, dict) and document.get("uid") == uid:
            listed.unlink()


def _accepted(exit_status: ExitStatus, partial: str) -> ExitStatus:
    """Return 0 for a partial end if that is acceptable."""
    return ExitStatus.OK if exit_status == ExitStatus.PARTIAL and partial == "ok" else exit_status


def show_report(
    session: Session,
    report: Report,
    hints: Iterable[str] = (),
    *,
    to_stderr: bool = False,
    **members: Any,
) -> None:
    """Write what is wrong or missing, and the summary as the last line."""
    if session.options.json:
        session.json({**members, **report_document(report)})
        return
    write = session.terminal.note if to_stderr else session.terminal.paragraph
    write_name = session.terminal.note if to_stderr else session.terminal.line
    for word, problems in (("wrong", report.failed), ("missing", report.missing)):
        for problem in problems[:SHOWN_FILES]:
            write_name(f"{word}: {problem.path}: {problem.error}", "red")
        if len(problems) > SHOWN_FILES:
            write(f"{word}: and {len(problems) - SHOWN_FILES:,} more; --json lists all", "red")
    if report.failed or report.missing:
        for hint in hints:
            write(hint, "")
    if session.options.quiet:
        return
    for key in ("directory", "file"):
        if key in members:
            session.more(f"the {'files are' if key == 'directory' else 'tar is'} in {members[key]}")
    bad = "red" if report.failed else "yellow" if report.missing or report.unverified else "green"
    write(report.summary(), bad)


def report_document(report: Report) -> dict[str, Any]:
    """Return the document of a report."""
    return {
        "outcome": report.outcome,
        "files": report.files,
        "bytes": report.bytes,
        "verified": dict(report.verified),
        "unverified": report.unverified,
        "failed": [_problem_document(problem) for problem in report.failed],
        "missing": [_problem_document(problem) for problem in report.missing],
        "summary": report.summary(),
    }


def _problem_document(problem: FileProblem) -> dict[str, Any]:
    document = {
        "position": problem.position,
        "id": problem.id,
        "path": problem.path,
        "error": problem.error,
        "problem": problem.problem,
    }
    return {key: value for key, value in document.items() if value is not None}


@click.command(cls=CartCommand)
@click.argument("path", metavar="TAR|DIR")
@click.option(
    "--manifest", metavar="MANIFEST", help="The manifest of the files; - is standard input."
)
@click.option("--uid", metavar="UID", help="Verify against the list of files of this cart.")
@progress_option
@pass_session
def verify(
    session: Session, path: str, manifest: str | None, uid: str | None, progress: str | None
) -> ExitStatus:
    """Verify a tar, or an unpacked folder, against a manifest, a cart, or as a bag.

    Reads every file. With --manifest no service is needed. Without --manifest and --uid it must be
    a BagIt bag, whose own hash sums count.

    DIR is the folder of the files: the paths of the manifest are looked up in it.

    Ends with 0 if all files are there and right, 4 if some are missing, and 6 if one is wrong.

    \b
    Examples:
      cart verify my-data --manifest my-data.json
      cart verify my-data.tar --uid my-cart
      cart verify my-bag
    """
    if manifest is not None and uid is not None:
        raise UsageError("Give --manifest or --uid, not both")
    expected: Iterable[FileEntry] | None = None
    with session.showing(progress) as shown:
        if manifest is not None:
            expected = session.read_manifest(manifest).files()
        elif uid is not None:
            expected = session.client().files(uid)
        try:
            report = verify_path(
                Path(path), expected, lambda done: shown.show(transfer(done, "Verifying"))
            )
        except UsageError as error:
            raise UsageError(f"{path} is not a bag: give --manifest or --uid") from error
    show_report(session, report, path=path)
    return report.exit_status
