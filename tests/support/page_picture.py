"""Writes the picture of the page that README shows: ``make picture``.

It starts an archive with tapes, the service and a browser, and waits until a cart is half staged.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.browser import browser
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import entry

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "page.png"
FILES = 96
SIZE = 400_000
WIDTH, HEIGHT = 1000, 740
SHOWN_FROM = 45
"""Percent at which the picture is taken."""


def _manifest(site: CartSite) -> bytes:
    """Return a manifest of files on tape, and of one that the archive does not have."""
    files = {f"scan-14/slice-{number:03}.tif": os.urandom(SIZE) for number in range(FILES)}
    whole = json.loads(site.manifest(files, name="Tomography of sample 14", labels=["raw"]))
    whole["fileids"].append(entry("lost", "scan-14/log.txt", b""))
    return json.dumps(whole).encode()


def main() -> int:
    """Take the picture."""
    with TemporaryDirectory() as directory:
        root = Path(directory)
        with (
            cart_site(root, "--tape-delay=2", "--tape-rate=3") as site,
            browser(root) as page,
        ):
            site.cartd.post("sample-14", _manifest(site))
            page.emulate(WIDTH)
            page.open(f"{site.cartd.url}/-/carts/sample-14")
            page.wait_for(
                "the cart is half staged",
                lambda: int(page.attribute("svg.bar", "aria-valuenow") or "0") >= SHOWN_FROM,
            )
            PICTURE.write_bytes(page.picture(HEIGHT))
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
