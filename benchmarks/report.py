"""From samples to tables: ratios of the same round, their median and spread, and whether the bars hold.

A ratio is always made of two numbers of one round, measured within seconds of each other. Nothing here compares
absolute numbers of different rounds, let alone machines. Pure: text in, text out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

# The value of each kind of case that tells how good a route is; ratios are made so that higher is better.
HEADLINE: Final = {"pgbench": "tps", "select": "rows_per_s", "copy": "rows_per_s", "connect": "per_s"}
TWO: Final = "written-2-workers"
BEGIN_MARK: Final = "<!-- results: written by python -m benchmarks.postgres --readme -->"
END_MARK: Final = "<!-- results end -->"


@dataclass(frozen=True, slots=True)
class Sample:
    """One number: metric of a case ("pgbench simple 32") on a route in a round."""

    case: str
    route: str
    round: int
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest over the rounds."""

    median: float
    low: float
    high: float
    count: int

    def show(self, form: str = "{:.2f}") -> str:
        middle = form.format(self.median)
        if self.count < 2:
            return middle
        return f"{middle} ({form.format(self.low)}..{form.format(self.high)})"


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of the values, None for none."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


class Samples:
    """All samples of a run, by what is asked of them."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = tuple(samples)
        self._values = {(s.case, s.route, s.metric, s.round): s.value for s in samples}
        self.cases = tuple(dict.fromkeys(s.case for s in samples))
        self.routes = tuple(dict.fromkeys(s.route for s in samples))
        self.rounds = sorted({s.round for s in samples})

    def values(self, case: str, route: str, metric: str) -> Spread | None:
        """The spread of a number itself."""
        return self._over(lambda r: self._values.get((case, route, metric, r)))

    def ratio(self, case: str, route: str, base: str, metric: str) -> Spread | None:
        """The spread of route / base, round by round."""
        return self._pairs(case, route, base, metric, lambda one, other: one / other if other else None)

    def difference(self, case: str, route: str, base: str, metric: str) -> Spread | None:
        """The spread of route - base, round by round."""
        return self._pairs(case, route, base, metric, lambda one, other: one - other)

    def _pairs(
        self, case: str, route: str, base: str, metric: str, combine: Callable[[float, float], float | None]
    ) -> Spread | None:
        def value(number: int) -> float | None:
            one = self._values.get((case, route, metric, number))
            other = self._values.get((case, base, metric, number))
            return None if one is None or other is None else combine(one, other)

        return self._over(value)

    def _over(self, value: Callable[[int], float | None]) -> Spread | None:
        return spread([found for number in self.rounds if (found := value(number)) is not None])


@dataclass(frozen=True, slots=True)
class Bar:
    """What the project promises: the median must not be beyond the limit."""

    text: str
    found: Spread | None
    limit: float
    at_most: bool = False

    @property
    def holds(self) -> bool | None:
        """None where it was not measured."""
        if self.found is None:
            return None
        return self.found.median < self.limit if self.at_most else self.found.median >= self.limit


def bars(samples: Samples) -> list[Bar]:
    """The bars, in the order of the issue."""
    found = [
        Bar(
            "one-row p50 overhead, mode written, ms",
            samples.difference("one row", "written", "direct", "p50_ms"), 0.25, at_most=True,
        )
    ]  # fmt: skip
    # The bar is for two cores, and two workers are how gatecast uses them; the tables have one worker beside it.
    name, words = (TWO, "two workers") if TWO in samples.routes else ("written", "one worker")
    for mode in ("simple", "extended", "prepared"):
        ratio = samples.ratio(f"pgbench {mode} 32", name, "pgbouncer", "tps")
        found.append(Bar(f"pgbench -S -M {mode}, 32 clients, mode written, {words}, of pgbouncer", ratio, 0.45))
    select = next((case for case in samples.cases if case.startswith("select")), "select")
    found.append(
        Bar(
            "bulk SELECT, unmasked, mode written, of direct",
            samples.ratio(select, "written", "direct", "rows_per_s"),
            0.7,
        )
    )
    masked = samples.ratio(select, "written-masked", "direct", "rows_per_s")
    found.append(Bar("bulk SELECT, one masked text column, mode written, of direct", masked, 0.35))
    return found


def tables(samples: Samples) -> str:
    """The whole report in Markdown."""
    parts = [_bar_table(samples), _ratio_table(samples, "direct")]
    if "pgbouncer" in samples.routes:
        parts.append(_ratio_table(samples, "pgbouncer"))
    parts += [_cpu_table(samples), _one_row_table(samples), _absolute_table(samples)]
    return "\n".join(part for part in parts if part)


def replace_results(page: str, results: str) -> str:
    """Put the results between the marks of the page. Raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end:
        raise ValueError("the page has no marks for results")
    return f"{before}{begin}\n\n{results.strip()}\n\n{end}{after}"


def _bar_table(samples: Samples) -> str:
    rows = []
    for bar in bars(samples):
        word = {True: "yes", False: "**no**", None: "not measured"}[bar.holds]
        sign = "<" if bar.at_most else ">="
        form = "{:.3f}" if bar.at_most else "{:.2f}"
        rows.append([bar.text, f"{sign} {bar.limit}", bar.found.show(form) if bar.found else "", word])
    return _table("The bars", ["bar", "limit", "found", "holds"], rows)


def _ratio_table(samples: Samples, base: str) -> str:
    others = [route for route in samples.routes if route not in ("direct", base)]
    rows = []
    for case in samples.cases:
        metric = HEADLINE.get(case.split()[0])
        if metric is None:
            continue
        found = [samples.ratio(case, route, base, metric) for route in others]
        if any(found):
            rows.append([case, *(ratio.show() if ratio else "" for ratio in found)])
    return _table(f"Throughput as a ratio to {base} (higher is better)", ["case", *others], rows)


def _cpu_table(samples: Samples) -> str:
    routes = [route for route in samples.routes if route != "direct"]
    rows = []
    for case in samples.cases:
        for metric, unit in (("cpu_us", "us"), ("cpu_ns_per_row", "ns a row")):
            found = [samples.values(case, route, metric) for route in routes]
            if any(found):
                rows.append([f"{case}, {unit}", *(value.show("{:.0f}") if value else "" for value in found)])
    return _table("CPU time of the process in between, per transaction, row or connection", ["case", *routes], rows)


def _one_row_table(samples: Samples) -> str:
    rows = []
    for route in samples.routes:
        cells = [samples.values("one row", route, metric) for metric in ("p50_ms", "p99_ms")]
        cells.append(samples.difference("one row", route, "direct", "p50_ms"))
        if all(cells):
            rows.append([route, *(cell.show("{:.3f}") if cell else "" for cell in cells)])
    return _table("One row, one client, ms", ["route", "p50", "p99", "p50 added to direct"], rows)


def _absolute_table(samples: Samples) -> str:
    rows = []
    for case in samples.cases:
        metric = HEADLINE.get(case.split()[0])
        found = [samples.values(case, route, metric) if metric else None for route in samples.routes]
        if any(found):
            rows.append([f"{case}, {metric}", *(f"{value.median:,.0f}" if value else "" for value in found)])
    return _table("Medians as measured, for orientation only", ["case", *samples.routes], rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
