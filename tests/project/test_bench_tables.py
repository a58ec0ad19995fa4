"""The benchmark's statistics and tables."""

from __future__ import annotations

import json

import pytest

from bench.contest import Contest, Side
from bench.figures import Figures, Row, Target, percentile
from bench.peers import PeerUnavailable
from bench.processes import MeasurementFailed
from bench.publishing import with_figures
from bench.tables import from_plain, markdown, number, plain


def row(
    ours: float = 2.0,
    theirs: float | None = 4.0,
    target: Target | None = None,
    absent: str = "",
) -> Row:
    return Row(
        "work",
        "s",
        Figures((ours,), (0.5,)),
        "peer",
        None if theirs is None else Figures((theirs,)),
        absent,
        target,
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_median_of_an_even_number_of_rounds() -> None:
    figures = Figures((5.0, 1.0, 2.0, 9.0), (4.0, 1.0, 1.0, 2.0))
    assert (figures.median, figures.least, figures.most) == (3.5, 1.0, 9.0)
    assert figures.median_cpu == 1.5


def test_figures_without_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        Figures(())


def test_cpu_that_was_not_counted_is_not_zero() -> None:
    assert Figures((1.0,)).median_cpu is None


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0)]
)
def test_a_percentile_is_one_of_the_values(share: float, wanted: float) -> None:
    assert percentile((float(value) for value in range(100, 0, -1)), share) == wanted


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_the_ratio_is_ours_to_theirs() -> None:
    assert row(2.0, 4.0).ratio == 0.5


@pytest.mark.parametrize("theirs", [None, 0.0])
def test_with_nothing_to_compare_there_is_no_ratio(theirs: float | None) -> None:
    assert row(2.0, theirs).ratio is None


@pytest.mark.parametrize(
    ("target", "holds"),
    [
        (Target(2.0), True),
        (Target(1.9), False),
        (Target(2.0, at_least=True), True),
        (Target(2.1, at_least=True), False),
        (Target(0.5, ratio=True), True),
        (Target(0.4, ratio=True), False),
        (Target(0.5, at_least=True, ratio=True), True),
        (Target(0.6, at_least=True, ratio=True), False),
        (Target(2.0, aim=1.0), True),
        (None, None),
    ],
)
def test_a_target_is_held_against_the_figure_or_the_ratio(
    target: Target | None, holds: bool | None
) -> None:
    assert row(2.0, 4.0, target).holds is holds


def test_a_ratio_without_a_peer_neither_holds_nor_fails() -> None:
    assert row(2.0, None, Target(1.0, ratio=True)).holds is None


def test_a_target_has_a_direction_a_unit_and_a_goal() -> None:
    assert str(Target(50.0)) == "≤ 50"
    assert str(Target(0.5, at_least=True, ratio=True, aim=1.0)) == "≥ 0.5 × (aim 1 ×)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (0.1234, "0.123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (1234567.0, "1,234,567"),
    ],
)
def test_numbers_are_shown_with_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_row_is_a_line_of_the_table() -> None:
    head, rule, line = markdown([row(2.0, 4.0, Target(0.5, ratio=True))]).splitlines()
    assert len(cells(head)) == len(cells(rule)) == len(cells(line))
    assert cells(line) == [
        *("work", "s", "2.00", "2.00 to 2.00", "0.500"),
        *("peer", "4.00", "4.00 to 4.00", "", "0.500 ×", "≤ 0.5 ×", "yes"),
    ]


def test_a_missed_target_is_marked() -> None:
    assert cells(markdown([row(target=Target(1.0))]).splitlines()[2])[-1] == "**no**"


def test_an_unavailable_peer_is_marked_with_the_reason() -> None:
    missing = row(2.0, None, Target(1.0, ratio=True), absent="no such\npackage")
    line = markdown([missing]).splitlines()[2]
    assert "**not available: no such package**" in line
    assert cells(line)[-1] == "**not compared**"


def test_a_bar_in_a_name_does_not_end_its_cell() -> None:
    text = markdown([Row("a | b", "s", Figures((1.0,)))])
    assert "a \\| b" in text


@pytest.mark.parametrize(
    "kept",
    [
        row(2.0, 4.0, Target(0.5, at_least=True, ratio=True, aim=1.0)),
        row(2.0, None, absent="not here"),
        Row("work", "s", None, absent="no archive"),
    ],
)
def test_a_row_survives_json(kept: Row) -> None:
    assert from_plain(json.loads(json.dumps(plain(kept)))) == kept


def test_sides_run_alternately() -> None:
    ran: list[str] = []

    def side(name: str, value: float) -> dict[str, float]:
        ran.append(name)
        return {"s": value + len(ran), "cpu": 1.0}

    contest = Contest(2)
    contest.side("cartd", lambda: side("cartd", 0.0))
    contest.peer("peer", lambda: lambda: side("peer", 10.0))
    contest.run()
    assert ran == ["cartd", "peer", "cartd", "peer"]
    compared = contest.row("work", "s", "peer")
    assert compared.ours == Figures((1.0, 3.0), (1.0, 1.0))
    assert compared.theirs == Figures((12.0, 14.0), (1.0, 1.0))


def test_a_failing_peer_is_reported_in_its_row() -> None:
    def absent() -> Side:
        raise PeerUnavailable("not for this machine")

    def broken() -> dict[str, float]:
        raise MeasurementFailed("it fell over")

    contest = Contest(2)
    contest.side("cartd", lambda: {"s": 1.0})
    contest.peer("absent", absent)
    contest.peer("broken", lambda: broken)
    contest.run()
    assert contest.row("work", "s", "absent").absent == "not for this machine"
    assert contest.row("work", "s", "broken").absent == "it fell over"
    assert contest.row("work", "s", "broken").ours == Figures((1.0, 1.0))


def test_cartd_that_breaks_breaks_the_comparison() -> None:
    def broken() -> dict[str, float]:
        raise MeasurementFailed("it fell over")

    contest = Contest(1)
    contest.side("cartd", broken)
    with pytest.raises(MeasurementFailed):
        contest.run()


def test_figures_are_put_in_the_place_of_the_old_ones() -> None:
    page = (
        "Before.\n<!-- The figures: python -m bench publish -->\nold\n"
        "<!-- End of the figures -->\nAfter.\n"
    )
    new = with_figures(page, "new")
    assert "old" not in new
    assert new.startswith("Before.\n")
    assert new.endswith("<!-- End of the figures -->\nAfter.\n")
    assert with_figures(new, "new") == new


def test_a_page_without_a_place_for_figures_is_not_written() -> None:
    with pytest.raises(ValueError, match="no place"):
        with_figures("Before.\n", "new")
