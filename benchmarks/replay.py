"""How long the player takes to open a large tape and to jump in it: milliseconds, of three kinds of tapes.

small: transactions of one row, each committed, as ``pgbench -S`` makes them (the worst case for indexes: 64 Ki blocks
a segment). bulk: commands with many megabytes of rows each. tty: a terminal session with dense control sequences, a
full screen now and then. The tapes are written first, with the Recorder; opening is a new TapeReader and Player up to
its first output, a jump is everything from the time or number that is asked for to the last byte on the terminal
(here /dev/null: a terminal takes a megabyte in 20 ms). Places are random, so most jumps go to a segment that is not
in memory. Run: python -m benchmarks.replay [--size-mb 2048] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgpack

from benchmarks.tape import transactions
from recorder.player_options import ReplayOptions
from recorder.reader import TapeReader
from recorder.replay import Player, Spot, few_collections
from recorder.seal import SealKey
from recorder.tape import GATE, OUT, USER, Kind, Recorder, Tape

JUMPS: Final = 40
KINDS: Final = ("small", "bulk", "tty")
MIB: Final = 1024 * 1024


class _Clock:
    """A day passes while a tape is written."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        self.ns += 2_000_000
        return self.ns


async def _small(tape: Tape, full: Callable[[], bool]) -> None:
    while not full():
        await transactions(tape, 2000, 1)


async def _bulk(tape: Tape, full: Callable[[], bool]) -> None:
    rows = os.urandom(8 * MIB)
    count = 0
    while not full():
        text = f"SELECT * FROM measurements WHERE day = {count}"
        n = tape.append(
            USER, Kind.COMMAND, msgpack.packb({"verb": "SELECT", "kind": "read", "text": text, "objects": ["m"]})
        )
        tape.append(GATE, Kind.VERDICT, msgpack.packb({"command": n, "verdict": "allow", "rule": "ro"}))
        await tape.commit()
        for start in range(0, len(rows), 32 * 1024):
            tape.append(OUT, Kind.WIRE, rows[start : start + 32 * 1024])
            await tape.written()
        result = {
            "command": n,
            "tag": "SELECT 100000",
            "columns": ["a"],
            "rows": [["1"]],
            "count": 100_000,
            "bytes": 8 * MIB,
        }
        tape.append(GATE, Kind.RESULT, msgpack.packb(result))
        await tape.written()
        count += 1


async def _tty(tape: Tape, full: Callable[[], bool]) -> None:
    noise = base64.b64encode(os.urandom(MIB))
    generator = random.Random(1)
    while not full():
        for _ in range(300):
            at = generator.randrange(MIB)
            text = b"".join(b"\x1b[%dm%s\x1b[0m\r\n" % (31 + i % 7, noise[at + i * 50 :][:50]) for i in range(8))
            tape.append(OUT, Kind.WIRE, text)
            await tape.written()
        tape.append(OUT, Kind.WIRE, b"\x1b[?1049h\x1b[2J" + noise[at:][:3000] + b"\x1b[?1049l")


def write(kind: str, folder: Path, size: int) -> Path:
    """Write a tape of about that many bytes; return its first segment."""
    recorder = Recorder(folder, SealKey.generate(), monotonic_ns=_Clock())
    more = {"tty": [80, 24]} if kind == "tty" else {}

    async def session() -> Path:
        tape = recorder.open(
            protocol="ssh" if kind == "tty" else "postgres",
            identity={"subject": "x"},
            target="t",
            mode="written",
            more=more,
        )
        first = tape.path
        fill = {"small": _small, "bulk": _bulk, "tty": _tty}[kind]
        await fill(tape, lambda: sum(path.stat().st_size for path in first.parent.iterdir()) >= size)
        await tape.close("closed")
        return first

    try:
        return asyncio.run(session())
    finally:
        recorder.close()


def measure(path: Path) -> None:
    """Print what opening and jumping take."""
    with contextlib.ExitStack() as stack:
        sink = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, sink)
        stack.enter_context(few_collections())  # as Player.play() has it
        began = time.perf_counter()
        player = Player(TapeReader(path), ReplayOptions(columns=110), sink, None, timed=True)
        player._draw(Spot(-1, 0))
        opened = time.perf_counter() - began
        tape = player.tape
        size = sum(segment.stat().st_size for segment in tape.segments)
        commands = player.index.count() or 0
        counts = f"{len(tape.segments)} segments, {player.index.last() + 1:,} records, {commands:,} commands"
        print(f"  {size / 1e9:.2f} GB, {counts}")
        print(f"  open               {opened * 1e3:7.1f} ms")
        generator = random.Random(7)
        end = tape.duration_ns

        def to_time() -> None:
            t_ns = generator.randrange(end)
            player._draw(Spot(player.index.record_at(t_ns), t_ns))

        def to_command() -> None:
            command = player.index.nth(generator.randrange(commands))
            assert command is not None
            player._draw(Spot(command.n, command.t_ns))

        def on() -> None:
            command = player.index.after(player.spot.n)
            if command is not None:
                player._draw(Spot(command.n, command.t_ns))

        print(f"  load               {os.getloadavg()[0]:7.1f} of {os.cpu_count()} processors")
        jumps = [("to any time", to_time)]
        if commands:
            jumps += [("to any command", to_command), ("to the next command", on)]
        for name, jump in jumps:
            used = time.process_time()
            taken = sorted(_timed(jump) for _ in range(JUMPS))
            used = (time.process_time() - used) / JUMPS * 1e3
            worst = f"{taken[-1] * 1e3:.1f} ms at worst of {JUMPS}, {used:.1f} ms of CPU on average"
            print(f"  {name:19}{taken[JUMPS // 2] * 1e3:7.1f} ms median, {worst}")
        began = time.perf_counter()
        found = sum(1 for _ in player.index.markers())
        print(f"  all {found} markers      {time.perf_counter() - began:7.1f} s")
    print(f"  memory             {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:7.0f} MiB at most")


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay")
    parser.add_argument("--size-mb", type=int, default=2048, help="of each tape")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--keep", type=Path, help="a folder for the tapes, used again if they are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gatecast-bench-replay-") as temporary:
        for kind in options.kind or KINDS:
            folder = (options.keep or Path(temporary)) / kind
            print(f"{kind}", flush=True)
            there = sorted(folder.rglob("*.000.gct"))
            measure(there[0] if there else write(kind, folder, options.size_mb * MIB))


if __name__ == "__main__":
    main()
