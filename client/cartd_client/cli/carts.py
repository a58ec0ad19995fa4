"""Commands that show carts and change them: status, files, list, label, retry, delete, plan."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from itertools import islice
from typing import Any

import click
from rich.text import Text

from cartd_client.cli.options import CartCommand, Number
from cartd_client.cli.progress import span, staging
from cartd_client.cli.session import Session, pass_session
from cartd_client.cli.terminal import count, duration, moment
from cartd_client.errors import ExitStatus, UsageError
from cartd_client.model import FileEntry, Status, format_bytes

_STYLES = {"ready": "green", "partial": "yellow", "error": "red"}


def uid_argument(command: Any) -> Any:
    """The argument UID."""
    return click.argument("uid")(command)


@click.command(cls=CartCommand)
@uid_argument
@click.option("--web", is_flag=True, help="Open the page of the cart in a browser.")
@pass_session
def status(session: Session, uid: str, web: bool) -> ExitStatus:
    """Show how far a cart is.

    UID is the id of the cart, which submit and fetch print, and list shows.

    Ends with 0 if the cart is being staged or ready, 4 if it is ready without some of its files,
    5 if it is in error, and 3 if there is none.

    \b
    Examples:
      cart status my-cart
      cart status my-cart --web
      cart status my-cart --json | jq .progress
    """
    if web:
        page = session.page_of(uid)
        opened = webbrowser.open(page)
        session.result({"uid": uid, "page": page, "opened": opened}, page)
        if not opened:
            session.warn("No browser could be opened; open the address yourself.")
        return ExitStatus.OK
    found = session.client().status(uid)
    if session.options.json:
        session.json(found.document)
    else:
        show_status(session, found)
    return status_of(found)


def status_of(found: Status) -> ExitStatus:
    """Return the exit status that says how a cart has ended, or that it has not."""
    if found.status == "error":
        return ExitStatus.CART_FAILED
    return ExitStatus.PARTIAL if found.is_partial else ExitStatus.OK


def show_status(session: Session, found: Status) -> None:
    """Write the status of a cart for people."""
    terminal, now = session.terminal, datetime.now(timezone.utc)
    state = "partial" if found.is_partial else found.status
    stage = staging(found)
    head = f"{state}, {stage.percent}" if stage.percent and not found.is_ended else state
    rows: list[tuple[str, str | Text]] = [("Cart", found.uid)]
    if found.name:
        rows.append(("Name", found.name))
    rows.append(("Status", Text(head, style=_STYLES.get(state, "bold"))))
    if found.message:
        rows.append(("", found.message))
    rows.append(("Files", _files(found)))
    if found.bytes.total is not None or found.bytes.staged:
        rows.append(("Size", _sizes(found)))
    if found.rate is not None and found.rate.recent is not None and not found.is_ended:
        rows.append(("Rate", f"{format_bytes(found.rate.recent)}/s"))
    eta = found.eta
    if eta is not None and eta.low is not None and eta.high is not None and not found.is_ended:
        rows.append(("Ready", f"in {span(eta.low, eta.high)}"))
    if found.queue is not None and found.queue.carts_ahead and not found.is_ended:
        rows.append(("Queue", f"behind {count(found.queue.carts_ahead, 'other cart')}"))
    if found.labels:
        rows.append(("Labels", ", ".join(found.labels)))
    if found.created is not None:
        rows.append(("Created", moment(found.created, now)))
    rows.extend(_failed(found))
    terminal.facts(rows)


def _files(found: Status) -> str:
    files = found.files
    if files.total is None:
        return "not known"
    parts = [
        f"{number:,} {word}"
        for number, word in (
            (files.staged, "staged"),
            (files.fetching, "being fetched"),
            (files.recalling, "on tape"),
            (files.waiting, "waiting"),
            (files.failed, "failed"),
        )
        if number
    ]
    if files.staged == files.total:
        return f"{files.total:,}, all staged"
    return ": ".join(filter(None, [f"{files.total:,}", ", ".join(parts)]))


def _sizes(found: Status) -> str:
    total, staged = found.bytes.total, found.bytes.staged
    if total is None:
        return f"{format_bytes(staged or 0)} staged; the total is not known yet"
    if staged is None or staged >= total:
        return format_bytes(total)
    return f"{format_bytes(total)}: {format_bytes(staged)} staged"


def _failed(found: Status) -> Iterable[tuple[str, str | Text]]:
    failed = found.failed or {}
    first = failed.get("first")
    number = found.files.failed or 0
    if not number or not isinstance(first, list):
        return
    shown = [file for file in first if isinstance(file, dict)]
    for place, file in enumerate(shown):
        text = f"{file.get('path', '?')}: {file.get('error', 'failed')}"
        yield ("Failed" if place == 0 else "", Text(text, style="red"))
    if number > len(shown):
        yield ("", f"and {number - len(shown):,} more: cart files --failed {found.uid}")


@click.command(cls=CartCommand)
@uid_argument
@click.option("--failed", is_flag=True, help="Only files that could not be staged, and why.")
@pass_session
def files(session: Session, uid: str, failed: bool) -> ExitStatus:
    """List the files of a cart: status, size and path, in the order of the manifest.

    \b
    Examples:
      cart files my-cart
      cart files --failed my-cart
      cart files my-cart --json | jq -r '.files[].path'
    """
    found = session.client().files(uid, failed=failed)
    if session.options.json:
        session.json_list("files", (_file_document(file) for file in found), uid=uid)
        return ExitStatus.OK
    for file in found:
        size = "" if file.size is None else format_bytes(file.size)
        bad = bool(file.error) or file.status == "error"
        session.terminal.line(
            f"{file.status or '':8} {size:>8}  {file.path}", style="red" if bad else ""
        )
        if file.error:
            session.terminal.paragraph(file.error, indent=19)
    return ExitStatus.OK


def _file_document(file: FileEntry) -> dict[str, Any]:
    """Return a file as the service's list has it."""
    document = {
        "position": file.position,
        "id": file.id,
        "path": file.path,
        "size": file.size,
        "mtime": file.mtime,
        "hashtype": file.hash_type,
        "hashsum": file.hash_sum,
        "also_hashtype": file.also_hash_type,
        "also_hashsum": file.also_hash_sum,
        "status": file.status,
        "error": file.error,
        "problem": file.problem,
    }
    return {key: value for key, value in document.items() if value is not None}


@click.command("list", cls=CartCommand)
@click.option(
    "--status",
    "of_status",
    type=click.Choice(["waiting", "staging", "bundling", "ready", "error"]),
    help="Only carts with this status.",
)
@click.option("--label", metavar="LABEL", help="Only carts with this label.")
@click.option("-n", "--limit", type=Number(1), metavar="N", help="At most N carts.")
@pass_session
def list_carts(
    session: Session, of_status: str | None, label: str | None, limit: int | None
) -> ExitStatus:
    """List your carts, the newest first.

    \b
    Examples:
      cart list
      cart list --status error
      cart list --label 'run 7' --json
    """
    found = session.client().carts(status=of_status, label=label)
    found = found if limit is None else islice(found, limit)
    if session.options.json:
        session.json_list("carts", (cart.document for cart in found))
        return ExitStatus.OK
    now = datetime.now(timezone.utc)
    rows = [_row(cart, now) for cart in found]
    if rows:
        session.terminal.table(("CART", "STATUS", "FILES", "SIZE", "CREATED", "NAME, LABELS"), rows)
    else:
        session.say("No carts.")
    return ExitStatus.OK


def _row(cart: Status, now: datetime) -> list[str]:
    stage = staging(cart)
    state = "partial" if cart.is_partial else cart.status
    total = cart.bytes.total
    return [
        cart.uid,
        f"{state} {stage.percent}" if stage.percent and not cart.is_ended else state,
        "" if cart.files.total is None else count(cart.files.total, "file"),
        "" if total is None else format_bytes(total),
        "" if cart.created is None else f"{duration((now - cart.created).total_seconds())} ago",
        ", ".join(filter(None, [cart.name, *cart.labels])),
    ]


@click.command(cls=CartCommand)
@uid_argument
@click.argument("labels", nargs=-1)
@click.option("--add", is_flag=True, help="Keep the labels that the cart has.")
@click.option("--clear", is_flag=True, help="Remove all labels.")
@pass_session
def label(
    session: Session, uid: str, labels: tuple[str, ...], add: bool, clear: bool
) -> ExitStatus:
    """Replace the labels of a cart, by which list finds it; without any, show them.

    \b
    Examples:
      cart label my-cart 'run 7' raw
      cart label my-cart --add checked
      cart label my-cart --clear
    """
    if clear and (labels or add):
        raise UsageError("--clear takes no labels")
    client = session.client()
    present = client.status(uid).labels if add or not (labels or clear) else ()
    if labels or clear:
        wanted = list(dict.fromkeys([*present, *labels]))
        present = client.set_labels(uid, wanted)
    session.result({"uid": uid, "labels": list(present)}, "\n".join(present) or "No labels.")
    return ExitStatus.OK


@click.command(cls=CartCommand)
@uid_argument
@pass_session
def retry(session: Session, uid: str) -> ExitStatus:
    """Stage the failed files of a cart again; those that came right are kept.

    For carts in error, and for carts that are ready without some of their files. Those get a new
    tar: a download of the old one that was interrupted starts anew with --restart.

    \b
    Examples:
      cart retry my-cart
      cart retry my-cart && cart get my-cart -x .
    """
    found = session.client().retry(uid)
    session.result(found.document, f"{uid} is staged again. Wait for it: cart wait {uid}")
    return ExitStatus.OK


@click.command(cls=CartCommand)
@click.argument("uids", metavar="UID...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_session
def delete(session: Session, uids: tuple[str, ...], yes: bool) -> ExitStatus:
    """Delete carts from the service. The files in the archive, and those downloaded, stay.

    Asks first if a terminal is there. If one cart cannot be deleted, the others are all the same,
    and the exit status is that of the last error.

    \b
    Examples:
      cart delete my-cart
      cart delete --yes my-cart your-cart
    """
    if not yes and session.can_ask:
        what = uids[0] if len(uids) == 1 else count(len(uids), "cart")
        if not session.confirm(f"Delete {what} on the service?"):
            session.say("Nothing was deleted.")
            return ExitStatus.ERROR
    deleted, last = session.each(uids, session.client().delete)
    session.result({"deleted": deleted}, "\n".join(f"{uid} is deleted." for uid in deleted), last)
    return ExitStatus.OK if last is None else last.exit_status


@click.command(cls=CartCommand)
@click.argument("manifest", metavar="MANIFEST")
@pass_session
def plan(session: Session, manifest: str) -> ExitStatus:
    """Tell what a cart of this manifest would take. Nothing is stored or fetched.

    MANIFEST is a file, or - for standard input.

    \b
    Examples:
      cart plan my-data.json
      cart manifest files.csv | cart plan -
    """
    found = session.client().plan(session.read_manifest(manifest))
    if session.options.json:
        session.json(found)
    else:
        _show_plan(session, found)
    return ExitStatus.OK


def _show_plan(session: Session, found: Mapping[str, Any]) -> None:
    numbers, sizes = _mapping(found.get("files")), _mapping(found.get("bytes"))
    rows: list[tuple[str, str | Text]] = []
    total = numbers.get("total")
    if isinstance(total, int):
        size = sizes.get("total")
        known = f", {format_bytes(size)}" if isinstance(size, int) else ""
        rows.append(("Files", f"{total:,}{known}"))
    for key, word in (
        ("on_volume", "On the volume already"),
        ("on_disk", "On disk in the archive"),
        ("on_tape", "On tape"),
        ("missing", "Not in the archive"),
        ("failed", "The archive did not answer"),
        ("unknown", "Not looked up"),
    ):
        number, size = numbers.get(key), sizes.get(key)
        if isinstance(number, int) and number:
            known = f", {format_bytes(size)}" if isinstance(size, int) else ""
            bad = "red" if key in ("missing", "failed") else ""
            rows.append((word, Text(f"{number:,}{known}", style=bad)))
    spaces = {
        "now": "there is enough",
        "after-eviction": "after eviction of old carts",
        "no": "not enough",
    }
    if found.get("space") in spaces:
        rows.append(("Space", spaces[str(found["space"])]))
    session.terminal.facts(rows)
    for limit in found.get("limits") or ():
        text = limit.get("message") if isinstance(limit, dict) else limit
        session.terminal.paragraph(f"Would be rejected now: {text}", style="red")
    for fault in found.get("faults") or ():
        if isinstance(fault, dict):
            session.terminal.paragraph(f"{fault.get('path')}: {fault.get('error')}", style="red")
    if found.get("message"):
        session.terminal.paragraph(str(found["message"]))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
