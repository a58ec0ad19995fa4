"""The files in contrib/prometheus, with the real Prometheus, which scrapes the real service."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from cartd.errors import Problem
from tests.support.cart_site import CartSite, cart_site
from tests.support.free_ports import free_port
from tests.support.metrics_table import definitions
from tests.support.running_cartd import ask, wait_for

FILES = Path(__file__).parents[2] / "contrib" / "prometheus"
ALERTS = FILES / "alerts.yml"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
VARIABLES = {"$__rate_interval": "1m", '"$instance"': '".*"'}
SUFFIXES = re.compile("_(bucket|sum|count)$")


def dashboard_expressions() -> list[str]:
    targets = [one for panel in DASHBOARD["panels"] for one in panel.get("targets", [])]
    return [with_values(one["expr"]) for one in targets]


def with_values(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


EXPRESSIONS = [*(rule["expr"] for rule in RULES), *dashboard_expressions()]


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the files ----------------------------------------------------------------------------------


def test_alerting_rules_are_valid() -> None:
    promtool("check", "rules", ALERTS)


def test_each_alert_is_raised_by_its_trouble_and_by_nothing_else() -> None:
    promtool("test", "rules", FILES / "alerts_test.yml")
    tests = yaml.safe_load((FILES / "alerts_test.yml").read_text())["tests"]
    names = [rule["alert"] for rule in RULES]
    assert [one["alertname"] for one in tests[0]["alert_rule_test"]] == names
    assert tests[1]["promql_expr_test"][0]["exp_samples"][0]["value"] == len(names)


def test_an_alert_says_what_it_means_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["annotations"]["description"].endswith(".")


def test_page_lists_every_alert() -> None:
    page = (FILES.parents[1] / "docs" / "monitoring.md").read_text("utf-8")
    listed = re.findall(r"^\| `(Cartd\w+)` \| (\w+) \|", page, re.M)
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


def test_metrics_of_expressions_have_these_labels() -> None:
    own = {name: set(labels) for name, _, labels, _ in definitions()}
    of_scrape = {"instance", "job", "le"}
    for expression in EXPRESSIONS:
        for name, given in re.findall(r"(cartd_\w+)(?:\{([^}]*)\})?", expression):
            labels = own.get(name) if name in own else own.get(SUFFIXES.sub("", name))
            assert labels is not None, f"{name} does not exist: {expression}"
            used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", given))
            assert used <= labels | of_scrape, expression
        for names in re.findall(r"by \(([^)]*)\)", expression):
            known = of_scrape.union(*own.values())
            assert {name.strip() for name in names.split(",")} <= known, expression
    named = re.findall(r'problem=~"([^"]*)"', "".join(EXPRESSIONS))
    assert {one for group in named for one in group.split("|")} <= set(Problem)


def test_panels_of_the_dashboard_do_not_overlap_and_have_units() -> None:
    taken: set[tuple[int, int]] = set()
    ids = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        ids.add(panel["id"])
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "${datasource}"
    assert len(ids) == len(DASHBOARD["panels"])


# --- against a running service ------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        running.stage("cart", {"a": b"x"})
        running.cartd.download("cart")
        yield running


def test_scrape_passes_the_lint_of_promtool(site: CartSite) -> None:
    scrape = site.cartd.get("/-/metrics").body
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_prometheus_scrapes_the_service_and_evaluates_every_expression(
    site: CartSite, tmp_path: Path
) -> None:
    with prometheus(tmp_path, site.port) as port:

        def result(expression: str) -> Any:
            query = urlencode({"query": expression})
            answer = ask(port, "GET", f"/api/v1/query?{query}")
            assert answer.status == 200, (expression, answer.body)
            return answer.json["data"]["result"]

        # Two scrapes, for the rates.
        wait_for(lambda: result('count_over_time(up{job="cartd"}[1m]) >= 3'))
        assert result('up{job="cartd"}')[0]["value"][1] == "1"
        assert result('cartd_carts{status="ready"}')[0]["value"][1] == "1"
        for expression in EXPRESSIONS:
            result(expression)
        # What needs no event to have a value shows one.
        empty = [one for one in dashboard_expressions() if not result(one)]
        events = ("failures", "http_requests", "rejections", "archive_request")
        assert [one for one in empty if not any(event in one for event in events)] == []


@contextmanager
def prometheus(directory: Path, target: int) -> Iterator[int]:
    """Run Prometheus, which scrapes the service at ``target`` each second; yield its port."""
    port = free_port()
    config = {
        "scrape_configs": [
            {
                "job_name": "cartd",
                "metrics_path": "/-/metrics",
                "scrape_interval": "1s",
                "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
            }
        ],
        "rule_files": [str(ALERTS)],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:

        def answers() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            try:
                return ask(port, "GET", "/-/ready").status == 200
            except OSError:
                return False

        wait_for(answers)
        yield port
    finally:
        process.terminate()
        process.wait()
