"""``python -m tests.support.metrics_table``: write the table of metrics in ``docs/monitoring.md``.

A test fails if it differs from :mod:`cartd.metrics`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from cartd.metrics import FastCounter, FastHistogram, Metrics

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
OWN = MetricWrapperBase | FastCounter | FastHistogram
HEADER = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"


def definitions() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yield name, type, labels and description of each metric of cartd's own."""
    metrics = Metrics()
    own = {id(metric): metric for metric in vars(metrics).values()}
    seen = set()
    for collector in [*metrics.registry._collector_to_names]:
        if isinstance(collector, OWN):
            [family] = collector.describe()
            suffix = "_total" if family.type == "counter" else ""
            seen.add(id(collector))
            yield (
                f"{family.name}{suffix}",
                family.type,
                _labels(collector),
                family.documentation,
            )
    assert {key for key, one in own.items() if isinstance(one, OWN)} <= seen


def _labels(metric: MetricWrapperBase | FastCounter | FastHistogram) -> tuple[str, ...]:
    return tuple(metric._labelnames if isinstance(metric, MetricWrapperBase) else metric.labelnames)


def table() -> str:
    rows = (
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |\n"
        for name, kind, labels, meaning in definitions()
    )
    return HEADER + "".join(rows).replace("|  |", "| |")


def with_table(page: str) -> str:
    """Return the page with the table; raise ValueError if it has none."""
    parts = re.split(r"\| metric \|.*\n(?:\|.*\n)*", page)
    if len(parts) != 2:
        raise ValueError(f"{PAGE} needs one table of metrics")
    return parts[0] + table() + parts[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
