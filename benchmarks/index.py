"""What the index of sessions costs: building it, as a ratio to a plain walk of the same tapes, keeping it, asking it.

Two worlds: few sessions with many commands each (100,000 in all; what is written and read is text), and many sessions
of three commands (--sessions; what counts is files). Run: python -m benchmarks.index [--sessions 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgpack

from recorder.cli import SessionFilter, list_sessions
from recorder.index import Index
from recorder.index_query import Wanted, find_commands, find_sessions
from recorder.reader import TapeReader
from recorder.seal import SealKey
from recorder.tape import GATE, OUT, USER, Kind, Recorder

COMMANDS: Final = 100_000
PER_SESSION: Final = 5_000
_DAY_NS: Final = 86_400 * 10**9
TABLES: Final = ("orders", "people", "items", "events", "logins")

_pack: Final[Callable[[object], bytes]] = msgpack.Packer(use_bin_type=True).pack


async def _session(recorder: Recorder, commands: int, seed: int) -> Path:
    tape = recorder.open(
        protocol="postgres", identity={"subject": f"user{seed % 50}@acme"}, target=f"t{seed % 7}", mode="written"
    )
    for i in range(commands):
        table = TABLES[(seed + i) % len(TABLES)]
        text = f"SELECT id, name, total FROM {table} WHERE id = {seed * 7919 + i} AND note = 'order number {i % 977}'"
        tape.append(USER, Kind.WIRE, text.encode())
        entry = {"verb": "SELECT", "kind": "read", "text": text, "objects": (f"public.{table}",)}
        command = tape.append(USER, Kind.COMMAND, _pack(entry))
        verdict = "deny" if i % 100 == 0 else "allow"
        tape.append(GATE, Kind.VERDICT, _pack({"command": command, "verdict": verdict, "rule": f"r{i % 9}"}))
        tape.append(OUT, Kind.WIRE, b"row " * 100)
        tape.append(GATE, Kind.RESULT, _pack({"command": command, "tag": "SELECT 1", "count": 1, "bytes": 400}))
        await tape.written()
    await tape.close("closed")
    return tape.path


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Other work on the machine changes this less than the time on the wall."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _walk(directory: Path) -> None:
    """Read every record of every tape, and do nothing with it."""
    for path in directory.rglob("*.000.gct"):
        for _ in TapeReader(path).records():
            pass


def _consume(rows: Iterator[object]) -> int:
    return sum(1 for _ in rows)


def _ask(directory: Path) -> None:
    questions = {
        "search one table, denied": Wanted(object="orders", verdict="deny"),
        "search a word in every command": Wanted(text="number"),
        "search a phrase": Wanted(text='"order number 7"'),
        "search a beginning": Wanted(text="ord*", subject="user3@acme"),
        "search by time": Wanted(since_ns=1, until_ns=2**62),
    }
    with Index(directory) as index:
        for name, wanted in questions.items():
            best = min(_seconds(lambda wanted=wanted: _consume(find_commands(index, wanted))) for _ in range(3))
            print(f"  {name:34} {best * 1e3:8.1f} ms for {_consume(find_commands(index, wanted))} rows")
        listed = min(_seconds(lambda: _consume(find_sessions(index, Wanted()))) for _ in range(3))
        one = min(_seconds(lambda: _consume(find_sessions(index, Wanted(subject="user3@acme")))) for _ in range(3))
        print(f"  {'list the newest 100':34} {listed * 1e3:8.1f} ms; of one user {one * 1e3:.1f} ms")


def commands_world(directory: Path) -> None:
    """Few sessions, 100,000 commands."""
    recorder = Recorder(directory, SealKey.generate())

    async def write() -> None:
        for i in range(COMMANDS // PER_SESSION):
            await _session(recorder, PER_SESSION, i)

    asyncio.run(write())
    recorder.close()
    walked = min(_cpu_seconds(lambda: _walk(directory)) for _ in range(2))
    built = _cpu_seconds(lambda: Index.update(directory))
    again = _cpu_seconds(lambda: Index.rebuild(directory))
    size = (directory / "index.db").stat().st_size
    print(f"{COMMANDS:,} commands in {COMMANDS // PER_SESSION} sessions")
    print(
        f"  CPU: plain walk {walked:.2f} s; index {built:.2f} s, {built / walked:.2f} times that; rebuild {again:.2f} s"
    )
    print(f"  {COMMANDS / built:,.0f} commands/s; {size / COMMANDS:.0f} bytes a command")
    _ask(directory)


def sessions_world(directory: Path, count: int) -> None:
    """Many sessions: the walk is one of directories and headers."""
    tapes = directory / "tapes"
    began_ns = time.time_ns()
    walls = iter(range(began_ns - 40 * _DAY_NS, began_ns, 40 * _DAY_NS // count))
    recorder = Recorder(tapes, SealKey.generate(), wall_ns=lambda: next(walls))

    async def write() -> None:
        for i in range(count):
            await _session(recorder, 3, i)

    asyncio.run(write())
    recorder.close()
    built = _seconds(lambda: Index.update(tapes))
    for day in tapes.glob("*/*/*"):
        os.utime(day, (1, 1))  # an mtime that is not of this moment
    Index.update(tapes)
    nothing = min(_seconds(lambda: Index.update(tapes)) for _ in range(3))
    newest = max(tapes.glob("*/*/*"))

    def one_more() -> None:
        os.utime(newest, ns=(2, 2))
        Index.update(tapes)

    day = _seconds(one_more)
    print(f"{count:,} sessions in {sum(1 for _ in tapes.glob('*/*/*'))} days")
    print(f"  index {built:.1f} s ({count / built:,.0f} sessions/s); nothing new {nothing * 1e3:.1f} ms; "
          f"one day changed {day * 1e3:.1f} ms")  # fmt: skip
    _ask(tapes)
    rare = SessionFilter(subject="nobody")
    print(f"  without the index: newest 100 {_seconds(lambda: list_sessions(tapes)) * 1e3:.1f} ms, "
          f"of one user {_seconds(lambda: list_sessions(tapes, rare)):.1f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index")
    parser.add_argument("--sessions", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gatecast-bench-index-") as folder:
        commands_world(Path(folder) / "commands")
        sessions_world(Path(folder) / "sessions", options.sessions)


if __name__ == "__main__":
    main()
