"""What each problem means, and what to do about it: for users, in the words of the documentation.

The table is the only source of the titles in responses, of the pages that the service serves, and
of docs/problems.md, which ``make docs`` writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from cartd.errors import Problem


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One problem type (RFC 9457, section 4)."""

    title: str
    """The same in every response."""
    meaning: str
    remedy: str


PROBLEM_TYPES: dict[Problem, ProblemType] = {
    Problem.INVALID_MANIFEST: ProblemType(
        "The manifest is invalid",
        "The manifest is not JSON of the right form, or an entry breaks a rule. Nothing was"
        " stored. `errors` lists up to 100 faults, each with a JSON pointer into the manifest;"
        " the first is that of `detail`. Entries are compared with each other only if each of them"
        " is valid by itself. A cart can fail with this problem, too: the file system of the"
        " volume cannot store one of its paths, or takes two of them for the same.",
        "Correct the manifest, and post it again.",
    ),
    Problem.INVALID_UID: ProblemType(
        "The uid is invalid",
        "No cart can be posted under this uid.",
        "Choose 1 to 255 of `A-Z a-z 0-9 . _ ~ -`, not beginning with `.` or `-`.",
    ),
    Problem.INVALID_REQUEST: ProblemType(
        "The request is invalid",
        "The service does not accept the request as it is: its method, target, parameters, headers"
        " or coding are wrong, or it was not complete in time. Nothing was changed.",
        "Correct the request as `detail` says. With status 405, `Allow` lists the methods.",
    ),
    Problem.UNAUTHENTICATED: ProblemType(
        "Valid credentials are missing",
        "The site requires authentication, and the request has no valid token.",
        "Send a token of the site: `Authorization: Bearer TOKEN`, or as a password. A token that"
        " was valid before may have been revoked: ask the administrator for a new one.",
    ),
    Problem.FORBIDDEN: ProblemType(
        "The user may not do this",
        "The credentials are valid, but their user lacks the permission.",
        "Ask the administrator of the service.",
    ),
    Problem.CROSS_SITE: ProblemType(
        "A page of another site may not do this",
        "A browser sent the request for a page of another site, which must not change anything"
        " with the user's credentials (cross-site request forgery); or the token of a form is"
        " missing or has expired.",
        "Reload the page, and send its form again. For an application of another site: ask the"
        " administrator to add its origin to `[server] allowed_origins`. If the page is the"
        " service's own, behind a proxy: the proxy must forward the header `Host`.",
    ),
    Problem.UNKNOWN_HOST: ProblemType(
        "The service does not have this host name",
        "Without authentication the service accepts only IP addresses, `localhost` and the names"
        " that its administrator has configured: a page of another site could give itself a name"
        " that resolves to the service (DNS rebinding).",
        "Use the address that the administrator has published. For the administrator: add the name"
        " to `[server] allowed_hosts`, or set `[server] public_url`.",
    ),
    Problem.NO_SUCH_CART: ProblemType(
        "There is no such cart",
        "No cart of this uid exists, it was deleted or evicted, or it belongs to another user.",
        "Check the uid. If the cart was deleted or evicted, post its manifest again.",
    ),
    Problem.NOT_FOUND: ProblemType(
        "There is nothing at this path",
        "The path is not one of those of the interface.",
        "Compare the URL with the description of the interface, `/-/openapi.json`.",
    ),
    Problem.NOT_READY: ProblemType(
        "The cart is not ready",
        "The cart is still being staged, so that a part of its tar, or a tar with a condition,"
        " cannot be sent.",
        "Wait until the cart is ready, then send the same request again.",
    ),
    Problem.CART_FAILED: ProblemType(
        "The cart could not be staged",
        "The cart is in error. `detail` is the reason, and `cause` is its problem type, if it is"
        " known.",
        "Remove the cause, then post the manifest again or retry the cart: only files that are not"
        " on the volume are fetched.",
    ),
    Problem.CONFLICT: ProblemType(
        "The cart is in another state",
        "The request is only for carts in a certain state, for example in error, and this cart is"
        " in another one. Nothing was changed.",
        "Get the status of the cart, and decide again.",
    ),
    Problem.NO_COMMON_HASH: ProblemType(
        "The files have no hash in common",
        "A list of checksums of one type, or a bag, needs the same hash of every staged file. The"
        " manifest gave other hashes for some of them, and no second hash was computed when they"
        " were staged.",
        "Request the checksums without `type`, or the plain tar. Give all files of a manifest the"
        " same `hashtype`. For the administrator: `[staging] also_hash` has a second hash of every"
        " file computed.",
    ),
    Problem.PRECONDITION_FAILED: ProblemType(
        "A condition of the request does not hold",
        "The cart is not in the state that `If-Match`, `If-None-Match` or `If-Unmodified-Since`"
        " requires. Nothing was done.",
        "Get the cart's current state, and decide again.",
    ),
    Problem.RANGE_NOT_SATISFIABLE: ProblemType(
        "None of the requested bytes exists",
        "The range begins after the last byte of the tar. `Content-Range` has its length.",
        "If the file on your disk has that length, the download is complete.",
    ),
    Problem.LIMIT_EXCEEDED: ProblemType(
        "A limit is exceeded",
        "The request is larger or slower than the service accepts, or there are too many carts,"
        " files, connections or bytes in progress. `limit` names the setting.",
        "With status 429 or 503, send the request again after the seconds in `Retry-After`, or"
        " when some of your carts are ready. Otherwise split the cart, or ask the administrator"
        " for a higher limit.",
    ),
    Problem.NO_SPACE: ProblemType(
        "There is no space",
        "The volume has no space for the cart, and no cart on it may be evicted; or the temporary"
        " directory of the service has no space for a request.",
        "Delete carts that are no longer needed, and try again. The administrator can enlarge the"
        " volume or its quota.",
    ),
    Problem.ARCHIVE_UNAVAILABLE: ProblemType(
        "The archive is unavailable",
        "The archive did not answer, or reported that it is out of service, for longer than a cart"
        " waits for it.",
        "Post the manifest again, or retry the cart, when the archive is back.",
    ),
    Problem.ARCHIVE_REFUSED: ProblemType(
        "The archive did not deliver the file",
        "The archive answered with an error, or its answer could not be used. `detail` quotes it.",
        "Ask the administrator of the archive, for example whether access to the file is"
        " permitted; then retry the cart.",
    ),
    Problem.FILE_NOT_IN_ARCHIVE: ProblemType(
        "The archive does not have the file",
        "The archive has no file of this id.",
        "Check the id, and remove the entry or correct it.",
    ),
    Problem.HASH_MISMATCH: ProblemType(
        "The bytes of the file do not have its hash sum",
        "The archive sent a file whose hash sum differs from the one in the manifest, in each"
        " attempt.",
        "Check the hash sum in the manifest. If it is right, the archive has a damaged file: tell"
        " its administrator.",
    ),
    Problem.SIZE_MISMATCH: ProblemType(
        "The file does not have its declared size",
        "The archive sent more or fewer bytes than it had declared, in each attempt.",
        "Retry the cart. If that fails again, tell the administrator of the archive.",
    ),
    Problem.VOLUME_UNAVAILABLE: ProblemType(
        "The volume is unavailable",
        "The disk with the staged files is not mounted, not writable, or damaged.",
        "Try again later. Carts continue by themselves when the disk is back.",
    ),
    Problem.DATABASE_UNAVAILABLE: ProblemType(
        "The database is unavailable",
        "The service cannot reach its database.",
        "Send the request again after the seconds in `Retry-After`.",
    ),
    Problem.STOPPING: ProblemType(
        "The service is stopping",
        "The service is being stopped or restarted. Carts that it was staging continue after its"
        " next start.",
        "Send the request again in a minute.",
    ),
    Problem.UNAVAILABLE: ProblemType(
        "The service cannot answer now",
        "Something that the request needs is missing for a short time.",
        "Send the request again after the seconds in `Retry-After`.",
    ),
    Problem.INTERNAL_ERROR: ProblemType(
        "The service failed",
        "The request met a fault of the service. Its log has the cause.",
        "Report it to the administrator, with the time and, if there is one, the `instance`.",
    ),
}


def as_markdown(name: Problem) -> str:
    """Return what is known of one problem, as Markdown below its heading."""
    about = PROBLEM_TYPES[name]
    return f"**{about.title}.** {about.meaning}\n\nWhat to do: {about.remedy}\n"
