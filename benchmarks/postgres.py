"""The comparison for PostgreSQL, as ratios: ``make bench``, or ``python -m benchmarks.postgres [--quick] ...``

Rounds are interleaved: within a round every case is measured on every route in turn (A B C, then B C A, ...), so that
other work on the machine falls on all of them alike; ratios are made within a round. README.md has the method.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import measures
from benchmarks.client import RawClient
from benchmarks.profiling import table as profile_table
from benchmarks.report import Sample, Samples, bars, replace_results, tables
from benchmarks.world import PROGRAMS, Route, World, world
from recorder.seal import SealKey
from recorder.verify import verify

README: Final = Path(__file__).with_name("README.md")
MODES: Final = ("simple", "extended", "prepared")
CLIENTS: Final = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done."""

    rounds: int
    seconds: int
    scale: int
    select_rows: int
    copy_rows: int
    queries: int
    connections: int


FULL: Final = Plan(5, 4, 10, 2_000_000, 5_000_000, 2000, 100)
QUICK: Final = Plan(3, 1, 1, 300_000, 300_000, 500, 30)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 if every bar that was measured holds, or with --quick."""
    options = _parser().parse_args(arguments)
    plan = QUICK if options.quick else FULL
    plan = Plan(
        **{**asdict(plan), **{key: value for key, value in vars(options).items() if value and key in asdict(plan)}}
    )
    wanted = _wanted(options.only)
    if options.readme:
        replace_results(README.read_text(), "")  # a page without marks is found before the run, not after it
    if options.profile:
        return _profile(options.profile, plan, wanted, options.directory)
    with world(options.directory, plan.scale, max(plan.select_rows, plan.copy_rows)) as ways:
        routes = [route for route in ways.routes if not options.routes or route.name in options.routes.split(",")]
        _check(ways)
        samples = Samples(list(_rounds(ways, routes, plan, wanted)))
    title = _title(options.quick, plan)
    text = f"{title}\n\n{tables(samples)}"
    print(text)
    if options.json:
        options.json.write_text(json.dumps([asdict(sample) for sample in samples.samples], indent=0))
    if options.readme:
        README.write_text(replace_results(README.read_text(), text))
    return 0 if options.quick or all(bar.holds is not False for bar in bars(samples)) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.postgres", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes, small tables: to see that it works")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases that contain one of these words, by comma")
    parser.add_argument("--routes", default="", metavar="NAMES", help="only these routes, by comma (direct among them)")
    for name in ("rounds", "seconds", "scale", "select-rows", "copy-rows", "queries", "connections"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N")
    parser.add_argument("--directory", type=Path, help="where tapes go: a directory on a real disk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    parser.add_argument("--readme", action="store_true", help="put the results into README.md")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="in place of the comparison: where gatecast's time goes"
    )
    return parser


def _wanted(only: str) -> Callable[[str], bool]:
    words = [word.strip() for word in only.split(",") if word.strip()]
    return lambda case: not words or any(word in case for word in words)


def _title(quick: bool, plan: Plan) -> str:
    what = "Quick run, small tables, beside other work" if quick else "Full run"
    return (
        f"{what}; {datetime.now(UTC):%Y-%m-%d}; {plan.rounds} rounds of {plan.seconds} s for each pgbench case; "
        f"SELECT of {plan.select_rows:,} rows, COPY of {plan.copy_rows:,}; {_programs()}. "
        "Each cell: median (lowest..highest) over the rounds."
    )


def _programs() -> str:
    names = []
    for command in (["pgbench", "--version"], ["pgbouncer", "--version"], ["haproxy", "-v"]):
        try:
            done = subprocess.run(
                command, env={"PATH": PROGRAMS}, capture_output=True, text=True, check=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            continue
        line = done.stdout.splitlines()[0].partition(" (")[0].partition("-")[0].removesuffix(" 20")
        names.append(line.replace("version ", "").replace("PgBouncer", "pgbouncer").replace("HAProxy", "haproxy"))
    return ", ".join([*names, f"Python {sys.version.split()[0]}"])


def _check(ways: World) -> None:
    """See that each way does what it is measured for: masks mask, denials deny, tapes are written and verify."""
    for route in ways.routes:
        client = RawClient(route)
        found = client.fetch("SELECT email FROM people WHERE id = 1")
        if (b"user1@example.com" in found) == route.masked or (b"[redacted]" in found) != route.masked:
            raise RuntimeError(f"{route.name} does not mask as it should")
        if route.tapes is not None and b"C42501" not in client.fetch("DELETE FROM people"):
            raise RuntimeError(f"{route.name} does not deny")
        client.close()
    recorded = [route.tapes for route in ways.routes if route.tapes is not None]
    files = [file for tapes in dict.fromkeys(recorded) for file in tapes.rglob("*.gct")]
    if len(files) != len(recorded):
        raise RuntimeError("there should be one tape a session")
    for tapes in dict.fromkeys(recorded):
        keys = SealKey.load(tapes.parent / "seal.key").public_keys()
        for report in (verify(file, keys) for file in tapes.rglob("*.gct")):
            if report.exit_code:
                raise RuntimeError(f"a tape does not verify: {report}")


def _rounds(ways: World, routes: Sequence[Route], plan: Plan, wanted: Callable[[str], bool]) -> Iterator[Sample]:
    cases = dict(_cases(ways, plan))
    with tempfile.TemporaryDirectory(prefix="gatecast-bench-copy-") as folder:
        file = Path(folder) / "people"
        if wanted("copy in"):
            with file.open("wb") as out:
                _write_copy(ways, plan.copy_rows, out.fileno())
        cases["copy in"] = lambda route: measures.copy_in(route, plan.copy_rows, file, RawClient(ways.route("direct")))
        for number in range(plan.rounds):
            turned = [*routes[number % len(routes) :], *routes[: number % len(routes)]]
            for case, measure in cases.items():
                if not wanted(case):
                    continue
                for route in turned:
                    yield from _samples(case, route, number, measure(route))
            if wanted("one row"):
                for route, numbers in measures.one_row(turned, plan.scale * 100_000, plan.queries):
                    yield from _samples("one row", route, number, numbers)


def _cases(ways: World, plan: Plan) -> Iterator[tuple[str, Callable[[Route], measures.Numbers]]]:
    for mode in MODES:
        for clients in CLIENTS:

            def run(route: Route, mode: str = mode, clients: int = clients) -> measures.Numbers:
                return measures.pgbench(route, mode, clients, plan.seconds)

            yield f"pgbench {mode} {clients}", run
    yield "connect", lambda route: measures.connections(route, plan.connections)
    yield "select", lambda route: measures.select_rows(route, plan.select_rows)
    yield "copy out", lambda route: measures.copy_out(route, plan.copy_rows)


def _samples(case: str, route: Route, number: int, numbers: measures.Numbers) -> Iterator[Sample]:
    size = route.drop_tapes()
    if size and "transactions" in numbers:
        numbers["tape_bytes"] = size / numbers["transactions"]
    shown = ", ".join(f"{metric} {value:,.3f}" for metric, value in numbers.items())
    print(f"round {number + 1}: {case} by {route.name}: {shown}", file=sys.stderr)
    for metric, value in numbers.items():
        yield Sample(case, route.name, number, metric, value)


def _write_copy(ways: World, rows: int, descriptor: int) -> None:
    command = ["psql", "-XAtq", "-c", f"COPY ({measures.PEOPLE} WHERE id <= {rows}) TO STDOUT"]
    subprocess.run(command, env=ways.route("direct").environment, stdout=descriptor, check=True, timeout=600)


def _profile(file: Path, plan: Plan, wanted: Callable[[str], bool], directory: Path | None) -> int:
    """Run one case at a time on a sampled gatecast and print where its time goes; FILE gets the stacks of each."""
    chosen = ("pgbench simple 32", "pgbench prepared 32", "select", "select masked", "connect")
    for case in (case for case in chosen if wanted(case)):
        stacks = file.with_name(f"{file.name}.{case.replace(' ', '-')}")
        with world(directory, plan.scale, plan.select_rows, profile=stacks) as ways:
            route = ways.route("written-masked" if case.endswith("masked") else "written")
            numbers = dict(_cases(ways, plan))[case.removesuffix(" masked")](route)
        shown = ", ".join(f"{metric} {value:,.1f}" for metric, value in numbers.items())
        print(f"\n{case} ({shown})\n\n{profile_table(stacks.read_text())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
