"""The benchmark of Kubernetes: its bars at their limits, its tables, and that its raw clients read what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from benchmarks.bench_kubernetes import _answer, bars, main, report
from benchmarks.report import Sample, Samples


def samples(case: str, metric: str, **routes: Sequence[float]) -> list[Sample]:
    return [
        Sample(case, route.replace("_", " "), number, metric, value)
        for route, values in routes.items()
        for number, value in enumerate(values)
    ]


def of(*parts: list[Sample]) -> Samples:
    return Samples([each for part in parts for each in part])


def test_bulk_is_judged_round_by_round() -> None:
    """The machine was four times slower in the second round: that changes no ratio."""
    found = bars(of(samples("exec down", "MB/s", direct=[400, 100, 400], gatecast=[240, 55, 200])))
    assert found == [("exec down: MB/s of direct, >= 0.55", "0.55 (0.50..0.60)", True)]
    found = bars(of(samples("exec up", "MB/s", direct=[400], gatecast=[219])))
    assert [holds for _, _, holds in found] == [False]


@pytest.mark.parametrize(
    ("case", "metric", "limit"), [("GET, 1 connection", "p50 ms", 1.5), ("keystroke", "p50 ms", 1.0)]
)
def test_what_is_added_has_to_be_below_the_limit(case: str, metric: str, limit: float) -> None:
    for added, holds in ((limit - 0.01, True), (limit, False)):
        found = bars(of(samples(case, metric, direct=[1.0], gatecast=[1.0 + added])))
        assert [each[2] for each in found] == [holds]


def test_a_stalled_reader_may_cost_less_than_eight_mib() -> None:
    for growth, holds in ((7.99, True), (8.0, False)):
        found = bars(of(samples("stalled reader", "RSS growth MiB", gatecast=[growth])))
        assert [each[2] for each in found] == [holds]


def test_what_was_not_measured_has_no_bar() -> None:
    assert bars(of(samples("exec down", "MB/s", gatecast=[240.0]))) == []


def test_the_tables_say_what_was_found() -> None:
    page = report(
        of(
            samples("exec down", "MB/s", direct=[400], kubectl_proxy=[300], gatecast=[100]),
            samples("keystroke", "p50 ms", direct=[0.2], gatecast=[0.5]),
        )
    )
    lines = page.splitlines()
    assert "| exec down, MB/s | 400.00 | 300.00 | 100.00 |" in lines
    assert "| exec down | 0.25 | 0.33 |" in lines
    assert "| exec down: MB/s of direct, >= 0.55 | 0.25 | **no** |" in lines
    assert "| keystroke: p50 beyond direct, < 1 ms | 0.30 | yes |" in lines


def test_a_case_that_there_is_not_is_said_before_anything_starts() -> None:
    with pytest.raises(SystemExit):
        main(["--only", "exec,nothing"])


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    ],
)
def test_an_answer_is_read_to_its_end_and_no_further(answer: bytes) -> None:
    async def read() -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(answer + b"next")
        reader.feed_eof()
        await _answer(reader)
        return await reader.read()

    assert asyncio.run(read()) == b"next"


def test_an_answer_that_is_no_success_stops_the_benchmark() -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        await _answer(reader)

    with pytest.raises(RuntimeError, match="503"):
        asyncio.run(read())
