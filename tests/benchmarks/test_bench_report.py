"""The arithmetic of the comparison: ratios within rounds, bars at their limits, what pgbench and the sampler print."""

from __future__ import annotations

import pytest

from benchmarks.measures import parse_pgbench
from benchmarks.profiling import table
from benchmarks.report import BEGIN_MARK, END_MARK, Bar, Sample, Samples, Spread, bars, replace_results, spread, tables

PGBENCH = """\
number of clients: 2
number of transactions actually processed: 1000
number of failed transactions: 0 (0.000%)
initial connection time = 2.861 ms
tps = 12345.5 (without initial connection time)
"""


def samples(case: str, metric: str, **routes: list[float]) -> list[Sample]:
    return [
        Sample(case, route.replace("_", "-"), number, metric, value)
        for route, values in routes.items()
        for number, value in enumerate(values)
    ]


def test_a_ratio_is_made_within_a_round() -> None:
    """The machine was ten times slower in the second round: that changes no ratio."""
    found = Samples(samples("select", "rows_per_s", direct=[1000, 100, 1000], written=[500, 60, 700]))
    assert found.ratio("select", "written", "direct", "rows_per_s") == Spread(0.6, 0.5, 0.7, 3)
    assert found.values("select", "direct", "rows_per_s") == Spread(1000, 100, 1000, 3)


def test_a_round_without_its_partner_makes_no_ratio() -> None:
    found = Samples(samples("select", "rows_per_s", direct=[1000], written=[500, 60]))
    ratio = found.ratio("select", "written", "direct", "rows_per_s")
    assert ratio is not None
    assert ratio.count == 1
    assert found.ratio("select", "written", "nobody", "rows_per_s") is None
    assert found.ratio("select", "written", "direct", "tps") is None


def test_nothing_is_divided_by_zero() -> None:
    found = Samples(samples("select", "rows_per_s", direct=[0.0], written=[500]))
    assert found.ratio("select", "written", "direct", "rows_per_s") is None


@pytest.mark.parametrize(
    ("found", "at_most", "holds"),
    [(0.7, False, True), (0.699, False, False), (0.7, True, False), (0.699, True, True), (None, False, None)],
)
def test_a_bar_holds_at_its_limit(found: float | None, at_most: bool, holds: bool | None) -> None:
    assert Bar("bar", spread([found] if found is not None else []), 0.7, at_most).holds is holds


def test_the_bars_are_those_of_the_issue() -> None:
    found = Samples([
        *samples("one row", "p50_ms", direct=[0.1, 0.1], written=[0.34, 0.36]),
        *samples("pgbench simple 32", "tps", pgbouncer=[1000, 1000], written=[450, 460]),
        *samples("select", "rows_per_s", direct=[100, 100], written=[70, 71], written_masked=[30, 34]),
    ])  # fmt: skip
    assert [bar.holds for bar in bars(found)] == [False, True, None, None, True, False]
    assert [bar.limit for bar in bars(found)] == [0.25, 0.45, 0.45, 0.45, 0.7, 0.35]
    text = tables(found)
    assert (
        "| bulk SELECT, one masked text column, mode written, of direct | >= 0.35 | 0.32 (0.30..0.34) | **no** |"
        in text
    )
    assert "| pgbench simple 32 | 0.46 (0.45..0.46) |" in text


def test_pgbench_is_read() -> None:
    numbers = parse_pgbench(PGBENCH, 0.05)
    assert numbers == {"tps": 12345.5, "transactions": 1000.0, "cpu_us": 50.0}
    assert "cpu_us" not in parse_pgbench(PGBENCH, 0.0)


@pytest.mark.parametrize(
    "text",
    ["", PGBENCH.replace("transactions: 0", "transactions: 3"), PGBENCH.replace("1000", "0")],
    ids=["nothing", "failures", "none done"],
)
def test_a_pgbench_that_failed_is_no_number(text: str) -> None:
    with pytest.raises(RuntimeError, match="pgbench"):
        parse_pgbench(text, 0.05)


def test_results_replace_those_of_before() -> None:
    page = f"# Benchmarks\n{BEGIN_MARK}\nold\n{END_MARK}\nrest\n"
    once = replace_results(page, "new")
    assert once == f"# Benchmarks\n{BEGIN_MARK}\n\nnew\n\n{END_MARK}\nrest\n"
    assert replace_results(once, "new") == once
    with pytest.raises(ValueError, match="marks"):
        replace_results("# Benchmarks\n", "new")


def test_a_profile_counts_for_the_innermost_part_of_the_house() -> None:
    run = "proxy/app.py:run:1;runners.py:Runner.run:118"
    folded = (
        f"{run};protocols/postgres/relay.py:Relay._down:1;recorder/tape.py:Tape._block:2;ulid.py:x:1 3\n"
        f"{run};protocols/postgres/relay.py:Relay._down:9 1\n"
        "proxy/sections.py:<module>:1 50\n"
    )
    text = table(folded)
    assert "| tape: pack, hash, compress, write | 75.0% |" in text
    assert "| protocol: relay loop | 25.0% |" in text
    assert "| recorder/tape.py:Tape._block | 75.0% |" in text
    assert "sections" not in text, "the start is no part of it"
