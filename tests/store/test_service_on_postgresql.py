"""The service with PostgreSQL instead of SQLite, once from end to end."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.archive_faults import status
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.databases import Postgres
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import running_cartd, wait_for

pytest_plugins = ("tests.support.archive_fixtures", "tests.support.database_fixtures")

NEVER = 10**9
INI = "[archiveinterface]\nmax_attempts = 1\n[cartd]\nvolume_quota = 1000000\nlru_interval = 0.5\n"


@in_a_thread
def test_carts_go_from_posting_to_purging_with_a_kill_between(
    archive: FaultyArchive, postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.create()
    with running_cartd(tmp_path, archive=url_of(archive), database=url, ini=INI) as cartd:
        stage(cartd, archive, "tree", 300_000, files=300)
        stage(cartd, archive, "bundle", 100_000, files=3, bundle=True)
        slow = manifest_of(archive, "slow", 2_000, files=2)
        archive.put("slow-1", content("slow-1", 1_000), tape_heads=NEVER)
        cartd.post("slow", slow)
        wait_for(lambda: cartd.staged("slow") == 1)
        archive.fault("failing-0", status(404), times=None)
        cartd.post("failing", manifest_of(archive, "failing", 10))
        cartd.wait_until("failing", "error")
        cartd.kill()
        cartd.start()
        archive.files["slow-1"].tape_heads = 0
        for uid in ("tree", "bundle", "slow"):
            cartd.wait_until(uid, "ready")
        for uid, files, size in (("tree", 300, 1000), ("bundle", 3, 33_333), ("slow", 2, 1000)):
            downloaded = cartd.download(uid)
            assert len(downloaded) == files
            assert downloaded["dir/file-1"] == content(f"{uid}-1", size)
        archive.heal()
        fixed = cartd.run("cartd-cmd", "fixit", "--cartid", "failing", "tree")
        assert fixed.stderr == "failing: ready\ntree: ready, nothing to fix\n"
        cartd.run("cartd-cmd", "dbchk", "--equal")
        dumped = json.loads(cartd.run("cartd-cmd", "dump", "--json").stdout)
        assert [cart["cart_uid"] for cart in dumped] == ["failing", "slow", "bundle", "tree"]
        assert len(dumped[3]["files"]) == 300
        # These two were used before the others, so they are evicted when space runs out.
        stage(cartd, archive, "large", 800_000)
        assert cartd.get("/failing").status == cartd.get("/tree").status == 404
        purged = cartd.run("cartd-cmd", "purge", "--time-ago", "0 seconds ago")
        assert len(purged.stdout.splitlines()) == 3
        assert cartd.delete("large").status == 404
        assert not list(cartd.volume.glob("[0-9]*"))
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
    postgres.drop(url)
