"""Texts of strangers are read in processes of their own: one that dies takes its own text with it, and nothing else."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Awaitable, Callable

import pytest

from proxy.core.warehouse import AnalysisLimits
from proxy.policy import bigquery_workers
from proxy.policy.bigquery import analyse
from proxy.policy.bigquery_workers import Analysts

WIDE = AnalysisLimits(text_bytes=8 * 1024 * 1024, bracket_depth=1_000_000, tokens=10_000_000)


def run(test: Callable[[Analysts], Awaitable[None]], analysts: Callable[[], Analysts]) -> None:
    async def main() -> None:
        service = analysts()
        try:
            await test(service)
        finally:
            await service.close()
        assert not service.processes

    asyncio.run(main())


def test_a_worker_reads_what_the_process_would() -> None:
    async def test(analysts: Analysts) -> None:
        for text in ("SELECT u.email FROM d.t u", "MERGE d.t USING d.s ON FALSE WHEN NOT MATCHED BY SOURCE THEN DELETE",
                     "SELECT (", "SELECT '\u00e9\U0001f600'", "SELECT 1; DROP TABLE x"):  # fmt: skip
            assert await analysts.read(text, "p", "d") == analyse(text, "p", "d")
        assert (await analysts.read("SELECT * FROM t", "p", None)).tables_read[0].dataset == ""

    run(test, Analysts)


def test_what_was_read_is_kept_by_text_and_defaults() -> None:
    async def test(analysts: Analysts) -> None:
        first = await analysts.read("SELECT * FROM t", "p", "d")
        assert await analysts.read("SELECT * FROM t", "p", "d") is first
        other = await analysts.read("SELECT * FROM t", "p", "e")
        assert (str(first.tables_read[0]), str(other.tables_read[0])) == ("p.d.t", "p.e.t")
        assert (await analysts.read("SELECT * FROM t", "p", None)) is not first

    run(test, Analysts)


def test_deep_nesting_kills_a_worker_and_nothing_else() -> None:
    deep = "SELECT * FROM " + "(SELECT * FROM " * 10_000 + "d.t" + ")" * 10_000

    async def test(analysts: Analysts) -> None:
        async with asyncio.TaskGroup() as group:
            hostile = group.create_task(analysts.read(deep, "p", "d"))
            others = [group.create_task(analysts.read(f"SELECT {n} FROM d.t", "p", "d")) for n in range(20)]
        assert hostile.result().opaque
        assert not any(other.result().opaque for other in others)
        assert not (await analysts.read("SELECT 1", "p", "d")).opaque

    run(test, lambda: Analysts(WIDE))


def test_a_worker_that_dies_costs_one_text() -> None:
    async def test(analysts: Analysts) -> None:
        await analysts.start()
        (process,) = analysts.processes
        os.kill(process, signal.SIGKILL)
        assert (await analysts.read("SELECT 1", "p", "d")).opaque
        assert not (await analysts.read("SELECT 1", "p", "d")).opaque, "what a worker died of is not kept"
        assert analysts.processes != (process,)

    run(test, lambda: Analysts(workers=1))


def test_a_slow_text_is_cut_off() -> None:
    async def test(analysts: Analysts) -> None:
        await analysts.start()
        before = analysts.processes
        found = await analysts.read("SELECT " + "a + " * 90_000 + "1 FROM d.t", "p", "d")
        assert (found.opaque, found.statements[0].verb) == (True, "UNKNOWN")
        assert found.why == "the text took too long or too much to be read"
        assert not set(before) & set(analysts.processes)

    run(test, lambda: Analysts(WIDE, workers=1, read_seconds=0.05))


def test_a_text_that_takes_too_much_memory_is_opaque() -> None:
    async def test(analysts: Analysts) -> None:
        assert (await analysts.read("SELECT " + "1," * 100_000 + "1", "p", "d")).opaque

    run(test, lambda: Analysts(WIDE, workers=1, memory_bytes=128 * 1024 * 1024, read_seconds=10))


def test_who_gives_up_leaves_no_worker_behind_with_an_answer_for_another() -> None:
    async def test(analysts: Analysts) -> None:
        await analysts.start()
        before = analysts.processes
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await analysts.read("SELECT " + "a + " * 90_000 + "1 FROM d.t", "p", "d")
        found = await analysts.read("SELECT * FROM mine", "p", "d")
        assert [str(table) for table in found.tables_read] == ["p.d.mine"]
        assert not set(before) & set(analysts.processes)

    run(test, lambda: Analysts(WIDE, workers=1))


def test_a_text_beyond_the_limit_meets_no_worker() -> None:
    async def test(analysts: Analysts) -> None:
        assert (await analysts.read("SELECT " + "1" * 300_000, "p", "d")).opaque
        assert not analysts.processes

    run(test, Analysts)


def test_a_worker_inherits_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_SECRET", "swordfish")

    async def test(analysts: Analysts) -> None:
        await analysts.start()
        for process in analysts.processes:
            with open(f"/proc/{process}/environ", "rb") as environment:  # noqa: PTH123
                assert b"swordfish" not in environment.read()

    run(test, Analysts)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize("answer", [Evil(), "text", [1], AnalysisLimits()])
def test_an_answer_may_hold_values_of_an_analysis_only(answer: object) -> None:
    with pytest.raises(pickle.UnpicklingError):
        bigquery_workers._unpickle(pickle.dumps(answer))


def test_a_closed_service_reads_nothing() -> None:
    async def main() -> bool:
        analysts = Analysts()
        await analysts.close()
        return (await analysts.read("SELECT 1", "p", "d")).opaque and not analysts.processes

    assert asyncio.run(main())
