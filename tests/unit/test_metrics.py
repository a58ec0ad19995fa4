"""The names and labels of all metrics follow the rules of Prometheus, and the page lists them."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cartd.metrics import QUICK, FastCounter, FastHistogram, Metrics
from tests.support.metrics_table import PAGE, definitions, with_table

ALL = [*definitions()]
UNITS = ("seconds", "bytes", "info")
OTHER_UNITS = ("ms", "milliseconds", "minutes", "hours", "days", "kb", "mb", "percent")
each_metric = pytest.mark.parametrize("metric", ALL, ids=[name for name, *_ in ALL])


def test_there_are_metrics_of_each_type() -> None:
    assert len(ALL) >= 40
    assert {kind for _, kind, *_ in ALL} == {"counter", "gauge", "histogram"}


@each_metric
def test_name_has_the_prefix_and_the_suffix_of_its_type(
    metric: tuple[str, str, tuple[str, ...], str],
) -> None:
    name, kind, _, _ = metric
    assert re.fullmatch("cartd(_[a-z]+)+", name)
    assert name.endswith("_total") == (kind == "counter")
    words = name.removesuffix("_total").split("_")
    assert not set(words) & set(OTHER_UNITS)
    # A unit comes last, and a histogram has one.
    assert all(word not in UNITS for word in words[:-1])
    assert kind != "histogram" or words[-1] in UNITS
    assert not name.endswith(("_count", "_sum", "_bucket"))


@each_metric
def test_labels_have_few_values_and_no_client_chooses_one(
    metric: tuple[str, str, tuple[str, ...], str],
) -> None:
    _, _, labels, _ = metric
    assert set(labels) <= {
        *("version", "python", "twisted"),
        *("check", "pool", "method", "code", "status", "state", "outcome", "way"),
        *("problem", "use", "result", "kind"),
    }


@each_metric
def test_meaning_is_a_sentence(metric: tuple[str, str, tuple[str, ...], str]) -> None:
    assert re.fullmatch(r"[A-Z].*\.", metric[3])


def test_page_lists_every_metric() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "docs/monitoring.md is out of date: run make docs"


def test_known_series_begin_at_zero() -> None:
    metrics = Metrics()
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    at_zero = {
        f"{sample.name}{sorted(sample.labels.values())}"
        for family in families
        for sample in family.samples
        if sample.value == 0
    }
    assert {
        "cartd_carts_posted_total['rejected']",
        "cartd_carts_finished_total['failed']",
        "cartd_files_staged_total['linked']",
        "cartd_downloads_total['damaged']",
        "cartd_verified_files_total['damaged']",
        "cartd_evictions_total[]",
        "cartd_archive_received_bytes_total[]",
    } <= at_zero


def test_two_services_in_one_process_count_for_themselves() -> None:
    one, other = Metrics(), Metrics()
    one.evictions.inc()
    value = other.registry.get_sample_value("cartd_evictions_total")
    assert value == 0


def test_fast_metrics_are_exposed_as_those_of_the_library() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast_count, fast_plain, fast_times = (
        FastCounter("x_requests_total", "Requests.", ["method", "code"], registry=ours),
        FastCounter("x_bytes_total", "Bytes.", registry=ours),
        FastHistogram("x_seconds", "Time.", ["method"], buckets=QUICK, registry=ours),
    )
    count, plain, times = (
        Counter("x_requests_total", "Requests.", ["method", "code"], registry=theirs),
        Counter("x_bytes_total", "Bytes.", registry=theirs),
        Histogram("x_seconds", "Time.", ["method"], buckets=QUICK, registry=theirs),
    )
    assert generate_latest(ours) == generate_latest(theirs)
    for method, code, seconds in (
        *(("GET", "200", bound) for bound in QUICK),
        *(("GET", "404", bound + 0.0001) for bound in (0, *QUICK)),
        ("HEAD", '"\n', 1000.0),
    ):
        fast_count.inc(method, code)
        fast_plain.inc(by=4096)
        fast_times.observe(seconds, method)
        count.labels(method, code).inc()
        plain.inc(4096)
        times.labels(method).observe(seconds)
    assert generate_latest(ours) == generate_latest(theirs)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        FastCounter("x_bytes_total", "Bytes.", registry=ours)
