"""The page of one cart, from its status document."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from msgspec import UNSET
from twisted.web.template import Tag, tags

from cartd.model import CartFormat, CartStatus, Outcome
from cartd.page.layout import Page, Visitor, base_of, form, moment
from cartd.page.problems import PROBLEMS
from cartd.page.units import count, percent, size, span, transfer
from cartd.status.document import Cause, FailedFile, Phase, Status

LINE_RATES = (("100 Mbit/s", 12_500_000), ("1 Gbit/s", 125_000_000))
"""Speeds of networks, in bytes per second."""
SEGMENTS = ("staged", "fetching", "recalling", "failed")
"""The parts of the bar, from left to right; the rest waits."""
MIN_FAILED = 2.0
"""Percent of the bar that failed files take at least: one of a million is visible, too."""


@dataclass(frozen=True, slots=True)
class Hashes:
    """The hashes of the files of a cart."""

    listed: frozenset[str] = frozenset()
    """Those in the list of checksums, by their names in hashlib; none without such a list."""
    common: bool = False
    """Whether all files have one in common, as a bag needs."""


NO_HASHES = Hashes()

_STATES = {
    Phase.QUEUED: "waiting",
    Phase.RECALLING: "waiting for tape",
    Phase.FETCHING: "staging",
    Phase.BUNDLING: "bundling",
}
_WAITING = {
    Cause.ARCHIVE: "waiting for the archive",
    Cause.TAPE: "waiting for tape",
    Cause.SPACE: "waiting for space",
    Cause.DATABASE: "waiting for the database",
    Cause.TURN: "in the queue",
}
_OUTCOMES = {Outcome.COMPLETE: "ready", Outcome.PARTIAL: "partial", Outcome.FAILED: "failed"}
_PROGRAMS = {
    "blake2b": "b2sum",
    **{name: f"{name}sum" for name in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")},
}
"""The programs of GNU coreutils, by the hashes that they check."""
_LEGEND = {"staged": "staged", "fetching": "being fetched", "recalling": "on tape",
           "failed": "failed", "waiting": "waiting"}  # fmt: skip


def cart_url(uid: str) -> str:
    """Return the path of a cart's page."""
    return f"/-/carts/{quote(uid, safe='')}"


def state(status: Status) -> str:
    """Return the state in a word or two."""
    if status.status is CartStatus.DELETED:
        return "deleted"
    if status.outcome is not None:
        return _OUTCOMES[status.outcome]
    if status.waiting is not UNSET:
        return _WAITING[status.waiting.cause]
    return _STATES.get(status.phase, status.phase.value)


def done(status: Status) -> float:
    """Return the percentage that is here: of the files, if some are missing in a ready cart."""
    if status.outcome is not Outcome.PARTIAL:
        if status.progress is not UNSET:
            return status.progress
        if status.outcome is Outcome.COMPLETE:
            return 100.0
    return 100.0 * status.files.staged / max(1, status.files.total)


def segments(status: Status) -> list[tuple[str, float, float]]:
    """Return name, start and width of each part of the bar, in percent.

    The staged part is by bytes and the others are by files: what is not done yet is scaled to fit.
    """
    files = status.files
    shares = {
        name: 100 * (number or 0) / max(1, files.total)
        for name, number in (
            ("fetching", files.fetching),
            ("recalling", files.recalling),
            ("failed", files.failed),
        )
    }
    staged = done(status)
    if files.failed:
        shares["failed"] = max(MIN_FAILED, min(shares["failed"], 100 - staged))
    shares["staged"] = min(staged, 100 - shares["failed"])
    left = 100 - shares["staged"] - shares["failed"]
    scale = min(1.0, left / max(left, shares["fetching"] + shares["recalling"], 1e-9))
    at, found = 0.0, []
    for name in SEGMENTS:
        width = shares[name] * (scale if name in ("fetching", "recalling") else 1)
        found.append((name, round(at, 2), round(width, 2)))
        at += width
    return found


def bar(status: Status, *, small: bool = False) -> Tag:
    """Return the bar of a cart."""
    value = f"{int(done(status))}"
    drawing = Tag("svg")(class_="bar small" if small else "bar", role="progressbar")(
        **{
            "aria-label": f"Progress of {status.uid}",
            "aria-valuemin": "0",
            "aria-valuemax": "100",
            "aria-valuenow": value,
            "aria-valuetext": f"{value} %, {state(status)}",
        }
    )
    for name, start, width in segments(status):
        drawing(Tag("rect")(class_=name, x=f"{start}%", width=f"{width}%", height="100%"))
    return drawing


def title(status: Status) -> str:
    """Return the title of the page: what the tab of a browser shows."""
    if status.outcome is not None or status.status is CartStatus.DELETED:
        return f"{state(status).capitalize()} \u00b7 {name_of(status)}"
    return f"{percent(done(status))} {state(status)} \u00b7 {name_of(status)}"


def name_of(status: Status) -> str:
    """Return the name of the cart for people."""
    return status.uid if status.name is UNSET else status.name


def cart_page(
    status: Status,
    visitor: Visitor,
    failed: Sequence[FailedFile],
    more: int,
    hashes: Hashes = NO_HASHES,
) -> Page:
    """Return the page of a cart.

    ``failed``: the failed files to show, and ``more``: the number of those that follow;
    ``hashes``: those of a ready cart.
    """
    url = cart_url(status.uid)
    finished = status.outcome is not None
    failures = []
    if status.files.failed or failed:
        failures.append(_failures(status, visitor, failed, more))
    download = [] if status.outcome is Outcome.FAILED else [_download(status, visitor, hashes)]
    partial = status.outcome is Outcome.PARTIAL
    main = Tag("main")(
        _progress(status),
        # The list may be long: what can be downloaded all the same comes before it.
        *((*download, *failures) if partial else (*failures, *download)),
        _after(status, visitor),
        tags.p("", role="status", class_="hidden"),
    )
    main(**{"data-page": url, "data-shape": _shape(status), **base_of(visitor)})
    if not finished:
        main(**{"data-events": f"{url}/events"})
    return Page(title(status), main, None if finished else url)


def _shape(status: Status) -> str:
    """Return what the script compares: if it changes, more than numbers change on the page."""
    cause = "" if status.waiting is UNSET else status.waiting.cause.value
    outcome = "" if status.outcome is None else status.outcome.value
    return f"{status.status},{status.phase},{outcome},{cause},{status.files.failed}"


def _progress(status: Status) -> Tag:
    files, sizes = status.files, status.bytes
    total = "" if sizes.total is UNSET else f" of {size(sizes.total)}"
    legend = tags.ul(class_="legend")
    numbers = {name: getattr(files, name) or 0 for name in (*SEGMENTS, "waiting")}
    for name, number in numbers.items():
        item = tags.li(tags.i(class_=name), tags.b(f"{number:,}"), f" {_LEGEND[name]}")
        legend(item(**{"data-count": name}, **({} if number else {"hidden": ""})))
    eta = "" if status.eta is UNSET else span(status.eta.low, status.eta.high)
    queue = status.queue
    ahead = "" if queue is UNSET else f"{count(queue.carts_ahead, 'cart')} before yours"
    rate = "" if status.rate is UNSET else f"{size(status.rate.recent)}/s"
    facts = [
        ("files", "Files", f"{files.staged:,} of {files.total:,}"),
        ("bytes", "Data", f"{size(sizes.staged)}{total}"),
        ("rate", "Rate", rate),
        ("eta", "Time to go", eta),
        ("queue", "In the queue", ahead),
    ]
    heading = tags.h1(name_of(status))
    header = tags.div(
        tags.div(
            heading,
            tags.p(
                "" if status.name is UNSET else tags.code(status.uid),
                *(tags.span(label, class_="label") for label in status.labels),
                " posted ",
                moment(status.created),
                "" if status.owner is UNSET else f" by {status.owner}",
                class_="quiet",
            ),
        ),
        tags.strong(state(status), class_=f"state {_kind(status)}"),
        class_="heading",
    )
    article = tags.article(
        header,
        tags.p(status.message, class_="lead")(**{"data-field": "message"}),
        tags.div(
            tags.span(percent(done(status)), class_="percent")(**{"data-field": "percent"}),
            bar(status),
            class_="progress",
        ),
        legend,
        tags.dl(*(_fact(*fact) for fact in facts), class_="facts"),
    )
    if status.outcome is None:
        article(
            tags.p(
                "You may close this page: the cart is staged all the same, and its address stays"
                " valid.",
                class_="quiet",
            )
        )
    return article


def _kind(status: Status) -> str:
    return "active" if status.outcome is None else status.outcome.value


def _fact(field: str, name: str, value: str) -> Tag:
    fact = tags.div(tags.dt(name), tags.dd(value)(**{"data-field": field}))
    return fact if value else fact(hidden="")


def _download(status: Status, visitor: Visitor, hashes: Hashes) -> Tag:
    filename = download_name(status)
    ready = status.status is CartStatus.READY
    length = status.bytes.total
    if status.download is not UNSET and status.download.length is not UNSET:
        length = status.download.length
    article = tags.article(tags.h2("Download"), _buttons(status, filename, bag=hashes.common))
    if length is not UNSET:
        times = [f"{transfer(length / rate)} at {name}" for name, rate in LINE_RATES]
        if length < LINE_RATES[0][1] * 10:
            times = times[:1]
        article(tags.p(tags.b(size(length)), ": ", ", ".join(times), "."))
    secret = f"-u {shlex.quote(visitor.user)} " if visitor.user and visitor.tokens else ""
    waits = "" if ready else "It waits until the cart is ready. "
    article(
        tags.p(
            "In a terminal, ",
            tags.code("cart"),
            f" downloads, verifies and unpacks in one step. {waits}The same line resumes what was"
            " interrupted:",
        ),
        command(_client_line(status, visitor, filename)),
    )
    if ready:  # before, curl would save the status
        url = visitor.base_url + _path(status, filename)
        article(
            tags.p("Or with curl, where the same line resumes, too:"),
            command(_curl(secret, url, filename)),
        )
    return article(*_verification(status, visitor, filename, secret, hashes.listed))


def _buttons(status: Status, filename: str, *, bag: bool) -> Tag:
    action = tags.p(class_="action")
    if status.status is not CartStatus.READY:
        button = tags.button("Download", class_="download", disabled="")
        reason = "It is possible as soon as all files are staged."
        return action(
            button(**{"aria-describedby": "why"}), tags.span(reason, id="why", class_="quiet")
        )
    path = _path(status, filename)
    action(tags.a("Download", role="button", href=path, class_="download", download=filename))
    if bag and _has_bag(status):
        name = bag_name(filename)
        link = tags.a("Download as a bag", role="button", class_="bag", download=name)
        note = "A bag is a tar that contains the checksums of its files (BagIt 1.0)."
        action(
            link(href=_path(status, name, CartFormat.BAG), **{"aria-describedby": "bag"}),
            tags.span(note, id="bag", class_="quiet"),
        )
    return action


def _has_bag(status: Status) -> bool:
    return status.download is not UNSET and CartFormat.BAG in status.download.formats


def _path(status: Status, filename: str, format_: CartFormat = CartFormat.TAR) -> str:
    """Return the path of a download; the default format of a cart that has a bag may be either."""
    asked = f"format={format_}&" if _has_bag(status) else ""
    return f"/{quote(status.uid, safe='')}?{asked}filename={quote(filename, safe='')}"


def _client_line(status: Status, visitor: Visitor, filename: str) -> str:
    base, uid = shlex.quote(visitor.base_url), shlex.quote(status.uid)
    name = "" if status.name is UNSET else f" --name {shlex.quote(_folder(filename))}"
    return f"cart --url {base} get {uid} -x .{name}"


def _curl(secret: str, url: str, filename: str) -> str:
    return f"curl -f {secret}-C - -o {shlex.quote(filename)} {shlex.quote(url)}"


def _verification(
    status: Status, visitor: Visitor, filename: str, secret: str, hash_types: Collection[str]
) -> list[Tag]:
    """Return how to check the files, if coreutils has a program for all their hashes."""
    program = checking_program(hash_types)
    if "checksums" not in status.links or program is None:
        return []
    url = shlex.quote(f"{visitor.base_url}{cart_url(status.uid)}/checksums")
    folder = shlex.quote(_folder(filename))
    unpack = f"tar xf {shlex.quote(filename)}"
    if status.name is not UNSET:  # a tar that is on the volume has the uid as its folder
        unpack = f"mkdir {folder}\n{unpack} -C {folder} --strip-components=1"
    details = tags.details(
        tags.summary("How to check the files"),
        tags.p(
            "Each file was compared with its size and its hash before it got here. To compare the"
            " unpacked files with the same hashes:"
        ),
        command(f"{unpack}\ncd {folder}\ncurl -sf {secret}{url} | {program} -c --quiet"),
    )
    return [details]


def checking_program(hash_types: Collection[str]) -> str | None:
    """Return the program of GNU coreutils that checks files with these hashes; None without one.

    Lines of several hashes have tags, which ``cksum`` reads.
    """
    programs = {_PROGRAMS.get(one) for one in hash_types}
    if len(programs) > 1 and None not in programs:
        return "cksum"
    return programs.pop() if len(programs) == 1 else None


def bag_name(filename: str) -> str:
    """Return the name of the bag beside a tar: a download is never resumed with the other one."""
    return f"{_folder(filename)}-bag.tar"


def _folder(filename: str) -> str:
    return filename.removesuffix(".tar")


def download_name(status: Status) -> str:
    """Return a valid file name for the tar, from the name of the cart."""
    name = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in name_of(status))
    while len(name.encode()) > 200:
        name = name[:-1]
    return f"{name.rstrip('. ').lstrip('-. ') or 'cart'}.tar"


def command(line: str) -> Tag:
    """Return lines for a terminal, which the script gives a button to copy them."""
    return tags.div(tags.pre(tags.code(line), tabindex="0"), class_="command")


def _failures(status: Status, visitor: Visitor, failed: Sequence[FailedFile], more: int) -> Tag:
    url = cart_url(status.uid)
    article = tags.article(tags.h2(_failed_heading(status)))
    partial = status.outcome is Outcome.PARTIAL
    if partial:
        article(
            tags.p(
                "The tar has all others, and beside them a list of what is missing, "
                if status.files.staged
                else "The tar has a list of them only, ",
                tags.code(f"{_folder(download_name(status))}.missing.json"),
                ".",
            )
        )
    if partial or status.outcome is Outcome.FAILED:
        note = "What is staged already is kept."
        if partial:
            note += " If files arrive, the download changes: begin it anew then."
        article(
            form(
                visitor,
                f"{url}/form",
                tags.input(type="hidden", name="action", value="retry"),
                tags.button(f"Retry the {'missing' if partial else 'failed'} files", type="submit"),
                tags.p(note, class_="quiet"),
            )
        )
    if failed:
        head = tags.thead(tags.tr(tags.th("File", scope="col"), tags.th("Reason", scope="col")))
        body = tags.tbody(*map(_failed_row, failed))
        article(tags.table(head, body, class_="cards files"))
    if more > 0:
        article(
            tags.p(
                tags.a(f"The next of {more:,} more", href=f"{url}?after={failed[-1].position}"),
                class_="more",
            )
        )
    return article


def _failed_heading(status: Status) -> str:
    number = status.files.failed if status.failed is UNSET else status.failed.count
    if status.outcome is not Outcome.PARTIAL:
        return f"{count(number, 'file')} failed"
    verb = "is" if number == 1 else "are"
    return f"{number:,} of {count(status.files.total, 'file')} {verb} missing"


def _failed_row(failed: FailedFile) -> Tag:
    reason = tags.td(failed.error)
    if failed.problem is not UNSET:
        name = str(failed.problem)
        reason(" ", tags.a(name, href=f"{PROBLEMS}/{name}", class_="problem"))
    return tags.tr(tags.th(failed.path, scope="row"), reason)


def _after(status: Status, visitor: Visitor) -> Tag:
    article = tags.article(tags.h2("Afterwards"))
    if status.kept is not UNSET:
        if status.kept.promised_until is not UNSET:
            article(tags.p("The cart is kept until ", moment(status.kept.promised_until), "."))
        article(tags.p(status.kept.may_go))
    unfinished = status.outcome is None
    article(
        tags.details(
            tags.summary("Delete this cart\u2026"),
            tags.p(
                "It is removed for everyone, at once."
                + (" Its staging is aborted." if unfinished else "")
                + " The files in the archive are not touched."
            ),
            form(
                visitor,
                f"{cart_url(status.uid)}/form",
                tags.input(type="hidden", name="action", value="delete"),
                tags.button("Yes, delete it", type="submit", class_="danger"),
            ),
        )
    )
    return article
